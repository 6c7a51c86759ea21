"""Several processes: one model, other codes, shared measurements, one set of files, same bits.

Two processes do all runs of `ranks.py` in turn; the tests look at what they left.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flexgen.cli import main
from flexgen.training import latest_checkpoint, load_checkpoint
from tests.conftest import REFIT, SMALL
from tests.integration.ranks import RUNS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*torchrun, "-m", "tests.integration.ranks", str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "FLEXGEN_CACHE": str(folder / "cache")},
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(timeout=550)
        finally:
            process.terminate()
            process.wait()
    assert code == 0, (folder / "log").read_text()[-2000:]
    return folder


def notes(folder: Path, run: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{run}.{rank}.pt") for rank in range(2)]


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("run", RUNS)
def test_weights_averages_and_statistics_are_the_same_bits(folder: Path, run: str) -> None:
    zero, one = (note["state"] for note in notes(folder, run))
    saved = load_checkpoint(latest_checkpoint(folder / run))["state_dict"]
    assert different(zero, one) == []
    assert different(zero, saved) == []


@pytest.mark.parametrize("run", [run for run in RUNS if run not in ("vae", "density", "vq_vae")])
def test_each_process_draws_codes_of_its_own(folder: Path, run: str) -> None:
    zero, one = (note["codes"] for note in notes(folder, run))
    assert zero.shape == one.shape
    assert not torch.isin(zero, one).any()
    ranks = load_checkpoint(latest_checkpoint(folder / run))["flexgen"]["rng"]
    assert not torch.equal(ranks[0]["torch"], ranks[1]["torch"])


def test_steps_and_images_are_counted_over_all_processes(folder: Path) -> None:
    counters = json.loads((folder / "wgan" / "metrics.json").read_text())["counters"]
    assert counters["batches"] == 60
    assert counters["images_seen"] == 2 * 60 * 32


@pytest.mark.parametrize("run", ["gan", "vae", "density", "vq_vae"])
def test_measurements_are_those_of_one_process(
    folder: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAG, EMD, modes and NLL by two processes, and of their checkpoint by one: the same bits."""
    monkeypatch.setenv("FLEXGEN_CACHE", str(folder / "cache"))
    unreversed = run in ("density", "vq_vae")
    saved = folder / run / ("nll" if unreversed else "codes") / "step=00000030.safetensors"
    together = json.loads((folder / run / "metrics.json").read_text())["values"]
    measured = load_file(saved)
    main(["evaluate", f"run={folder / run}"])
    alone = json.loads((folder / run / "evaluation.json").read_text())["values"]
    names = [] if unreversed else ["pag/unit", "emd/samples", "modes/captured"]
    assert {*names, *(["nll/samples"] if run != "gan" else [])} <= alone.keys()
    assert {name: together[name] for name in alone} == alone
    assert different(measured, load_file(saved)) == []


def test_reversal_is_shared_and_one_process_fits(folder: Path) -> None:
    zero, one = notes(folder, "gan")
    # Refit and score each rehearse by two images. Then in batches of 16: 100 training and 64
    # held-out data for the refit; 64 for the score, as many again in the space above the new prior,
    # and 64 samples.
    assert zero["reversed"] == [2, 2, 52, 32, 32, 32, 32]
    assert one["reversed"] == [2, 2, 48, 32, 32, 32, 32]
    assert zero["fits"] == 1
    assert "fits" not in one
    assert json.loads((folder / "gan" / "metrics.json").read_text())["values"]["prior/stage"] == 1


def test_files_are_those_of_one_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXGEN_CACHE", str(tmp_path / "cache"))
    alone = tmp_path / "alone"
    words = [word for word in RUNS["wgan"] if word != "trainer=ddp_cpu"]
    main(["train", *words, "trainer=cpu", f"paths.run_dir={alone}"])
    files = [
        sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (alone, folder / "wgan")
    ]
    assert files[0] == files[1]


def test_measuring_does_not_change_training(folder: Path) -> None:
    """Batch norm and a prior that draws by score: the draws depend on the running statistics."""
    plain, measured = (notes(folder, run)[0]["state"] for run in ("normed", "measured"))
    assert different(plain, measured) == []


def test_one_process_is_asked_to_stop_and_all_resume_with_the_same_bits(folder: Path) -> None:
    undisturbed = load_checkpoint(latest_checkpoint(folder / "normed"))
    resumed = load_checkpoint(latest_checkpoint(folder / "stopped"))
    assert [note["exit"] for note in notes(folder, "stopped")] == [130, 130]
    assert different(undisturbed["state_dict"], resumed["state_dict"]) == []
    assert undisturbed["flexgen"]["counters"] == resumed["flexgen"]["counters"]
    for a, b in zip(undisturbed["flexgen"]["rng"], resumed["flexgen"]["rng"], strict=True):
        assert torch.equal(a["torch"], b["torch"])
    metrics = [(folder / run / "metrics.csv").read_text() for run in ("normed", "stopped")]
    assert metrics[0] == metrics[1]


def test_another_number_of_processes_is_refused(folder: Path) -> None:
    words = ("steps=40", "trainer.devices=1", "trainer.strategy=auto")
    with pytest.raises(SystemExit, match=r"written by 2 processes.*trainer.devices=2"):
        main(["resume", f"run={folder / 'wgan'}", *words])


def test_a_loss_that_is_no_number_in_one_process_stops_all(folder: Path) -> None:
    """It was the last loss before the check: no gradient carried it to the other process."""
    ends = [note["exit"] for note in notes(folder, "spoilt")]
    assert ends[0] == ends[1]
    assert "loss/generator is nan at generator step 30" in ends[0]
    assert latest_checkpoint(folder / "spoilt").name == "step=00000020.ckpt"


def test_the_command_starts_its_processes(flexgen: Callable[..., Path], tmp_path: Path) -> None:
    words = [*SMALL, *REFIT, "trainer=ddp_cpu", "report=false", f"paths.run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "flexgen", "train", *words],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    final = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert final["counters"]["images_seen"] == 2 * 150 * 32
    assert final["values"]["prior/stage"] == 1
