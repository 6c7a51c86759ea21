"""A run as files for others: they give what the run gives, and the card's example runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flexgen.cli import main
from flexgen.metrics import Classifier
from flexgen.runs import sample_classes
from flexgen.runs.export import FORMATS
from flexgen.runs.run import open_run
from tests.conftest import SMALL

TINY = tuple(
    word for word in SMALL if not word.startswith(("callbacks", "steps", "data", "network"))
)
NET = ("network.generator.hidden_features=[8]", "network.critic.hidden_features=[8]")
WORDS = {
    "gan": ("data=digits", "latent_dim=3", *NET, "model.ema_decay=0.9"),
    "conditional": ("data=digits", "conditional=true", *NET),
    "uniform": ("data=ring8", "data.num_train=640", "prior=uniform", *NET),
    "flow": ("data=digits", "data.range=[0,1]", "model=vae", "prior=realnvp_small", "latent_dim=4"),
    "masked": ("data=digits", "prior=masked", *NET),
    "ali": ("data=digits", "model=bigan"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of a step or two, made when they are asked for."""
    where = tmp_path_factory.mktemp("exported")

    def made(name: str) -> Path:
        if not (where / name).is_dir():
            words = [word for word in TINY if not word.startswith(("latent", "model.log"))]
            main(
                ["train", *words, "latent_dim=2", "callbacks=[checkpoint]", "steps=1",
                 "data.batch_size=16", "report=false", *WORDS[name],
                 f"paths.run_dir={where / name}"]
            )  # fmt: skip
        return where / name

    return made


def example(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("to", ["torchscript", "export", "safetensors"])
@pytest.mark.filterwarnings("ignore")  # torch's own, on what it deprecates
def test_the_example_of_the_card_runs_and_gives_what_the_run_gives(
    runs: Callable[[str], Path], name: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "export" and name not in ("gan", "flow"):
        pytest.skip("one way through torch.export suffices")
    main(["export", f"run={runs(name)}", f"to={to}", f"out={tmp_path}"])
    monkeypatch.chdir(tmp_path)
    there: dict[str, object] = {}
    exec(example((tmp_path / "README.md").read_text()), there)
    run = open_run(runs(name))
    z = torch.linspace(-1, 1, 6 * run.latent.latent_dim).view(6, -1)
    labels = torch.arange(6) if name == "conditional" else None
    generator = there["generator"]
    assert callable(generator)
    with torch.no_grad():
        x = generator(z) if labels is None else generator(z, labels)
    torch.testing.assert_close(x, run.decode(z, labels), rtol=1e-4, atol=1e-4)
    if to == "safetensors":
        return
    assert there["x"].shape == (16, *run.data.shape)  # type: ignore[attr-defined]
    assert ("prior" in there) == (name == "flow")
    assert ("encoder" in there) == (name in ("flow", "ali"))
    assert ("not the model's own prior" in (tmp_path / "README.md").read_text()) == (
        name == "masked"
    )


@pytest.mark.filterwarnings("ignore")
def test_the_prior_is_the_map_that_the_run_draws_by(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    main(["export", f"run={runs('flow')}", f"out={tmp_path}", "parts=[prior,encoder]"])
    run = open_run(runs("flow"))
    base = run.latent.prior.base_space()
    eps = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "prior.pt")(eps)
        torch.testing.assert_close(found, base.to_code(eps), rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "generator.pt").exists()


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_same_run_gives_the_same_bytes_in_every_format(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = runs("gan")
    for name in "ab":  # two processes, each with a hash seed of its own
        code = "import sys, flexgen.cli; [flexgen.cli.main(a.split(' ')) for a in sys.argv[1:]]"
        words = [f"export run={run} to={to} out={tmp_path / name / to}" for to in FORMATS]
        env = os.environ | {"PYTHONHASHSEED": str(ord(name))}
        subprocess.run([sys.executable, "-c", code, *words], check=True, env=env)
    found = digests(tmp_path / "a")
    assert found == digests(tmp_path / "b")
    assert {*found} == {
        "torchscript/README.md", "torchscript/generator.pt", "export/README.md",
        "export/generator.pt2", "safetensors/README.md", "safetensors/generator.safetensors",
        *(f"hub_folder/{name}" for name in ("README.md", "config.json", "generator.pt",
                                            "generator.safetensors", "samples.png")),
    }  # fmt: skip
    config = json.loads((tmp_path / "a" / "hub_folder" / "config.json").read_text())
    assert config["latent_dim"] == 3


@pytest.mark.parametrize(
    ("to", "file"), [("torchscript", "generator.pt"), ("export", "generator.pt2")]
)
@pytest.mark.filterwarnings("ignore")
def test_an_exported_generator_is_reversed(
    runs: Callable[[str], Path], tmp_path: Path, to: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["export", f"run={runs('gan')}", f"to={to}", "out=."])
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8))
    words = ["trust=true", "data=array", "path=x.npy", "reverse.steps=2", "pairs=0", "device=cpu"]
    main(["reverse", f"generator={file}", *words])
    assert load_file(tmp_path / "codes" / "codes.safetensors")["z"].shape == (3, 3)


@pytest.mark.parametrize("to", ["png", "npz", "safetensors"])
def test_samples_for_evaluation_by_others(
    runs: Callable[[str], Path], tmp_path: Path, to: str
) -> None:
    out = tmp_path / "out"
    words = [f"run={runs('conditional')}", "n=20", f"to={to}", f"out={out}"]
    main(["sample", *words])
    x = open_run(runs("conditional")).sample(20)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    if to == "png":
        assert sorted(path.name for path in out.iterdir()) == [str(i) for i in range(10)]
        found = np.asarray(Image.open(out / "3" / "00013.png"))
        assert np.array_equal(found, pixels[13, 0].numpy())
    elif to == "npz":
        with np.load(tmp_path / "out.npz") as found:
            assert np.array_equal(found["arr_0"], pixels.permute(0, 2, 3, 1).numpy())
            assert found["arr_1"].tolist() == [*range(10), *range(10)]
    else:
        found = load_file(tmp_path / "out.safetensors")
        assert torch.equal(found["x"], x)
        assert found["label"].tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["n=5", "classes=[3,1]"], [3, 1, 3, 1, 3]),
        (["classes={8:1,2:2}"], [8, 2, 2]),
        (["classes=7", "n=2", "prior=normal"], [7, 7]),
    ],
)
def test_samples_of_the_classes_that_are_asked_for(
    runs: Callable[[str], Path], tmp_path: Path, capsys: Any, words: list[str], labels: list[int]
) -> None:
    run = runs("conditional")
    main(["sample", f"run={run}", "to=npz", f"out={tmp_path / 'out'}", *words])
    counts = ", ".join(f"{label} {labels.count(label)}" for label in range(10))
    assert capsys.readouterr().out.splitlines()[-1] == f"classes: {counts}"
    with np.load(tmp_path / "out.npz") as found:
        assert found["arr_1"].tolist() == labels
        x = open_run(run).sample(len(labels), context=torch.tensor(labels))
        assert np.abs(found["arr_0"] - ((x + 1) * 127.5).permute(0, 2, 3, 1).numpy()).max() <= 0.51


