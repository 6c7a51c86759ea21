"""`model=ae`, `wae` and `rae` through every command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexgen.runs.run import open_run
from flexgen.training import load_checkpoint

TINY = (
    "data=digits", "data.num_validation=150", "data.num_test=60", "latent_dim=4", "trainer=cpu",
    "steps=10", "network.encoder.hidden_features=[16]", "network.decoder.hidden_features=[16]",
    "callbacks.samples.every=null", "callbacks.checkpoint.keep=null",
    "callbacks.checkpoint.every=5", "callbacks.quality.n=100", "callbacks.quality.draws=1",
)  # fmt: skip

Command = Callable[..., Path]


def test_an_autoencoder_is_trained_refitted_and_drawn_from(flexgen: Command) -> None:
    run = flexgen("train", "model=ae", *TINY)
    assert {kind.name for kind in (run / "images").iterdir()} == {
        "samples", "reconstructions", "aggregate_posterior",
    }  # fmt: skip
    child = flexgen(
        "refit", f"run={run}", "prior=mixture", "prior.num_components=3", "more=2",
        "refit.n_held_out=100", run_dir="child",
    )  # fmt: skip
    values = json.loads((child / "metrics.json").read_text())["values"]
    assert values["refit/kept"] == 1
    assert values["refit/energy_after"] < values["refit/energy_before"]
    # Its codes are no draws of a posterior: no gain in log p(x) is known.
    assert "refit/gain" not in values
    opened = open_run(child)
    assert type(opened.model.prior.current).__name__ == "Mixture"
    flexgen("sample", f"run={child}", "n=6")
    drawn = load_file(child / "samples" / "step=00000012_seed=0_n=6.safetensors")["x"]
    assert torch.equal(drawn, opened.sample(6))
    flexgen("evaluate", f"run={child}")


@pytest.mark.parametrize(
    "words",
    [
        ("model=wae", "regulariser@model.regulariser=adversarial", "model.ema_decay=0.9"),
        ("model=rae", "regulariser@model.regulariser=spectral_norm", "model.ema_decay=0.9"),
    ],
    ids=["wae", "rae"],
)
def test_a_regulariser_resumes_to_the_bit(flexgen: Command, words: tuple[str, ...]) -> None:
    words = (*words, *TINY, "callbacks=[quality,checkpoint]", "report=false")
    words = tuple(word for word in words if not word.startswith("callbacks.samples"))
    whole = flexgen("train", *words, run_dir="whole")
    run = flexgen("train", *words, "steps=5", run_dir="cut")
    flexgen("resume", f"run={run}", "steps=10")
    one, other = (
        load_checkpoint(r / "checkpoints" / "step=00000010.ckpt")["state_dict"]
        for r in (whole, run)
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name
