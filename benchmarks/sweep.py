"""What a sweep costs beside its training: from the command to the first step, and an extra cell.

    python benchmarks/sweep.py [--rounds 3]

Each round starts `flexgen --help`, `import torch, pytorch_lightning` alone, a sweep of one cell and
one of four, in turn, each as a process of its own. The cells train an MLP on the ring of eight for
one generator step of some milliseconds, save it, and measure nothing; the sweep ends with its
table. Quoted are medians over the rounds of wall-clock and of CPU seconds: on a machine that is
busy otherwise only the CPU seconds mean something. The first step is dated by the sweep's first
`metrics.csv`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CELL = (
    "data=ring8", "latent_dim=2", "trainer=cpu", "threads=1", "steps=1", "report=false",
    "callbacks=[checkpoint]", "model.log_every=1",
)  # fmt: skip


def run(*words: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a Python process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.time() - started
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sweep(cells: int) -> tuple[float, float, float]:
    """Seconds to the first step, and wall-clock and CPU seconds of a sweep of so many cells."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = "seed=" + ",".join(map(str, range(cells)))
        started = time.time()
        wall, cpu = run(
            "-m", "flexgen", "train", "-m", *CELL, seeds, f"hydra.sweep.dir={folder}/sweep"
        )
        return (Path(folder) / "sweep/0/metrics.csv").stat().st_mtime - started, wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        help_wall, help_cpu = run("-m", "flexgen", "--help")
        import_wall, import_cpu = run("-c", "import torch, pytorch_lightning")
        first, one_wall, one_cpu = sweep(1)
        _, four_wall, four_cpu = sweep(4)
        for name, value in {
            "flexgen --help, wall": help_wall,
            "flexgen --help, CPU": help_cpu,
            "import torch, pytorch_lightning, wall": import_wall,
            "import torch, pytorch_lightning, CPU": import_cpu,
            "command to the first step, wall": first,
            "sweep of one cell, wall": one_wall,
            "sweep of one cell, CPU": one_cpu,
            "an extra cell, wall": (four_wall - one_wall) / 3,
            "an extra cell, CPU": (four_cpu - one_cpu) / 3,
        }.items():
            taken.setdefault(name, []).append(value)
    load = os.getloadavg()[0]
    print(f"{rounds} rounds, {os.cpu_count()} cores, load at the end {load:.1f}; seconds")
    for name, values in taken.items():
        low, high = min(values), max(values)
        print(f"{name:<40}{statistics.median(values):8.2f}   ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
