"""What a refit gains in held-out −log p(x), by the generator's width.

    python experiments/demo/width.py multirun/demo/… --out experiments/demo

The runs differ in `network.generator.hidden_features` and seed, and are measured before the swap
and one step after it. Writes width.csv; of each seed the slope of the gain over log2 of the width
is taken, and the slopes are tested.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from flexgen.report import RunFiles, find_runs

sys.path.insert(0, str(Path(__file__).parents[1]))
from paired import tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV file")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    gains: dict[int, dict[int, float]] = defaultdict(dict)
    for run in [RunFiles.load(run) for path in asked.paths for run in find_runs(path)]:
        width = run.config["model"]["generator"]["hidden_features"][0]
        (swap,) = run.config["callbacks"]["refit"]["at"]
        before, after = (at(run, "nll/ais", step) for step in (swap, swap + 1))
        row = {"width": width, "seed": run.config["seed"], "before": before, "gain": after - before}
        for metric in ("pag/posterior", "own/pag_posterior"):
            row |= {f"{metric} before": at(run, metric, swap)}
            row |= {f"{metric} after": at(run, metric, swap + 1)}
        rows.append({name: round(value, 4) for name, value in row.items()})
        gains[row["seed"]][width] = after - before
    widths = sorted({row["width"] for row in rows})
    for width in widths:
        print(f"{width}: {tested([of[width] for of in gains.values() if width in of])}")
    whole = [of for of in gains.values() if len(of) == len(widths)]
    slopes = [np.polyfit(np.log2(widths), [of[w] for w in widths], 1)[0] for of in whole]
    print(f"gain over log2(width): {tested(slopes)}")
    with (asked.out / "width.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def at(run: RunFiles, metric: str, step: int) -> float:
    curve = run.curves[metric]
    return float(curve.values[list(curve.steps).index(step)])


if __name__ == "__main__":
    main()
