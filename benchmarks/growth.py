"""How reading runs grows: a run of many rows, and a folder of many runs.

    python benchmarks/growth.py [--rows 1000000] [--runs 500]

Builds them in a temporary folder and prints, for each command in a process of its own, its seconds,
its peak memory and the bytes of what it wrote.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from flexgen.files import write_text
from flexgen.metrics_table import COUNTERS, format_line

LOSSES = ("loss/critic", "loss/generator", "loss/penalty", "loss/drift")


def write_run(path: Path, rows: int, seed: int) -> Path:
    """A finished run: losses in each row, measurements in a hundred, pictures, a configuration."""
    path.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    with (path / "metrics.csv").open("wb") as file:
        file.write(format_line([*COUNTERS, *LOSSES, "pag/unit", "emd/samples"]))
        for i in range(1, rows + 1):
            row = draw.normal(size=len(LOSSES)).tolist()
            measured = (2.0 / i, 3.0 / i) if i % max(10, rows // 100) == 0 else ()
            file.write(format_line([6 * i, 5 * i, i, 320 * i, *row, *measured]))
    config: dict[str, Any] = {"name": "growth", "seed": seed, "steps": rows}
    config |= {f"part{i}": {f"key{j}": 0.1 * j for j in range(20)} for i in range(10)}
    write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    about = {"command": "train", "overrides": [f"model={'ab'[seed % 2]}", f"seed={seed}"]}
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T11:00:00+00:00"}
    about |= times | {"seed": seed, "parent": None}
    write_text(path / "provenance.json", json.dumps(about))
    for kind in ("samples", "aggregate_posterior"):
        (path / "images" / kind).mkdir(parents=True)
        pixels = draw.integers(0, 256, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(path / "images" / kind / f"step={rows:08}.png")
    return path


def measure(what: str, words: list[str], written: Path) -> None:
    """Run a command to its end and print what it took.

    Linux counts what this process held when it started the other, so it must hold little.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", "flexgen", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, size = time.perf_counter() - started, written.stat().st_size
    if process.returncode:
        raise SystemExit(f"{what} failed with status {process.returncode}")
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{what:32} {seconds:6.2f} s {memory / 1e6:6.0f} MB {size / 1e6:8.3f} MB written")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--runs", type=int, default=500, help="in the folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "long", asked.rows, 0)
        runs = Path(folder) / "runs"
        for seed in range(asked.runs):
            write_run(runs / str(seed), 100, seed)
        measure(f"report, {asked.rows:,} rows", ["report", str(run)], run / "report.html")
        measure(f"table, {asked.rows:,} rows", ["table", str(run)], run / "table.txt")
        measure(f"table, {asked.runs} runs", ["table", str(runs)], runs / "table.txt")
        measure(f"report, {asked.runs} runs", ["report", str(runs)], runs / "report.html")


if __name__ == "__main__":
    main()