def test_of_a_model_without_labels_the_classifier_counts(
    runs: Callable[[str], Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier((1, 8, 8), 10)
    torch.nn.init.zeros_(classifier.head.weight)
    classifier.head.bias.data.copy_(torch.nn.functional.one_hot(torch.tensor(4), 10))
    classifier.metadata = {"accuracy": "0.97"}
    monkeypatch.setattr(sample_classes, "classifier_of", lambda *_: classifier)
    words = ["sample", f"run={runs('gan')}", "n=3", "to=npz", f"out={tmp_path / 'out'}"]
    main(words)
    assert "classes" not in capsys.readouterr().out  # nothing is trained for it
    about = "{_target_:flexgen.callbacks.SampleQuality,classifier:true,split:test,cache_dir:none}"
    main([*words, f"++callbacks.quality={about}"])
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("classes by FlexGen's classifier, which is right on 97% of held-out")
    assert "3 0, 4 3, 5 0" in told


@pytest.mark.parametrize(
    ("run", "words", "told"),
    [
        ("gan", "classes=3", r"`classes` is for conditional models, got 3; leave it out"),
        ("conditional", "classes=[]", r"must name at least one class"),
        ("conditional", "classes={3:0}", r"must ask for at least one sample"),
        ("conditional", "classes={3:1} n=4", r"leave `n` out"),
        ("conditional", "classes=ten", r"numbers below 10; got 'ten'"),
    ],
)
def test_classes_that_are_not_there(
    runs: Callable[[str], Path], run: str, words: str, told: str
) -> None:
    with pytest.raises(SystemExit, match=told):
        main(["sample", f"run={runs(run)}", "to=npz", *words.split()])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["to=onnx"], "`to` must be one of torchscript, export"),
        (["parts=[critic]"], "`parts` must be one of generator"),
        (["nonsense=1"], "unknown key `nonsense`"),
    ],
)
def test_what_cannot_be_exported(runs: Callable[[str], Path], words: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        main(["export", f"run={runs('gan')}", *words])
    assert not (runs("gan") / "export").exists()
