"""Kills a sweep at random moments, types its command again, and compares the bits of every cell.

    python benchmarks/sweep_faults.py [--kills 20] [--seed 0]

A grid of two priors and three seeds of the run of `faults.py` is left alone once. Then the same
command is killed with SIGKILL at random moments and typed again with the same `hydra.sweep.dir`,
three kills a sweep, until it ends. Equal bits means what it means in `faults.py`.

Prints how many kills there were, how many of them hit a cell in training, and how many cells ended
with equal bits; the exit status is 1 if one did not.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from faults import WORDS, differences, end_of, in_child

GRID = ("prior=normal,uniform", "seed=0,1,2")
CELLS, KILLS_A_SWEEP = 6, 3


def enter(sweep: Path, delay: float | None = None) -> int:
    """Type the command; be killed `delay` seconds after its start."""

    def prepare() -> None:
        if delay is not None:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    words = ["train", "-m", *WORDS, *GRID, f"hydra.sweep.dir={sweep}"]
    return in_child(words, sweep.with_suffix(".log"), prepare)


def in_training(sweep: Path) -> int:
    """Cells that were killed: they say that they run."""
    states = [json.loads(path.read_text())["state"] for path in sweep.glob("*/cell.json")]
    return states.count("running")


def survive(kills: int, seed: int, say: Callable[[str], None] = print) -> int:
    """Kill sweeps, print what became of them, and return how many cells ended otherwise."""
    draw, done, hit, cells, failed = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FLEXGEN_CACHE"] = str(folder / "cache")
        started = time.perf_counter()
        if enter(folder / "alone") != 0:
            raise RuntimeError(f"the sweep left alone failed: {(folder / 'alone.log').read_text()}")
        took = time.perf_counter() - started
        number = 0
        while done < kills:
            sweep, number = folder / str(number), number + 1
            for _ in range(min(KILLS_A_SWEEP, kills - done)):
                if enter(sweep, draw.random() * took / 2) == -signal.SIGKILL:
                    done += 1
                    hit += in_training(sweep)
            if (status := enter(sweep)) != 0:
                say(f"sweep {number} ended with status {status}")
            for cell in range(CELLS):
                cells += 1
                found = differences(end_of(folder / "alone" / str(cell)), end_of(sweep / str(cell)))
                if found:
                    failed += 1
                    say(f"  differs: cell {cell} of sweep {number}: {'; '.join(found)[:300]}")
    say(f"seed {seed}: {done} kills of {number} sweeps of {CELLS} cells, {hit} of them in a cell")
    say(f"{cells - failed} of {cells} cells ended with the same bits")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(bool(survive(arguments.kills, arguments.seed)))
