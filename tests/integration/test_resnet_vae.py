"""A ResNet VAE with its own prior and IAF posteriors in a run: resumed, sampled, refitted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexgen.training import latest_checkpoint, load_checkpoint

WORDS = (
    "experiment=iaf/resnet_digits", "data.num_validation=40",
    "data.num_test=20", "data.batch_size=10", "latent_dim=32", "network.decoder.blocks=[2]",
    "network.decoder.code_channels=1", "network.decoder.channels=4",
    "posterior.flow.hidden_channels=[4]", "model.free_bits=0.1", "callbacks.samples.n=4",
    "callbacks.likelihood.n=20", "callbacks.likelihood.num_samples=4", "trainer=cpu",
    "report=false", "schedule=constant",  # a falling rate knows the last step
)  # fmt: skip

Run = Callable[..., Path]


def test_it_resumes_to_the_same_bits_and_is_measured_sampled_and_refitted(flexgen: Run) -> None:
    whole = flexgen("train", *WORDS, "steps=6", run_dir="whole")
    stopped = flexgen("train", *WORDS, "steps=3", run_dir="stopped")
    flexgen("resume", f"run={stopped}", "steps=6")
    one, other = (load_checkpoint(latest_checkpoint(run)) for run in (whole, stopped))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    values = json.loads((whole / "metrics.json").read_text())["values"]
    levels = [values[f"elbo/kl_level{level}"] for level in (1, 2)]
    assert sum(levels) == pytest.approx(values["elbo/kl"], rel=1e-4)
    assert {"nll/bits_per_dimension", "posterior/active_units_level2"} <= values.keys()
    flexgen("sample", f"run={whole}", "n=4")
    few = ("refit.n=40", "refit.n_held_out=20", "refit.keep=always", "more=1", "report=false")
    child = flexgen("refit", f"run={whole}", "prior=gaussian", *few, run_dir="child")
    assert json.loads((child / "metrics.json").read_text())["values"]["prior/stage"] == 1
