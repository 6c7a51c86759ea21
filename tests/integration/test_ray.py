"""A sweep on a local Ray cluster; Ray needs an environment of its own: `make test-ray`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexgen.files import try_lock
from tests.integration.test_resume import same, state
from tests.integration.test_sweeps import TINY, Run, cells, wait_for

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = "hydra/launcher=ray"


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flexgen", "train", *words], start_new_session=True
    )


def wait_until_free(cell: Path) -> None:
    """Until the worker that was at it is dead: Ray's node ends it when its driver is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with (cell / "cell.lock").open("a") as lock:
            if try_lock(lock):
                return
        time.sleep(0.1)
    raise AssertionError(f"a worker is still at {cell}")


def test_a_sweep_on_ray_is_entered_again_with_the_same_bits(flexgen: Run) -> None:
    words = ("-m", *TINY, "steps=150", "seed=0,1")
    flexgen("train", *words, "hydra.sweep.dir=undisturbed")

    process = start(*words, RAY, "hydra.sweep.dir=killed")
    wait_for(lambda: list(Path("killed/0/checkpoints").glob("*.ckpt")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "finished" not in cells("killed").values()

    for n in "01":
        wait_until_free(Path("killed") / n)
    assert start(*words, RAY, "hydra.sweep.dir=killed").wait(300) == 0
    assert cells("killed") == {"0": "finished", "1": "finished"}
    for n in "01":
        assert same(state(Path("killed") / n), state(Path("undisturbed") / n)) == []


def test_a_cell_that_fails_on_ray_is_told_and_stops_no_other(flexgen: Run) -> None:
    words = ("-m", *TINY, "steps=5", "model.critic_steps=1,0", RAY, "hydra.sweep.dir=sweep")
    assert start(*words).wait(300) == 1
    assert cells("sweep") == {"0": "finished", "1": "failed"}
