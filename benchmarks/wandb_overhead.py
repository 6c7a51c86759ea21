"""What the W&B logger adds to a run, offline; both sides in turn in one process.

    python benchmarks/wandb_overhead.py [--steps 200] [--rounds 5]

A job is a training on digits, as `flexgen train` does it, with the CSV logger alone and with
W&B beside it: a row of losses every 10 generator steps, a sample grid every 50. Quoted are medians
over the rounds, and of the rounds' differences; the first job of each side is left out, and with
it W&B's import and the start of its service, which is printed apart.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}

import flexgen


def job(logger: str, steps: int) -> tuple[float, float]:
    """Seconds of wall clock and of this process's CPU."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        flexgen.train(flexgen.compose([
            f"logger={logger}", f"steps={steps}", "trainer=cpu", "threads=1",
            "callbacks=[progress,samples,checkpoint]", "callbacks.samples.every=50",
            "model.log_every=10", "report=false", f"paths.run_dir={Path(folder) / 'run'}",
        ]))  # fmt: skip
        return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="generator steps a job")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    job("csv", asked.steps)
    first, _ = job("wandb", asked.steps)
    taken = {side: [] for side in ("csv", "wandb")}
    for _ in range(asked.rounds):
        for side, times in taken.items():
            times.append(job(side, asked.steps))
    print(f"{asked.rounds} rounds of jobs of {asked.steps} generator steps")
    for i, what in enumerate(("wall clock", "CPU of the process")):
        csv, wandb = ([times[i] for times in taken[side]] for side in ("csv", "wandb"))
        more = [b - a for a, b in zip(csv, wandb, strict=True)]
        print(
            f"{what}: CSV {statistics.median(csv):.2f} s, W&B {statistics.median(wandb):.2f} s, "
            f"more {statistics.median(more):.2f} s [{min(more):.2f}, {max(more):.2f}]"
        )
    print(f"the first W&B job of a process: {first:.2f} s")


if __name__ == "__main__":
    main()
