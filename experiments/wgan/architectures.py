"""Difficult architectures under four games: scores and a picture, from finished runs.

python experiments/wgan/architectures.py multirun/… --out experiments/wgan/figures

Gulrajani et al. 2017, the figure of difficult architectures, from runs of the experiments
conf/experiment/wgan/{baseline,mlp_generator,constant_filters,no_norm,tanh,gated,resnet101}.yaml.
Prints a row for each architecture and game, mean and standard deviation over its seeds, and CPU
milliseconds of a generator step with the critic's, timed anew; writes architectures.csv (a row a
run) and architectures.png (a row an architecture, a column a game, the first seed's samples, of the
same noise in all cells), by --name under another name.
"""

import argparse
import csv
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.utils import make_grid

from flexgen.contracts import Batch
from flexgen.drawing import draw_figure
from flexgen.models import Adversarial
from flexgen.objectives import critic_loss
from flexgen.report import find_runs
from flexgen.runs.run import open_run

ROWS = ("baseline", "mlp_generator", "constant_filters", "no_norm", "gated", "tanh", "resnet101")
GAMES = {"GAN": "GAN", "LSGAN": "LSGAN", "WGAN": "WGAN", "WGANGP": "WGAN-GP"}
SCORES = {"inception": "classifier score", "fid": "FID", "emd/samples": "EMD"}
PICTURED = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    parser.add_argument("--name", default="architectures", help="of both files (architectures)")
    asked = parser.parse_args()
    runs: dict[tuple[str, str], list[Path]] = defaultdict(list)
    rows = []
    for run in (run for path in asked.paths for run in find_runs(path)):
        config = open_run(run).config
        row = config["name"].removeprefix("wgan_")
        game = config["model"]["objective"]["_target_"].rpartition(".")[2]
        values = json.loads((run / "metrics.json").read_text())["values"]
        about = {
            "architecture": row,
            "game": game,
            "seed": config["seed"],
            "steps": config["steps"],
        }
        about |= {name: f"{values[name]:.5g}" for name in (*SCORES, "emd/floor")}
        rows.append(about | {"milliseconds": f"{1000 * cost(run):.4g}"})
        runs[row, game].append(run)
    for row in ROWS:
        for game in GAMES:
            mine = [r for r in rows if (r["architecture"], r["game"]) == (row, game)]
            spread = ", ".join(
                f"{about} {each.mean():.4g}"
                + (f" ± {each.std(ddof=1):.2g}" if len(each) > 1 else "")
                for name, about in {**SCORES, "milliseconds": "CPU ms a step"}.items()
                if len(each := np.array([float(r[name]) for r in mine]))
            )
            print(f"{row}, {game} (n = {len(mine)}): {spread}")
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / f"{asked.name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda r: [str(r[k]) for k in list(r)[:3]]))
    draw(runs, asked.out / f"{asked.name}.png")


def cost(path: Path, steps: int = 2) -> float:
    """CPU seconds of a generator step and the critic's that belong to it, on one batch."""
    run = open_run(path)
    model, size = run.model.train(), run.config["data"]["batch_size"]
    assert isinstance(model, Adversarial)
    batch = Batch(torch.rand(size, *run.config["data"]["shape"]))
    generator, critic = model.configure_optimizers()[0]
    for step in range(-1, steps):
        if step == 0:
            begin = time.process_time()
        for _ in range(model.critic_steps):
            with torch.no_grad():
                real, fake = model.real(batch), model.fake("critic", size, None)
            critic.zero_grad()
            critic_loss(model.objective, model.critic, real, fake).backward()
            critic.step()
        generator.zero_grad()
        model.generator_loss(batch).backward()
        generator.step()
    return (time.process_time() - begin) / steps


def samples(run: Path) -> torch.Tensor:
    """Samples of a trained run as one picture, `(height, width)` in [0, 1]."""
    x = open_run(run).sample(PICTURED)
    return make_grid(x / 2 + 0.5, nrow=8, padding=1, pad_value=1.0)[0]


def draw(runs: dict[tuple[str, str], list[Path]], path: Path) -> None:
    """Samples of each cell, a row an architecture and a column a game."""

    def plot(figure: Any) -> None:
        found = [row for row in ROWS if any((row, game) in runs for game in GAMES)]
        panels = figure.subplots(len(found), len(GAMES), squeeze=False)
        for line, row in zip(panels, found, strict=True):
            for axes, game in zip(line, GAMES, strict=True):
                axes.set_axis_off()
                axes.set_title(f"{row.replace('_', ' ')}, {GAMES[game]}", fontsize=8)
                if (row, game) in runs:
                    axes.imshow(samples(runs[row, game][0]), cmap="gray", vmin=0, vmax=1)

    draw_figure(plot, path, size=(12.0, 1.35 * len({row for row, _ in runs})))


if __name__ == "__main__":
    main()
