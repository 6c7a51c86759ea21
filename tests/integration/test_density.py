"""`model=density`: a run without codes through every command."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexgen.runs.run import open_run
from flexgen.training import load_checkpoint

TINY = (
    "model=density", "network=gated_pixelcnn", "network.pixels.channels=4",
    "network.pixels.num_layers=2", "data=digits", "output=categorical", "output.levels=17",
    "data.num_test=100", "callbacks.samples.every=null", "callbacks.nll.every=5",
    "callbacks.checkpoint.keep=null", "callbacks.checkpoint.every=5", "model.log_every=5",
    "optimizer@model.optimizer=adam", "model.optimizer.lr=0.01", "trainer=cpu", "steps=10",
    "schedule=constant",  # a longer run has the same first steps
)  # fmt: skip

Command = Callable[..., Path]


def rows(run: Path, name: str) -> list[float]:
    with open(run / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_density_is_trained_measured_drawn_from_and_resumed(flexgen: Command) -> None:
    run = flexgen("train", *TINY)
    nll, bits = rows(run, "nll/samples"), rows(run, "nll/bits_per_dimension")
    assert len(nll) == 2
    assert nll[1] < nll[0]
    assert bits[1] == pytest.approx(nll[1] / (64 * 0.6931471805599453))
    assert len(rows(run, "nll/train")) == len(rows(run, "loss/nll")) == 2
    saved = load_file(run / "nll" / "step=00000010.safetensors")
    assert saved["nll"].shape == (100,)  # the whole test set
    assert float(saved["nll"].double().mean()) == pytest.approx(nll[1])
    assert "NLL" in (run / "report.html").read_text()

    opened = open_run(run)
    x, _ = opened.data.split("test", None, 0)
    torch.testing.assert_close(opened.model.log_likelihood(x).mean().item(), -nll[1])
    grid = torch.arange(17) / 8 - 1
    assert torch.cdist(opened.sample(5).view(-1, 1), grid[:, None]).amin(1).max() < 1e-6

    flexgen("sample", f"run={run}", "n=6")
    drawn = load_file(run / "samples" / "step=00000010_seed=0_n=6.safetensors")["x"]
    assert torch.equal(drawn, opened.sample(6))
    flexgen("evaluate", f"run={run}")
    values = json.loads((run / "evaluation.json").read_text())["values"]
    assert values["nll/samples"] == pytest.approx(nll[1])
    flexgen("report", str(run))

    flexgen("resume", f"run={run}", "steps=20")
    whole = flexgen("train", *TINY, "steps=20", run_dir="whole")
    there, here = (load_checkpoint(r / "checkpoints" / "step=00000020.ckpt") for r in (run, whole))
    assert there["state_dict"].keys() == here["state_dict"].keys()
    assert any(name.startswith("ema.") for name in here["state_dict"])
    for name, weight in here["state_dict"].items():
        assert torch.equal(there["state_dict"][name], weight), name
    assert rows(run, "nll/samples") == rows(whole, "nll/samples")


@pytest.mark.parametrize("network", ["multiscale_pixelcnn", "diagonal_bilstm"])
def test_every_pixel_network_is_resumed_with_the_same_bits(flexgen: Command, network: str) -> None:
    words = [word for word in TINY if not word.startswith(("network", "steps"))]
    few = [word for word in words if not word.startswith(("callbacks.nll", "callbacks.samples"))]
    few += [f"network={network}", "conditional=true", "callbacks=[checkpoint]"]
    run = flexgen("train", *few, "steps=5", "report=false")
    flexgen("resume", f"run={run}", "steps=10", "report=false")
    whole = flexgen("train", *few, "steps=10", "report=false", run_dir="whole")
    there, here = (load_checkpoint(r / "checkpoints" / "step=00000010.ckpt") for r in (run, whole))
    for name, weight in here["state_dict"].items():
        assert torch.equal(there["state_dict"][name], weight), name
    assert torch.equal(open_run(run).sample(12), open_run(whole).sample(12))


@pytest.fixture
def run(flexgen: Command) -> Path:
    kept = [word for word in TINY if not word.startswith("callbacks")]
    return flexgen("train", *kept, "steps=2", "report=false", "callbacks=[checkpoint]")


@pytest.mark.parametrize(
    "words",
    [("reverse",), ("refit",), ("refit", "prior=realnvp"), ("compare",), ("sample", "prior=normal"),
     ("sample", "interpolate=linear"), ("sample", "arithmetic=true")],
    ids=" ".join,
)  # fmt: skip
def test_what_needs_codes_is_refused_in_a_line(
    flexgen: Command, run: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        flexgen(words[0], f"run={run}", *words[1:], run_dir="other")
    told = str(stopped.value.code)
    assert "no codes and no prior" in told
    assert "model=vae" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("output=bernoulli",), r"GatedPixelCNN is of data in \(0.0, 1.0\), got data in \(-1.0"),
        (("output.levels=256",), "set output.levels=17"),
        (("output=bernoulli", "data.range=[0,1]"), "pixels that are 0 or 1, got .*output.levels"),
        (("network=mlp",), "network=gated_pixelcnn, pixelcnn or made"),
        (("callbacks=[reversal]",), "ReversalScore needs"),
        (("callbacks=[likelihood]",), "LikelihoodScore needs a posterior"),
        (("callbacks=[quality]",), "SampleQuality needs a prior over codes"),
        (("callbacks=[refit]", "callbacks.refit.at=[1]"), "no prior to refit"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_line(
    flexgen: Command, words: tuple[str, ...], told: str
) -> None:
    kept = [w for w in TINY if not w.startswith("callbacks.") or "callbacks" not in words[0]]
    if "output=bernoulli" in words:
        kept.remove("output.levels=17")
    if "network=mlp" in words:
        kept = [word for word in kept if not word.startswith("network.")]
    with pytest.raises(SystemExit) as stopped:
        flexgen("train", *kept, *words)
    message = str(stopped.value.code)
    assert re.search(told, message), message
    assert "\n" not in message


def test_a_conditional_density_draws_its_classes_in_turn(flexgen: Command) -> None:
    few = ("conditional=true", "network=made", "network.pixels.hidden_features=[8]")
    kept = [word for word in TINY if not word.startswith(("network", "output", "data="))]
    run = open_run(flexgen("train", *kept, *few, "data=digits_static", "report=false"))
    assert run.sample(12).shape == (12, 1, 8, 8)
    x, y = run.data.split("test", 20, 0)
    of_class = run.model.log_likelihood(x, y)
    assert not torch.equal(of_class, run.model.log_likelihood(x, (y + 1) % 10))


def test_a_sweep_of_densities(flexgen: Command, tmp_path: Path) -> None:
    flexgen("train", "-m", *TINY, "network.pixels.num_layers=1,2", f"hydra.sweep.dir={tmp_path}/s")
    assert len(list((tmp_path / "s").glob("*/metrics.json"))) == 2
    assert "nll/samples" in (tmp_path / "s" / "table.csv").read_text()


def test_a_run_that_stops_early_ends_finished_with_its_best_weights(flexgen: Command) -> None:
    early = (
        *TINY, "callbacks=[progress,early_stopping,nll,samples,checkpoint]", "steps=40",
        "callbacks.early_stopping.metric=nll/samples", "callbacks.early_stopping.patience=2",
        "callbacks.early_stopping.min_change=200", "report=false",
    )  # fmt: skip
    run = flexgen("train", *early)  # the first value is the best, as no gain is large enough
    nll = rows(run, "nll/samples")
    assert len(nll) == 3
    assert nll[2] == nll[0] > nll[1]
    best, end = (load_checkpoint(run / "checkpoints" / f"step={step:08d}.ckpt") for step in (5, 15))
    for name, weight in best["state_dict"].items():
        assert torch.equal(weight, end["state_dict"][name])
    assert json.loads((run / "metrics.json").read_text())["values"]["nll/samples"] == nll[0]

    flexgen("resume", f"run={run}", "checkpoint=step=00000010.ckpt")
    again = load_checkpoint(run / "checkpoints" / "step=00000015.ckpt")
    for name, weight in end["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name])
    flexgen("resume", f"run={run}")
    assert rows(run, "nll/samples") == nll

    for key, told in (
        ("metric=nll/sample", "'nll/sample', and nothing is logged as that"),
        ("every=null", "no measurement is due before the end"),
    ):
        name = "nll" if key == "every=null" else "early_stopping"
        with pytest.raises(SystemExit) as stopped:
            flexgen("train", *early, f"callbacks.{name}.{key}", run_dir=name)
        assert told in str(stopped.value.code)
