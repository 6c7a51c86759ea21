"""Pictures of VAEs with codes of few and of many numbers, from finished runs.

python experiments/iaf/dimensions.py multirun/… --out experiments/iaf/figures

The runs are of `experiment=iaf/one_level data=mnist_static latent_dim=2,5,10,20`. Writes
samples_by_dimension.png, means of data of draws from the prior for each size, and of the run with
two numbers manifold.png: means of data on a grid of codes that are the prior's quantiles.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import make_grid

from flexgen.drawing import draw_figure, draw_images
from flexgen.report import find_runs
from flexgen.runs.run import Run, open_run

SIDE = 20  # of the grid of codes
SAMPLES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNGs")
    asked = parser.parse_args()
    runs = [open_run(path) for folder in asked.paths for path in find_runs(folder)]
    runs.sort(key=lambda run: int(run.config["latent_dim"]))
    asked.out.mkdir(parents=True, exist_ok=True)
    draw_samples(runs, asked.out / "samples_by_dimension.png")
    for run in runs:
        if run.config["latent_dim"] == 2:
            x = run.latent.decode(quantiles(SIDE))
            draw_images(x, (0.0, 1.0), asked.out / "manifold.png", columns=SIDE)


def quantiles(side: int) -> torch.Tensor:
    """Codes `(side², 2)` whose numbers are quantiles of N(0, 1), at the middles of equal parts."""
    line = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    return torch.cartesian_prod(line, line)


def draw_samples(runs: list[Run], path: Path) -> None:
    """Means of data of prior draws, a panel a run."""

    def plot(figure: Any) -> None:
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, run in zip(panels, runs, strict=True):
            torch.manual_seed(0)
            picture = make_grid(run.latent.sample(SAMPLES), nrow=8, padding=1)[0]
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"d = {run.config['latent_dim']}", fontsize=8)
            axes.set_axis_off()

    draw_figure(plot, path, size=(3.0 * len(runs), 3.2))


if __name__ == "__main__":
    main()
