"""Priors that are fitted to codes, as a refit of a run; one that learns with its generator."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL

Run = Callable[..., Path]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(latest_checkpoint(run))["state_dict"]
    return state


def test_a_refit_with_each_prior_that_is_fitted_to_codes(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    told = {
        "gaussian": {"refit/nll_train"},
        "mixture": {"refit/nll_train", "refit/components"},
        "kernel_density": {"refit/nll_left_out", "refit/bandwidth"},
        "empirical": {"refit/bandwidth"},
        "learnable_mixture": {"refit/nll"},
    }
    for prior, names in told.items():
        child = flexgen(
            "refit", f"run={run}", f"prior={prior}", "more=3", "refit.keep=always",
            "refit.source=reversal",
            "report=false", run_dir=prior,
        )  # fmt: skip
        values = json.loads((child / "metrics.json").read_text())["values"]
        assert values["prior/stage"] == 1
        assert names <= values.keys()
        assert values["refit/energy_after"] < values["refit/energy_before"], prior
    flexgen("sample", f"run={run.parent / 'empirical'}", "n=4")
    # A fit that cannot be had ends in one line with the remedy.
    with pytest.raises(SystemExit, match=r"num_components 900, got 640.*num_components=640"):
        flexgen(
            "refit", f"run={run}", "prior=mixture", "prior.num_components=900", "more=3",
            "refit.source=reversal", "report=false", run_dir="child",
        )  # fmt: skip


def test_a_mixture_learns_with_the_generator_and_resumes_to_the_same_bits(flexgen: Run) -> None:
    words = (*SMALL, "prior=learnable_mixture", "prior.num_components=8", "report=false")
    short = flexgen("train", *words, "steps=10", run_dir="short")
    start = weights(short)
    whole = weights(flexgen("train", *words, run_dir="whole"))
    for name in ("loc", "log_scale"):
        moved = whole[f"prior.stages.0.{name}"] - start[f"prior.stages.0.{name}"]
        assert (moved.abs() > 1e-4).all(), name
    flexgen("resume", f"run={short}", "steps=30")
    resumed = weights(short)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


@pytest.mark.slow
def test_two_processes_share_fitted_codes_and_learned_means(tmp_path: Path) -> None:
    """Each process draws from the buffer that the first filled; the means stay the same in both."""
    (tmp_path / "seen.py").write_text(
        "import pytorch_lightning as pl, torch\n"
        "class Seen(pl.Callback):\n"
        "    def on_train_end(self, trainer, model):\n"
        "        prior = model.prior\n"
        "        torch.save((prior.state_dict(), prior.stages[1]().sample((400,)), prior.in_use),\n"
        f"                   f'{tmp_path}/rank{{trainer.global_rank}}.pt')\n"
    )
    words = [word for word in REFIT if not word.startswith("callbacks.refit.prior")]
    done = subprocess.run(
        [
            sys.executable, "-m", "flexgen", "train", *SMALL, *words, "trainer=ddp_cpu",
            "prior=learnable_mixture", "prior@callbacks.refit.prior=empirical",
            "+callbacks.seen._target_=seen.Seen", "report=false", "steps=21",
            f"paths.run_dir={tmp_path / 'run'}",
        ],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (first, codes, in_use), (second, other, also) = (
        torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)
    )
    assert in_use == also == 1
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(codes, other)
    kept = set(map(tuple, first["stages.1.codes"][: int(first["stages.1.count"])].tolist()))
    assert len(kept) == 100
    assert all(set(map(tuple, drawn.tolist())) <= kept for drawn in (codes, other))
