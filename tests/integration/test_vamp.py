"""Priors made of a VAE's posteriors, on the command line: trained, resumed, refitted, compared."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import SMALL
from tests.integration.test_resume import same

Run = Callable[..., Path]

VAE = (
    "model=vae",
    "data=ring8",
    "data.num_train=640",
    "data.num_validation=200",
    "data.num_test=100",
    "data.batch_size=32",
    "latent_dim=2",
    "likelihood=gaussian",
    "network.encoder.hidden_features=[16]",
    "network.decoder.hidden_features=[16]",
    "callbacks=[progress,likelihood,checkpoint]",
    "callbacks.likelihood.n=20",
    "callbacks.likelihood.num_samples=2",
    "trainer=cpu",
    "report=false",
)


def test_pseudo_inputs_learn_and_resume_to_the_same_bits(flexgen: Run) -> None:
    words = (*VAE, "prior=vamp", "prior.num_components=8", "prior.weighted=true")
    short = flexgen("train", *words, "steps=10", run_dir="short")
    whole = flexgen("train", *words, "steps=30", run_dir="whole")
    start, end = (load_checkpoint(latest_checkpoint(run)) for run in (short, whole))
    for name in ("free", "logits"):
        key = f"prior.stages.0.{name}"
        assert ((end["state_dict"][key] - start["state_dict"][key]).abs() > 1e-5).all(), name
    assert not [key for key in end["state_dict"] if key.startswith("prior") and "encoder" in key]
    flexgen("resume", f"run={short}", "steps=30")
    resumed = load_checkpoint(latest_checkpoint(short))
    for part in ("state_dict", "optimizer_states", "flexgen"):
        assert same(resumed[part], end[part]) == []


def test_a_trained_vae_is_refitted_sampled_and_compared(flexgen: Run) -> None:
    run = flexgen("train", *VAE, "steps=20")
    for prior, learned in (("vamp", "refit/steps"), ("mixture_of_posteriors", "refit/nll")):
        child = flexgen(
            "refit", f"run={run}", f"prior={prior}", "prior.num_components=16", "more=3",
            "refit.n=200", "refit.n_held_out=64", "refit.keep=always", "report=false",
            run_dir=prior,
        )  # fmt: skip
        values = json.loads((child / "metrics.json").read_text())["values"]
        assert values["prior/stage"] == 1
        assert learned in values
        weights = load_checkpoint(latest_checkpoint(child))["state_dict"]
        inputs = weights["prior.stages.1." + ("free" if prior == "vamp" else "data")]
        assert inputs.shape == (16, 2)
        assert inputs.unique(dim=0).shape == (16, 2), "they start at different data"
        flexgen("sample", f"run={child}", "n=4")
    flexgen("sample", f"run={run}", "prior=vamp", "prior.num_components=16", "n=4", "n_fit=100")
    flexgen(
        "compare", f"run={run}", "seeds=2", "n=50", "n_fit=100",
        "priors=own,vamp(num_components=16),mixture_of_posteriors(num_components=16)",
    )  # fmt: skip


def test_what_cannot_be_is_refused_in_one_line(flexgen: Run) -> None:
    with pytest.raises(SystemExit, match=r"Vamp prior.*use posterior=diagonal"):
        flexgen("train", *VAE, "prior=vamp", "posterior=planar", "steps=1", run_dir="planar")
    with pytest.raises(SystemExit, match=r"set `prior.num_components=640`"):
        flexgen("train", *VAE, "prior=vamp", "prior.num_components=641", "steps=1", run_dir="few")
    gan = flexgen("train", *SMALL, "steps=3", "report=false", run_dir="gan")
    with pytest.raises(SystemExit, match=r"VAE's posteriors.*use prior=mixture"):
        flexgen("refit", f"run={gan}", "prior=vamp", "more=3", "report=false", run_dir="child")
