"""Draws figure 2 of the paper, and learning curves of table 1's rows, from finished runs.

F='python experiments/led/figures.py --out experiments/led/figures'
$F mixture multirun/…/0   # of led/mixture with a flow as prior; of several runs, a panel each
$F curves multirun/…      # rows of table 1, MLP

mixture: data, their projections E_x q(z|x) into the prior's space and E_x q(z₀|x) into its base
    space; under them what the model has there: p(x), p(z) and p(z₀).
curves: training loss of each row; NLL less that of the base row's run of the same seed, beside the
    difference in the paper's table (dashed). NLL as CSV as well.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.drawing import draw_figure
from flexgen.priors import Normal
from flexgen.report import RunFiles, find_runs
from flexgen.report.catalogue import PALETTE
from flexgen.runs.run import open_run
from flexgen.training import isolated_rng

POINTS = 10_000
SIDE = 150  # squares of a density map, each way
IMAGES = 50_000  # an epoch
Curves = dict[str, dict[int, dict[float, float]]]
"""Of each row and seed: the value at each epoch."""

PAPER = {
    "base": 90.78,
    "prior_0": 90.78,  # the base row again, its KL estimated
    "prior_4": 88.07,
    "prior_8": 87.47,
    "prior_12": 86.59,
    "posterior_4": 88.89,
    "posterior_8": 88.71,
    "posterior_12": 88.70,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    figures = {"mixture": draw_mixture, "curves": draw_curves}
    parser.add_argument("figure", choices=figures)
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG and CSV")
    asked = parser.parse_args()
    figures[asked.figure]([run for path in asked.paths for run in find_runs(path)], asked.out)


def draw_mixture(runs: list[Path], out: Path) -> None:
    """Figure 2: above the data in three spaces, below what the model has there."""

    def plot(figure: Any) -> None:
        panels = figure.subplots(2 * len(runs), 3, squeeze=False)
        for i, run in enumerate(runs):
            draw_spaces(panels[2 * i : 2 * i + 2], run)

    draw_figure(plot, out / "mixture.png", size=(7.2, 5 * len(runs)))


@torch.no_grad()
def draw_spaces(panels: Any, run: Path) -> None:
    """The six panels of one run."""
    opened = open_run(run)
    model, x = opened.model, opened.data.split("test", POINTS)[0]
    with model.evaluating(), isolated_rng(0):
        prior, base = model.prior(), Normal(2)()
        z = model.posterior(x).sample()
        decoded = model.likelihood(prior.sample((POINTS,)))
        spaces = (
            ("x", "data", x, lambda at: mixture_density(decoded, at)),
            ("z", "$E_x\\,q(z|x)$", z, lambda at: prior.log_prob(at).exp()),
            (
                "z_0",
                "$E_x\\,q(z_0|x)$",
                prior.transform.inverse(z)[0],
                lambda at: base.log_prob(at).exp(),
            ),
        )
        for (above, below), (name, title, points, density) in zip(panels.T, spaces, strict=True):
            reach = 1.15 * float(points.abs().quantile(0.999))
            line = torch.linspace(-reach, reach, SIDE)
            grid = torch.cartesian_prod(line, line)
            image = density(grid).view(SIDE, SIDE).T
            above.hist2d(*points.T.numpy(), bins=SIDE, range=[(-reach, reach)] * 2, cmap="magma")
            below.imshow(image, extent=[-reach, reach] * 2, origin="lower", cmap="magma")
            above.set_title(title, fontsize=9)
            below.set_title(f"$p({name})$", fontsize=9)
            for axes in (above, below):
                axes.set_aspect("equal")
                axes.tick_params(labelsize=6)
        panels[0, 0].set_ylabel(f"seed {opened.config['seed']}", fontsize=9)


def mixture_density(components: Any, at: Tensor) -> Tensor:
    """p(x) at each point, `(n,)`: the mean over p(x|z) of draws of z."""
    blocks = [components.log_prob(block[:, None]).exp().mean(1) for block in at.split(500)]
    return torch.cat(blocks)


def draw_curves(runs: list[Path], out: Path) -> None:
    """The training loss, and NLL less that of the base row, against epochs, over seeds."""
    loss: Curves = defaultdict(dict)
    nll: Curves = defaultdict(dict)
    for path in runs:
        run = RunFiles.load(path)
        row = run.name.removeprefix("led_table1_mlp_")
        for curves, metric in ((loss, "loss/generator"), (nll, "nll/samples")):
            curve = run.curves[metric]
            epochs = curve.counters["images_seen"] / IMAGES
            values = zip(epochs.tolist(), curve.values.tolist(), strict=True)
            curves[row][run.seed or 0] = dict(values)
    rows = [row for row in PAPER if row in nll]
    with (out / "nll.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["row", "seed", "epoch", "nll"])
        for row in rows:
            for seed, own in sorted(nll[row].items()):
                lines.writerows([row, seed, f"{epoch:g}", f"{v:.4f}"] for epoch, v in own.items())

    def plot(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for row, colour in zip(rows, PALETTE, strict=False):
            epochs, mean, std = over_seeds(list(loss[row].values()))
            left.plot(epochs, mean, color=colour, lw=1, label=row.replace("_", ", "))
            left.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
            if row != "base":
                gains = [
                    {epoch: v - nll["base"][seed][epoch] for epoch, v in own.items()}
                    for seed, own in nll[row].items()
                ]
                epochs, mean, std = over_seeds(gains)
                right.errorbar(epochs, mean, std, color=colour, marker="o", ms=3, capsize=3)
                right.axhline(PAPER[row] - PAPER["base"], color=colour, ls="--", lw=1)
        left.set(xlabel="epoch", ylabel="training loss, nats", ylim=(96, 125))
        right.set(xlabel="epoch", ylabel="NLL less the base row's, nats")
        right.axhline(0, color="#888888", lw=0.5)
        left.legend(fontsize=8)

    draw_figure(plot, out / "nll.png", size=(8.4, 3.6))


def over_seeds(seeds: list[dict[float, float]]) -> tuple[list[float], Any, Any]:
    """The epochs that every seed was measured at, mean and standard deviation there."""
    epochs = sorted(set.intersection(*(set(values) for values in seeds)))
    values = np.array([[own[epoch] for epoch in epochs] for own in seeds])
    return epochs, values.mean(0), values.std(0, ddof=1)


if __name__ == "__main__":
    main()
