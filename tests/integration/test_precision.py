"""Mixed precision, and two processes on the CPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL


def test_bf16_mixed_trains_with_float32_weights(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *SMALL, "trainer.precision=bf16-mixed", "report=false")
    weights = load_checkpoint(latest_checkpoint(run))["state_dict"]
    plain = flexgen("train", *SMALL, "report=false", run_dir="plain")
    exact = load_checkpoint(latest_checkpoint(plain))["state_dict"]
    name = next(name for name in weights if name.startswith("generator") and "weight" in name)
    assert weights[name].dtype == torch.float32
    assert not torch.equal(weights[name], exact[name])
    torch.testing.assert_close(weights[name], exact[name], atol=0.05, rtol=0.1)


def test_two_processes_train_one_model(flexgen: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "two"
    words = [
        *SMALL,
        *REFIT,
        "prior=masked",
        "trainer=ddp_cpu",
        "report=false",
        f"paths.run_dir={run}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "flexgen", "train", *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    final = json.loads((run / "metrics.json").read_text())
    assert final["counters"]["batches"] == 150
    assert final["counters"]["images_seen"] == 2 * 150 * 32
    assert final["values"]["prior/stage"] == 1
    assert {"pag/unit", "emd/samples"} <= final["values"].keys()
    ranks = load_checkpoint(latest_checkpoint(run))["flexgen"]["rng"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["torch"], ranks[1]["torch"])  # each draws codes of its own
    with pytest.raises(SystemExit, match=r"written by 2 processes.*trainer.devices=2"):
        flexgen("resume", f"run={run}", "steps=40", "trainer.devices=1", "trainer.strategy=auto")
