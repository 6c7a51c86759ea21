"""`model=vq_vae` and priors over maps through every command."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexgen.runs.run import open_run
from flexgen.training import load_checkpoint

TINY = (
    "model=vq_vae", "data=digits_static", "data.num_validation=200", "data.num_test=60",
    "latent_dim=16", "code_shape=[1,4,4]", "trainer=cpu", "steps=10",
    "network.encoder.channels=[8]", "network.decoder.channels=[8]",
    "network.encoder.code_channels=3", "model.codebook.num_vectors=8", "model.log_every=5",
    "callbacks.code_length.n=150", "callbacks.code_length.split=validation",
    "callbacks.code_length.every=5", "callbacks.samples.every=null",
    "callbacks.checkpoint.keep=null", "callbacks.checkpoint.every=5",
)  # fmt: skip
FIT = (
    "prior=pixelcnn", "prior.steps=40", "prior.network.channels=8", "prior.network.num_layers=2",
    "prior.lr=0.01", "refit.n=null", "refit.n_held_out=150",
)  # fmt: skip

Command = Callable[..., Path]


def rows(run: Path, name: str) -> list[float]:
    with open(run / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def states_agree(a: Path, b: Path, step: int) -> None:
    one, other = (load_checkpoint(r / "checkpoints" / f"step={step:08d}.ckpt") for r in (a, b))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], value), name


def test_a_vq_vae_is_trained_refitted_compared_and_drawn_from(
    flexgen: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = flexgen("train", *TINY)
    assert {kind.name for kind in (run / "images").iterdir()} == {
        "samples", "reconstructions", "aggregate_posterior",
    }  # fmt: skip
    length, nll = rows(run, "elbo/kl"), rows(run, "nll/samples")
    assert length == pytest.approx([16 * math.log(8)] * 2)
    assert nll[1] < nll[0]
    assert nll[1] == pytest.approx(length[1] + rows(run, "elbo/reconstruction")[1])
    assert 1 <= rows(run, "codebook/perplexity")[-1] <= 8
    assert len(rows(run, "codebook/batch_perplexity")) == 2
    saved = load_file(run / "nll" / "step=00000010.safetensors")
    assert saved["nll"].shape == saved["length"].shape == (150,)

    child = flexgen("refit", f"run={run}", *FIT, "more=2", "control=true", run_dir="child")
    values = json.loads((child / "metrics.json").read_text())["values"]
    assert values["refit/kept"] == 1
    assert values["refit/nll_before"] == pytest.approx(16 * math.log(8))
    assert values["refit/gain"] == pytest.approx(
        values["refit/nll_before"] - values["refit/nll_after"], rel=1e-4
    )  # one code of each datum
    assert rows(child, "elbo/kl")[-1] < length[1] - 5
    page = (child / "report.html").read_text()
    assert "NLL" in page
    assert "samples" in page
    told = capsys.readouterr().out
    assert "control" in told

    opened = open_run(child)
    grid = opened.model.prior.draw(30)
    assert set(grid.unique().tolist()) <= set(map(float, range(8)))
    flexgen("sample", f"run={child}", "n=6")
    drawn = load_file(child / "samples" / "step=00000012_seed=0_n=6.safetensors")["x"]
    assert torch.equal(drawn, opened.sample(6))
    flexgen("sample", f"run={child}", "n=6", "prior=categorical")
    flexgen("evaluate", f"run={child}")
    flexgen("report", str(child))
    flexgen(
        "compare", f"run={child}", "n=150", "seeds=2", "nll=true",
        "priors=own,base,categorical,pixelcnn(steps=40,network.channels=8)",
    )  # fmt: skip
    table = (child / "comparison" / "compare.csv").read_text()
    assert "own (PixelPrior)" in table
    assert "base (Categorical)" in table
    assert "nll/samples" in table


def test_a_vq_vae_and_its_refit_resume_to_the_bit(flexgen: Command) -> None:
    words = (
        *TINY, "callbacks=[code_length,refit_pixelcnn,checkpoint]", "callbacks.refit.at=[10]",
        "callbacks.refit.n=null", "callbacks.refit.n_held_out=100", "report=false",
        "callbacks.refit.prior.steps=20", "callbacks.refit.prior.network.channels=4",
        "model.codebook.restart=5",
    )  # fmt: skip
    words = tuple(word for word in words if not word.startswith("callbacks.samples"))
    whole = flexgen("train", *words, "steps=20", run_dir="whole")
    for first in (5, 10):
        run = flexgen("train", *words, f"steps={first}", run_dir=f"cut{first}")
        flexgen("resume", f"run={run}", "steps=20")
        states_agree(whole, run, 20)
        assert rows(run, "nll/samples")[-1] == rows(whole, "nll/samples")[-1]
    assert json.loads((whole / "metrics.json").read_text())["values"]["prior/stage"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("reverse",),
            "ReversalScore needs a differentiable picture .* its codes are names, or its",
        ),
        (("refit", "prior=realnvp"), "are names, whole numbers below 8, and a RealNVP prior is"),
        (("refit", "prior=normal"), "a Normal prior is over real numbers; use prior=categorical"),
        (("refit", "prior=pixelcnn", "code_shape=[1,4,5]"), r"event shape \(16,\) .* got \(20,\)"),
        (("refit", "prior=pixelcnn", "code_shape=null"), "`shape` must be a list of sizes"),
        (("refit", "prior=categorical", "refit.source=reversal"), "cannot be reversed; its codes"),
        (("sample", "prior=gaussian"), "and a Gaussian prior is over real numbers"),
        (("sample", "interpolate=linear"), "cannot be reversed; its codes are its encoder's"),
        (("sample", "arithmetic=true"), "cannot be reversed; its codes are its encoder's"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_of_names_is_refused_in_a_line(
    flexgen: Command, run: Path, words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        flexgen(words[0], f"run={run}", *words[1:], run_dir="other")
    message = str(stopped.value.code)
    assert re.search(told, message), message
    assert "\n" not in message


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flexgen.cli import main

    where = tmp_path_factory.mktemp("vq") / "run"
    kept = [word for word in TINY if not word.startswith("callbacks")]
    words = ("steps=2", "report=false", "callbacks=[checkpoint]", f"paths.run_dir={where}")
    main(["train", *kept, *words])
    return where


def test_other_models_refuse_what_is_of_names(flexgen: Command) -> None:
    with pytest.raises(SystemExit, match="a VAE are real numbers"):
        flexgen("train", "model=vae", "data=digits_static", "prior=categorical")
    with pytest.raises(SystemExit, match="needs codes that name vectors"):
        flexgen(
            "train", "model=vae", "data=digits_static", "callbacks=[code_length]", "steps=1",
            "latent_dim=3",
        )  # fmt: skip


def test_a_conditional_vq_vae_with_a_prior_of_each_class(flexgen: Command) -> None:
    words = (*TINY, "conditional=true", "report=false")
    run = flexgen("train", *words, "prior=per_class", "prior@prior.base=categorical")
    opened = open_run(run)
    assert opened.sample(12).shape == (12, 1, 8, 8)
    child = flexgen(
        "refit", f"run={run}", "prior=per_class", "prior@prior.base=categorical", "more=1",
        "refit.n=null", "refit.n_held_out=100", run_dir="child",
    )  # fmt: skip
    assert rows(child, "refit/gain")[-1] > 0


def test_a_vae_whose_code_is_a_map_learns_a_pixel_network_over_it(flexgen: Command) -> None:
    words = (
        "model=vae", "data=digits_static", "network=spatial", "network.encoder.code_channels=2",
        "network.encoder.channels=[8]", "network.decoder.channels=[8]", "latent_dim=32",
        "code_shape=[2,4,4]", "trainer=cpu", "steps=20", "data.num_validation=200",
        "callbacks.likelihood.n=60", "callbacks.likelihood.num_samples=4",
        "callbacks.likelihood.split=validation", "callbacks.samples.every=null",
    )  # fmt: skip
    run = flexgen("train", *words)
    child = flexgen(
        "refit", f"run={run}", "prior=pixelcnn_real", "prior.steps=40", "prior.network.channels=8",
        "refit.n=300", "refit.n_held_out=100", "refit.keep=always", "more=2", run_dir="child",
    )  # fmt: skip
    values = json.loads((child / "metrics.json").read_text())["values"]
    assert values["prior/stage"] == 1
    assert values["refit/nll_after"] == pytest.approx(values["refit/nll"], rel=0.2)
    assert math.isfinite(values["nll/samples"])
    flexgen("compare", f"run={child}", "n=100", "seeds=2", "priors=own,base,gaussian")
    flexgen("reverse", f"run={child}", "reverse.n=100", "reverse.options.steps=3")
    assert open_run(child).codes()["z"].shape == (100, 32)
