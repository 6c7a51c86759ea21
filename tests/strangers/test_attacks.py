"""What a stranger's files may try, against every command that takes them."""

import ctypes
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.archives import archive
from tests.strangers.conftest import ON_RUN, Place, commands

READERS = ("report", "table")
ALL = (*ON_RUN, *READERS)

Attack = Callable[[Place], str | None]
"""Changes the stranger's run; returns what the refusal says, or None if the run is still taken."""

ATTACKS: dict[str, tuple[Attack, tuple[str, ...]]] = {}


def attack(*names: str) -> Callable[[Attack], Attack]:
    """Try it against these commands."""

    def register(build: Attack) -> Attack:
        ATTACKS[build.__name__] = build, names
        return build

    return register


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def cases() -> list[Any]:
    """Each attack against each of its commands; without FLEXGEN_FUZZ=2000 against the first."""
    in_full = int(os.environ.get("FLEXGEN_FUZZ", "0")) >= 2000
    return [
        pytest.param(name, command, id=f"{name}-{command}")
        for name, (_, names) in ATTACKS.items()
        for number, command in enumerate(names)
        if in_full or not number
    ]


# Archives that two readers read apart, and bombs.


def entries(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as opened:
        return [(entry.filename, opened.read(entry)) for entry in opened.infolist()]


def evil_checkpoint(place: Place, **how: Any) -> bytes:
    file = io.BytesIO()
    checkpoint = torch.load(place.checkpoint, weights_only=True)
    torch.save(checkpoint | {"evil": Evil(place.ran / "checkpoint")}, file, **how)
    return file.getvalue()


@attack(*ON_RUN)
def pickle_in_a_checkpoint(place: Place) -> str:
    place.checkpoint.write_bytes(evil_checkpoint(place))
    return "damaged or not FlexGen's"


@attack(*ON_RUN)
def legacy_checkpoint(place: Place) -> str:
    place.checkpoint.write_bytes(evil_checkpoint(place, _use_new_zipfile_serialization=False))
    return "damaged or not FlexGen's"


@attack(*ON_RUN)
def legacy_pickle_before_a_checkpoint(place: Place) -> str:
    old = evil_checkpoint(place, _use_new_zipfile_serialization=False)
    place.checkpoint.write_bytes(old + place.checkpoint.read_bytes())
    return "something comes before it"


@attack(*ON_RUN)
def checkpoint_before_a_checkpoint(place: Place) -> str:
    place.checkpoint.write_bytes(evil_checkpoint(place) + place.checkpoint.read_bytes())
    return "something comes before it"


@attack(*ON_RUN)
def two_entries_with_one_name(place: Place) -> str:
    whole = entries(place.checkpoint)
    name = next(name for name, _ in whole if name.endswith("data.pkl"))
    place.checkpoint.write_bytes(archive([*whole, (name, b"cposix\nsystem\n.")]))
    return "two of its entries have one name"


@attack(*ON_RUN)
def compressed_checkpoint(place: Place) -> str:
    whole = entries(place.checkpoint)
    bomb = [(name, bytes(3 * 2**30) if name.endswith("data/0") else c) for name, c in whole]
    place.checkpoint.write_bytes(archive(bomb, zipfile.ZIP_DEFLATED))
    return "it is compressed"


@attack(*ON_RUN)
def torchscript_as_a_checkpoint(place: Place) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(place.checkpoint)
    return "damaged or not FlexGen's"


@attack(*ON_RUN)
def huge_tensor_without_values(place: Place) -> str:
    checkpoint = torch.load(place.checkpoint, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = torch.zeros(1).expand(10**12)
    torch.save(checkpoint, place.checkpoint)
    return "larger than the file"


# Links, pipes, and folders that do not show what they hold.


@attack(*ON_RUN)
def samples_linked_outside(place: Place) -> str:
    (place.run / "samples").symlink_to(place.own)
    return f"{place.run}/samples is a link, to {place.own}"


@attack(*ON_RUN)
def lock_linked_outside(place: Place) -> str:
    (place.run / ".lock").symlink_to(place.own / ".lock")
    return ".lock is a link"


@attack("report", "table")
def linked_for_readers(place: Place) -> None:
    shutil.rmtree(place.run / "images" / "samples")
    (place.run / "images" / "samples").symlink_to(place.own)
    (place.run / "control").symlink_to(place.own)
    (place.run / "report.html").symlink_to(place.own / "secret.txt")
    (place.run / "table.csv").symlink_to(place.own / "secret.txt")
    (place.run / "codes" / "step=00000099.safetensors").symlink_to(place.own / "secret.txt")


@attack(*ALL)
def configuration_linked_outside(place: Place) -> str:
    (place.run / "config.yaml").unlink()
    (place.run / "config.yaml").symlink_to(place.own / "config.yaml")
    return "is a link"


@attack(*ALL)
def metrics_linked_outside(place: Place) -> str:
    (place.run / "metrics.csv").unlink()
    (place.run / "metrics.csv").symlink_to(place.own / "metrics.csv")
    return "is a link"


@attack(*ON_RUN)
def links_in_a_circle(place: Place) -> str:
    (place.run / "samples").symlink_to(place.run / "samples2")
    (place.run / "samples2").symlink_to(place.run / "samples")
    return "is a link"


def pipes(name: str) -> None:
    @attack(*ALL)
    def pipe(place: Place) -> str | None:
        path = next(place.run.glob(name))
        path.unlink()
        os.mkfifo(path)
        return None if name.startswith(("images", "codes", "checkpoints")) else "pipe"

    pipe.__name__ = f"pipe for {name}"
    ATTACKS[pipe.__name__] = ATTACKS.pop("pipe")


for _name in ("config.yaml", "provenance.json", "metrics.csv", "metrics.json"):
    pipes(_name)
for _name in ("checkpoints/step=*.ckpt", "codes/*.safetensors", "images/samples/*.png"):
    pipes(_name)


# Text that is obeyed: by YAML, a terminal, a spreadsheet.


@attack(*ALL)
def alias_bomb(place: Place) -> str:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
    )
    with (place.run / "config.yaml").open("a") as file:
        file.write(bomb)
    return "config.yaml is"


@attack(*ALL)
def object_in_yaml(place: Place) -> str:
    with (place.run / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.mknod ['{place.ran}/yaml']\n")
    return "config.yaml is"


@attack(*ALL)
def nested_provenance(place: Place) -> str:
    (place.run / "provenance.json").write_text("[" * 100_000)
    return "provenance.json is"


ESCAPE = "\x1b]0;pwned\x07\x1b[31m\u202e\r"


@attack(*ON_RUN)
def escape_in_a_key(place: Place) -> str:
    place.edit(f"model.{ESCAPE}", {"_target_": "os.system"})
    return "may not use"


@attack(*ON_RUN)
def escape_in_a_value(place: Place) -> str:
    place.edit("model.generator._target_", f"os.{ESCAPE}")
    return "may not use"


@attack(*ON_RUN)
def escape_in_a_state_dict(place: Place) -> str:
    checkpoint = torch.load(place.checkpoint, weights_only=True)
    checkpoint["state_dict"][ESCAPE] = torch.zeros(1)
    torch.save(checkpoint, place.checkpoint)
    return "does not fit"


@attack("table", "report")
def escape_in_what_is_shown(place: Place) -> None:
    place.edit("name", f"a{ESCAPE}")
    place.edit("latent_dim", f"b{ESCAPE}")
    about = json.loads((place.run / "provenance.json").read_text())
    about["overrides"] = [f"latent_dim=b{ESCAPE}", f"c{ESCAPE}=1"]
    about["finished"] = None
    (place.run / "provenance.json").write_text(json.dumps(about))
    values = (place.run / "metrics.csv").read_text().replace("emd/samples", f"emd/{ESCAPE[:4]}")
    (place.run / "metrics.csv").write_text(values)
    moved = place.run.with_name(f"runs{ESCAPE}")
    shutil.copytree(place.run, moved / f"one{ESCAPE}")
    shutil.rmtree(place.run)
    place.run = moved


# Pictures.

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\n"


@attack("report")
def postscript_as_a_picture(place: Place) -> None:
    for path in (place.run / "images").rglob("*.png"):
        path.write_bytes(EPS)


# What it may ask of the machine, of W&B and of the data.


@attack("resume")
def machines_that_never_come(place: Place) -> None:
    place.edit("trainer.num_nodes", 4)
    place.edit("trainer.strategy", "ddp_find_unused_parameters_true")


@attack(*ON_RUN)
def program_for_the_data(place: Place) -> str:
    place.edit("data._target_", "subprocess.Popen")
    return "may not use"


@attack(*ON_RUN)
def pictures_of_the_user(place: Place) -> str:
    place.edit("data.root", str(place.own))
    return "outside of the data folder"


@attack(*ON_RUN)
def folder_of_the_user_as_the_data_folder(place: Place) -> str | None:
    place.edit("paths.data_dir", str(place.own))
    place.edit("data", {"_target_": "flexgen.data.ImageData", "name": "folder",
                        "root": str(place.own), "shape": [1, 8, 8]})  # fmt: skip
    return "data"  # resume finds that they changed, the others that they do not fit


@attack("resume")
def wandb_of_the_stranger(place: Place) -> None:
    place.edit("logger.wandb", {
        "_target_": "flexgen.training.WandbLogger", "save_dir": str(place.run), "entity": "evil",
        "project": "evil", "id": "abc", "job_type": None, "group": None, "name": None, "last": 5,
    })  # fmt: skip
    (place.run / ".git").mkdir()
    (place.run / ".git" / "config").write_text(f"[core]\nfsmonitor = touch {place.ran}/git\n")
    place.env["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    place.env["WANDB_API_KEY"] = "0" * 40
    place.env["WANDB_SILENT"] = "true"


# Files that hold a program, and what lies about where a command is typed.


def exported(path: Path, mark: Path) -> None:
    """An archive of torch.export, a weight's name in which is code that torch.fx would write."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)
    whole = entries(path)
    name = f"weight);open({str(mark)!r},'w'"
    path.write_bytes(
        archive([(n, c.replace(b'"weight"', json.dumps(name).encode())) for n, c in whole])
    )


def scripted(path: Path, mark: Path) -> None:
    """TorchScript that maps a file as a tensor, which makes it."""
    lines = [
        "import torch", "class Net(torch.nn.Module):", "    def forward(self, z):",
        f"        return torch.from_file({str(mark)!r}, \\", "            True, 8)",
    ]  # fmt: skip
    source = path.with_suffix(".py")
    source.write_text("\n".join(lines))
    spec = importlib.util.spec_from_file_location("scripted", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.Net()).save(str(path))
    source.unlink()


def pickled(path: Path, mark: Path) -> None:
    torch.save(Evil(mark), path)


def legacy_before_an_archive(path: Path, mark: Path) -> None:
    file = io.BytesIO()
    torch.save(Evil(mark), file, _use_new_zipfile_serialization=False)
    path.write_bytes(file.getvalue() + archive([("a", b"b")]))


def module(path: Path, mark: Path) -> None:
    path.with_name("net.py").write_text(f"open({str(mark)!r}, 'w')\nnet = abs\n")


PROGRAMS = {exported: "g.pt2", scripted: "g.pt", pickled: "g.pkl", module: "net:net",
            legacy_before_an_archive: "g.safetensors.pt"}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name"), PROGRAMS.items(), ids=[build.__name__ for build in PROGRAMS]
)
def test_a_program_needs_trust(
    place: Place, build: Callable[[Path, Path], None], name: str
) -> None:
    build(place.work / name, place.ran / "generator")
    (place.ran / "generator").unlink(missing_ok=True)
    words = ["reverse", f"generator={name}", "data=array", "path=x.npy", "pairs=0", "device=cpu"]
    told = place.flexgen(*words).refusal
    pickles = (pickled, legacy_before_an_archive)
    what = "a pickle, which may be" if build in pickles else "a program, not"
    assert what in told
    assert "trust=true" in told
    assert "safetensors" in told


def test_a_program_called_weights_is_no_weights(place: Place) -> None:
    pickled(place.work / "g.safetensors", place.ran / "generator")
    network = "network={_target_:torch.nn.Linear,in_features:2,out_features:2}"
    words = ["reverse", "generator=g.safetensors", network, "data=array", "path=x.npy", "pairs=0"]
    assert "g.safetensors" in place.flexgen(*words, "device=cpu").refusal


@pytest.mark.parametrize("ending", [".png", ".jpg", ".gif"])
def test_postscript_among_the_images_is_refused(place: Place, ending: str) -> None:
    (place.work / "images").mkdir()
    for name in "abcd":
        (place.work / "images" / f"{name}{ending}").write_bytes(EPS)
    words = ["data=folder", "data.root=images", "data.shape=[1,8,8]", "data.batch_size=1",
             "callbacks=[checkpoint]"]  # fmt: skip
    assert ending in place.flexgen("train", *words, "trainer=cpu").refusal


def without_rights() -> None:
    """Have root meet what others meet: no more reading of what the owner may not read."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("command", ON_RUN)
def test_a_folder_that_cannot_be_listed_is_refused(place: Place, command: str) -> None:
    folder = place.run / "images" / "samples"
    folder.chmod(0o300)
    try:
        ended = place.flexgen(*commands(place.run)[command], prepare=without_rights)
        assert "cannot be listed" in ended.refusal
    finally:
        folder.chmod(0o700)


def test_a_folder_with_two_colons_is_no_chain_of_file_systems(place: Place) -> None:
    run = place.run.rename(place.run.with_name("thesis.tex::v2"))
    neighbour = place.run.with_name("thesis.tex")
    neighbour.write_text("my thesis")
    ended = place.flexgen(*commands(run)["resume"])
    assert ended.status == 0, ended.err
    assert (run / "checkpoints" / "step=00000012.ckpt").is_file()
    assert neighbour.read_text() == "my thesis"


def own_process(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as it is installed, in a process that imports all anew."""
    program = shutil.which("flexgen") or str(Path(sys.executable).with_name("flexgen"))
    return subprocess.run(
        [program, *words], cwd=place.work, capture_output=True, text=True, timeout=120,
        env={**os.environ, **place.env}, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["table", "report", "generator"])
def test_the_working_directory_is_no_place_for_code(place: Place, command: str) -> None:
    for name in ("tempfile", "random", "numpy", "torch", "sitecustomize", "flexgen", "queue"):
        (place.work / f"{name}.py").write_text(f"open({str(place.ran / name)!r}, 'w')\n")
    (place.work / "matplotlibrc").write_text("text.usetex: true\nbackend: module://evil\n")
    words = commands(place.run)[command]
    if command == "generator":
        words = [*words, "processes=2"]
    done = own_process(place, *words)
    assert done.returncode == 0, done.stderr
    assert list(place.ran.iterdir()) == []


@pytest.mark.parametrize(("name", "command"), cases())
def test_attack(place: Place, name: str, command: str) -> None:
    build = ATTACKS[name][0]
    told = build(place)
    ended = place.flexgen(*commands(place.run)[command])
    if told is None or told == "pipe":
        assert ended.status == 0 or ended.refusal
    else:
        assert told in ended.refusal


def test_an_honest_run_is_taken_by_every_command(place: Place) -> None:
    for words in commands(place.run).values():
        ended = place.flexgen(*words)
        assert ended.status == 0, ended.err
