"""`flexgen reverse generator=…` as a user types it, for generators that FlexGen did not train."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flexgen.reversal import encoder, reverse
from tests.forked import Forked, fork

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import generators

Run = Callable[..., Path]
SCRIPT = ("generator=g.pt", "trust=true")
QUICK = ("reverse.method=adam", "reverse.steps=8", "device=cpu")


@pytest.fixture
def work(flexgen: Run, tmp_path: Path) -> Path:
    """A folder with a generator in each form, and images in each form."""
    generators.script(tmp_path / "g.pt")
    x = ((generators.images(12) + 1) * 127.5).round().to(torch.uint8)
    np.save(tmp_path / "x.npy", x.numpy())
    (tmp_path / "images").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i:02d}.png")
    return tmp_path


def expected(x: np.ndarray) -> torch.Tensor:
    scaled = torch.from_numpy(x).float() * (2 / 255) - 1
    return reverse(generators.small(), scaled, latent_shape=4, method="adam", steps=8).z


def message(flexgen: Run, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        flexgen("reverse", *words)
    told = stopped.value.code
    assert isinstance(told, str)
    assert told.startswith("flexgen reverse: ")
    assert "\n" not in told
    return told


def test_names_that_are_no_utf8_are_kept_and_shown(flexgen: Run, work: Path) -> None:
    folder = os.fsdecode(b"pictures \xe9")
    os.rename("images", folder)
    os.rename(f"{folder}/03.png", os.fsencode(folder) + b"/caf\xe9.png")
    flexgen(
        "reverse", *SCRIPT, "data=folder", f"path={folder}", "latent_dim=4", "out=codes",
        *QUICK,
    )  # fmt: skip
    with safe_open("codes/codes.safetensors", "pt") as file:
        assert r"caf\xe9.png" in json.loads(file.metadata()["names"])
    page = Path("codes/pairs.html").read_text(encoding="utf-8")
    assert r"caf\xe9.png" in page
    assert r"pictures \xe9" in page


def test_a_torchscript_file_and_a_folder(
    flexgen: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(work / "images" / "other.jpg")
    words = (*SCRIPT, "trust=true", "data=folder", "path=images/", "latent_dim=4", "out=my codes")
    flexgen("reverse", *words, "device=cpu", "reverse.steps=8")
    told = capsys.readouterr().out
    for line in (
        "generator: g.pt (TorchScript file), codes 4 to 1×8×8",
        "resized to 8×8 pixels, cut about the centre to that aspect: 1 of 13 images (30×20)",
        "turned to grey: 1 of 13 images (RGB)",
        "method: ",
        "reversed: 13 samples in ",
        "converged: ",
        "codes: my codes/codes.safetensors",
    ):
        assert line in told
    assert re.search(r"loss \(half the squared error a sample\): mean \S+, median \S+, 90th", told)
    found = load_file("my codes/codes.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "z": (13, 4), "loss": (13,), "steps": (13,), "converged": (13,), "index": (13,),
        "rmse": (13,), "psnr": (13,),
    }  # fmt: skip
    with safe_open("my codes/codes.safetensors", "pt") as file:
        assert '"00.png", "01.png"' in file.metadata()["names"]
    page = Path("my codes/pairs.html").read_text()
    losses = [float(loss) for loss in re.findall(r'data-loss="([^"]+)"', page)]
    assert losses[0] == pytest.approx(float(found["loss"].max()))  # the worst come first
    assert page.index("Worst") < page.index("Best") < page.index("Between")
    assert page.count(">not converged<") == int((~found["converged"]).sum())
    assert not re.search(r'(src|href)="(?!data:)', page)
    with Image.open("my codes/pairs.png") as picture:
        assert picture.size[0] > 100


@pytest.mark.parametrize(
    "generator",
    [
        "g.safetensors",
        "g.pt2",
        "four.pt2",
        "generators:network",
        "generators:function",
        "mine:maps",
        "whole.pt",
    ],
)
def test_every_other_form_gives_the_same_codes(flexgen: Run, work: Path, generator: str) -> None:
    words = [f"generator={generator}", "data=array", "path=x.npy", "pairs=0"]
    if generator == "g.safetensors":
        save_file(generators.small().state_dict(), "g.safetensors")
        words += ["network={_target_:generators.Small}", "latent_dim=4"]
    elif generator == "g.pt2":
        generators.export(work / "g.pt2")
    elif generator == "four.pt2":
        generators.export(work / "four.pt2", dynamic=False)
    elif generator == "whole.pt":
        torch.save(generators.small(), "whole.pt")
        words.append("latent_dim=4")
    elif generator == "mine:maps":  # in the working directory
        (work / "mine.py").write_text("from generators import maps\n")
        words.append("latent_shape=[2,2,1]")
    elif generator.startswith("generators:"):
        words.append("latent_dim=4")
    if generator != "g.safetensors":
        assert "a program" in message(flexgen, *words)
        words.append("trust=true")
    try:
        flexgen("reverse", *words, *QUICK)
    finally:
        sys.path[:] = [path for path in sys.path if path != str(work)]
        sys.modules.pop("mine", None)
    z = load_file("codes/codes.safetensors")["z"]
    assert z.shape == ((12, 2, 2, 1) if "maps" in generator else (12, 4))
    torch.testing.assert_close(z.flatten(1), expected(np.load("x.npy")), rtol=0, atol=1e-5)


def test_a_run_of_flexgens_own(flexgen: Run, work: Path) -> None:
    run = flexgen(
        "train", "data=digits", "network=mlp", "network.generator.hidden_features=[16]",
        "network.critic.hidden_features=[16]", "prior=uniform", "steps=3", "trainer=cpu",
        "callbacks=[checkpoint]", "report=false",
    )  # fmt: skip
    flexgen("reverse", f"generator={run}", "path=images", *QUICK, "reverse.lr=1")
    z = load_file("codes/codes.safetensors")["z"]
    assert z.shape == (12, 20)
    assert z.abs().max() <= 1  # the prior's own bounds


def test_cross_entropy_moves_both_sides_to_the_unit_range(flexgen: Run, work: Path) -> None:
    words = (*SCRIPT, "trust=true", "latent_dim=4", "data=array", "path=x.npy", "reverse.loss=bce")
    flexgen("reverse", *words, *QUICK)
    x = torch.from_numpy(np.load("x.npy")).float() / 255
    net = generators.small()
    wanted = reverse(
        lambda z: (net(z) + 1) / 2, x, latent_shape=4, method="adam", steps=8, loss="bce"
    )
    found = load_file("codes/codes.safetensors")
    torch.testing.assert_close(found["loss"], wanted.loss, rtol=1e-4, atol=1e-4)


def test_an_encoder_is_learned_once_and_shared(
    flexgen: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = []

    def quickly(*args: Any, **options: Any) -> Any:
        learned.append(args)
        return train(*args, **options, steps=20)

    train = encoder.train_encoder
    monkeypatch.setattr(encoder, "train_encoder", quickly)
    words = (*SCRIPT, "latent_dim=4", "data=array", "path=x.npy")
    assert "goes with reverse.init=encoder" in message(flexgen, *words, "encoder=e.safetensors")
    words = (*words, "reverse.init=encoder", "device=cpu", "pairs=0", "reverse.steps=8")
    flexgen("reverse", *words, "out=one")
    flexgen("reverse", *words, "out=two", "chunk=5")
    assert len(learned) == 1
    assert len(list(Path(os.environ["FLEXGEN_CACHE"], "encoders").iterdir())) == 1
    one, two = (load_file(f"{out}/codes.safetensors")["z"] for out in ("one", "two"))
    assert torch.equal(one, two)


def test_only_some_samples(flexgen: Run, work: Path) -> None:
    words = (*SCRIPT, "latent_dim=4", "data=array", "path=x.npy", "n=4")
    flexgen("reverse", *words, *QUICK)
    assert load_file("codes/codes.safetensors")["index"].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which generator? give run=PATH of a FlexGen run, or generator=FILE"),
        (["run=x", *SCRIPT], "not both"),
        ([*SCRIPT], "`path` has no value"),
        (["generator=no.pt", "path=images"], "there is no file no.pt"),
        (["generator=x.npy", "path=images"], "x.npy is an array, not a generator"),
        ([*SCRIPT, "path=images"], "which codes does the generator take?"),
        ([*SCRIPT, "path=images", "latent_dim=5"], "does not take codes of shape (5,)"),
        ([*SCRIPT, "path=images", "latent_dim=0"], "whole number above 0"),
        ([*SCRIPT, "path=no", "latent_dim=4"], "there is no folder no"),
        ([*SCRIPT, "path=x.npy", "latent_dim=4"], "data=array"),
        ([*SCRIPT, "path=images", "data=foldr", "latent_dim=4"], "got 'foldr'"),
        ([*SCRIPT, "path=images", "latnt_dim=4"], "did you mean `latent_dim`"),
        ([*SCRIPT, "path=images", "latent_dim=4", "range=[1,0]"], "`range` must be"),
        ([*SCRIPT, "path=images", "latent_dim=4", "processes=0"], "`processes` must be"),
        ([*SCRIPT, "path=images", "latent_dim=4", "+reverse.stps=4"], "`reverse.stps`"),
        ([*SCRIPT, "path=images", "latent_dim=4", "reverse.lr=-1"], "`lr` must be"),
        ([*SCRIPT, "path=images", "latent_dim=4", "device=tpu"], "`device` must be"),
        ([*SCRIPT, "path=images", "latent_dim=4", "reverse.norm=batch"], "norm=batch"),
    ],
)
def test_mistakes(flexgen: Run, work: Path, words: list[str], told: str) -> None:
    assert told in message(flexgen, *words)
    assert not Path("codes").exists()


def test_help_explains_every_key(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flexgen("reverse", "--help")
    told = capsys.readouterr().out
    keys = [line for line in told.splitlines() if re.match(r" *\w+: ", line)]
    assert len(keys) > 40
    bare = [line for line in keys if "#" not in line and "${n}" not in line]
    assert bare == []


LONG = (
    *SCRIPT, "data=array", "path=long.npy", "latent_dim=4", "chunk=4", "device=cpu",
    "reverse.method=adam", "reverse.batch_size=4", "reverse.tolerance=0", "reverse.steps=100",
    "threads=1", "pairs=0", "progress=false",
)  # fmt: skip
"""Work of 40 small chunks."""


@pytest.fixture
def long(work: Path) -> Path:
    np.save("long.npy", np.concatenate([np.load("x.npy")] * 14)[:160])
    return work


@contextmanager
def started(*more: str) -> Iterator[Forked]:
    """The command in a process of its own, in a group of its own as in a terminal."""
    process = fork("reverse", *LONG, *more, env={"OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def parts(out: str) -> int:
    return len(list(Path(out).glob("codes.parts/*.safetensors")))


def wait_for(process: Forked, out: str, number: int) -> None:
    while parts(out) < number and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()


def bits(out: str) -> bytes:
    return (Path(out) / "codes.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_at_a_random_moment_it_ends_with_the_same_bits(
    flexgen: Run, long: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flexgen("reverse", *LONG, "out=whole")
    draw = np.random.default_rng()
    with started("out=cut") as process:
        wait_for(process, "cut", int(draw.integers(1, 25)))
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.communicate()
    done = parts("cut")
    assert 0 < done < 40
    capsys.readouterr()
    flexgen("reverse", *LONG, "out=cut")
    told = capsys.readouterr().out
    assert f"reversed: {4 * done} were done before, then {160 - 4 * done} samples" in told
    assert bits("cut") == bits("whole")


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(flexgen: Run, long: Path) -> None:
    flexgen("reverse", *LONG, "out=one")
    flexgen("reverse", *LONG, "out=two", "processes=2")
    assert bits("two") == bits("one")


def test_ranks_of_torchrun_give_the_bits_of_one_process(
    flexgen: Run, long: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*LONG, "n=30", "reverse.steps=5")
    flexgen("reverse", *words, "out=one")
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    flexgen("reverse", *words, "out=two")
    assert capsys.readouterr().out == ""
    assert parts("two") == 4
    assert "must be 1 under torchrun" in message(flexgen, *words, "processes=2")
    assert "must be false under torchrun" in message(flexgen, *words, "restart=true")
    monkeypatch.setenv("RANK", "0")
    flexgen("reverse", *words, "out=two")
    assert bits("two") == bits("one")


@pytest.mark.slow
def test_a_shard_that_fails_ends_all_with_its_message(flexgen: Run, long: Path) -> None:
    x = np.load("x.npy").astype(np.float32) / 127.5 - 1
    bad = x.copy()
    bad[-1] = np.nan
    np.save("bad.npy", bad)
    words = [word for word in LONG if not word.startswith("path=")]
    told = message(flexgen, *words, "path=bad.npy", "processes=2", "chunk=4", "out=bad")
    assert "holds NaN or infinity" in told
    np.save("bad.npy", x)
    flexgen("reverse", *words, "path=bad.npy", "chunk=4", "out=whole")


@pytest.mark.slow
def test_control_c_says_that_the_same_command_goes_on(flexgen: Run, long: Path) -> None:
    with started("out=out", "processes=2", "reverse.steps=1000") as process:
        wait_for(process, "out", 3)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_shards_end_when_their_parent_is_killed(long: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with started("out=out", "processes=2", "reverse.steps=1000") as process:
        while not Path("out/.rank-1.lock").exists():
            wait_for(process, "out", 1)
            time.sleep(0.01)
        process.kill()
        process.communicate()
        # The system drops a process's lock when it is gone.
        with open("out/.rank-1.lock") as lock:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                time.sleep(0.05)
        pytest.fail("a shard outlived its parent")
