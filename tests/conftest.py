"""Shared fixtures: the command line in this process, in an empty folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Small tensors: a second thread costs more in waiting than it computes.
torch.set_num_threads(1)

CONF = Path(__file__).parents[1] / "conf"

SMALL = (
    "data=ring8",
    "data.num_train=640",
    "data.num_validation=200",
    "data.num_test=100",
    "data.batch_size=32",
    "latent_dim=2",
    "network.generator.hidden_features=[16]",
    "network.critic.hidden_features=[16]",
    "callbacks.reversal.n=64",
    "callbacks.reversal.options.steps=5",
    "callbacks.reversal.num_resamples=40",
    "callbacks.quality.n=64",
    "callbacks.samples.n=4",
    "callbacks.checkpoint.every=10",
    "callbacks.checkpoint.keep=null",
    "model.log_every=7",
    "trainer=cpu",
    "steps=30",
)
"""A run of seconds that does all that a long one does."""

REFIT = (
    "callbacks=[progress,samples,reversal,quality,refit,checkpoint]",
    "callbacks.refit.at=[20]",
    "callbacks.refit.n=100",
    "callbacks.refit.n_held_out=64",
    "callbacks.refit.sigma=0.2",
    "callbacks.refit.posterior={num_temperatures: 3, leapfrog_steps: 2}",
    "callbacks.refit.prior.steps=5",
    "callbacks.refit.prior.network.hidden_features=[16]",
    "callbacks.refit.prior.critic.hidden_features=[16]",
    "callbacks.refit.keep=always",
)


@pytest.fixture
def flexgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run a command as a user would, in an empty folder; returns where `run_dir` points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FLEXGEN_DATA", raising=False)

    def run(command: str, *words: str, run_dir: str | None = None) -> Path:
        from flexgen.cli import main

        where = tmp_path / (run_dir or "run")
        if command in ("train", "refit") and "-m" not in words:
            words = (*words, f"paths.run_dir={where}")
        main([command, *words])
        return where

    return run
