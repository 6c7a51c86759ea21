"""What the levels of VAEs hold, from finished runs, and how codes collapse with depth.

    python experiments/iaf/levels.py multirun/… --name mnist_levels --out experiments/iaf/figures

A line a run, in NAME.csv: NLL by importance sampling, bits per dimension, bound, and of each level
the KL and the numbers in use. Prints mean ± standard error over the seeds of each setting. Of runs
whose encoders differ in their hidden layers it draws collapse.png: numbers in use against depth.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flexgen.drawing import draw_figure
from flexgen.report import find_runs

SETTINGS = ("data", "levels", "numbers", "posterior", "free_bits", "warmup", "layers")
VALUES = (
    "nll/samples", "nll/bits_per_dimension", "elbo/bound", "elbo/kl", "posterior/active_units",
    *(f"elbo/kl_level{level}" for level in (1, 2, 3)),
    *(f"posterior/active_units_level{level}" for level in (1, 2, 3)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--name", default="levels", help="of the CSV file (levels)")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV and PNG")
    asked = parser.parse_args()
    rows = [row_of(run) for folder in asked.paths for run in find_runs(folder)]
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / f"{asked.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*SETTINGS, "seed", *VALUES], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for setting in dict.fromkeys(setting_of(row) for row in rows):
        print(", ".join(setting), summary([row for row in rows if setting_of(row) == setting]))
    deep = [row for row in rows if row["layers"] != "maps"]
    if len({row["layers"] for row in deep}) > 1:
        draw_figure(lambda figure: collapse(figure, deep), asked.out / "collapse.png", size=(5, 3))


def row_of(run: Path) -> dict[str, str]:
    """Settings, seed and last values of one run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    values = json.loads((run / "metrics.json").read_text())["values"]
    model, posterior = config["model"], config["model"]["posterior"]
    encoder = posterior["encoder"]
    levels = model["prior"].get("levels") or encoder.get("blocks") or [config["latent_dim"]]
    kind = posterior["_target_"].rsplit(".", 1)[1] + (" with IAF" if posterior.get("flow") else "")
    layers = encoder.get("hidden_features")
    return {
        "data": config["data"]["name"],
        "levels": "+".join(map(str, levels)),
        "numbers": str(config["latent_dim"]),
        "posterior": kind,
        "free_bits": str(model["free_bits"]),
        "warmup": str(model["kl_warmup"]),
        "layers": "maps" if layers is None else str(len(layers)),
        "seed": str(config["seed"]),
        **{name: f"{values[name]:.4f}" for name in VALUES if name in values},
    }


def setting_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in SETTINGS)


def summary(rows: list[dict[str, str]]) -> str:
    """Mean ± standard error over seeds of each value."""
    cells = [f"n = {len(rows)}"]
    for name in VALUES:
        if name in rows[0]:
            values = np.array([float(row[name]) for row in rows])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells.append(f"{name} {values.mean():.4g} ± {error:.2g}")
    return ", ".join(cells)


def collapse(figure: Any, rows: list[dict[str, str]]) -> None:
    """Numbers in use against hidden layers of encoder and decoder: a dot a run, a line the mean."""
    axes = figure.add_subplot()
    depths = sorted({int(row["layers"]) for row in rows})
    used = [
        [float(r["posterior/active_units"]) for r in rows if r["layers"] == str(depth)]
        for depth in depths
    ]
    axes.plot(depths, [np.mean(values) for values in used], color="#0072B2")
    for depth, values in zip(depths, used, strict=True):
        axes.plot([depth] * len(values), values, "o", color="#999999", ms=4)
    axes.set_xticks(depths)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hidden layers of encoder and decoder")
    axes.set_ylabel("numbers of the code in use")


if __name__ == "__main__":
    main()
