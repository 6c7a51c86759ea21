"""Draws the paper's figures 4 and 6 from finished runs, each with its numbers as CSV.

python experiments/flexible_prior/figures.py loss multirun/… --out experiments/flexible_prior
python experiments/flexible_prior/figures.py scatter multirun/… --out experiments/flexible_prior
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from flexgen.drawing import draw_figure
from flexgen.report import Table, table

GROUPS = ("network", "model")  # named by their value alone
QUALITY = {"inception": "classifier score", "fid": "FID"}
SCORES = {
    "pag/unit": "PAG (unit)",
    "pag/literal": "PAG (literal)",
    "pag/kl": "Gaussian KL",
    "reversal/error": "reversal error",
    "codes/cluster_ratio_tsne": "cluster ratio in the t-SNE plane",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", choices=["loss", "scatter"])
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    draw = {"loss": draw_loss, "scatter": draw_scatter}[asked.figure]
    draw(asked.paths, asked.out)


def draw_loss(paths: list[str], out: Path) -> None:
    """Mean reconstruction loss against steps, a curve for each random network (figure 6)."""
    found = table(paths, metrics=["reconstruction/*"])
    curves = {}
    for label, row in zip(labels(found), found.rows, strict=True):
        runs = [np.loadtxt(p / "loss.csv", delimiter=",", skiprows=1)[:, 1] for p in row.runs]
        curves[label] = np.stack(runs)
    mean_image = found.rows[0].cells["reconstruction/mean_image"].mean

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, runs in curves.items():
            axes.plot(runs.mean(0), label=label)
        axes.axhline(mean_image, color="#888888", ls=":", label="mean training image")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.set_xlabel("reversal steps")
        axes.set_ylabel("half squared error, mean over images")
        figure.legend(fontsize=7, loc="outside right upper")

    draw_figure(plot, out / "random_weights.png", size=(8.6, 4.2))
    with (out / "random_weights.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["generator", "seeds", "step", "mean", "std"])
        for label, runs in curves.items():
            for step in sorted({0, 1, 2, 5, 10, 20, 50, 100, 200, runs.shape[1] - 1}):
                at = runs[:, step]
                rows.writerow([label, len(at), step, f"{at.mean():.2f}", f"{at.std(ddof=1):.2f}"])


def draw_scatter(paths: list[str], out: Path) -> None:
    """Agreement scores against sample quality, a point for each model (figure 4)."""
    found = table(paths, metrics=[*SCORES, *QUALITY])
    done = [i for i, row in enumerate(found.rows) if row.runs]
    names = [labels(found)[i] for i in done]
    column = {m: np.array([found.rows[i].cells[m].mean for i in done]) for m in found.metrics}

    def plot(figure: Any) -> None:
        panels = figure.subplots(len(QUALITY), 2, squeeze=False)
        for line, (quality, about) in zip(panels, QUALITY.items(), strict=True):
            for axes, score in zip(line, ("pag/unit", "pag/literal"), strict=True):
                for game, colour in (("wgan_gp", "#0072B2"), ("gan", "#D55E00")):
                    mine = [name.startswith(f"{game},") for name in names]
                    axes.scatter(column[score][mine], column[quality][mine], c=colour, label=game)
                rho = spearmanr(column[score], column[quality]).statistic
                axes.set_title(f"Spearman {rho:+.2f}, n = {len(names)}", fontsize=9)
                axes.set_xscale("log" if score == "pag/unit" else "linear")
                axes.set_xlabel(SCORES[score])
                axes.set_ylabel(about)
                axes.tick_params(labelsize=8)
        panels[0][1].legend(fontsize=8, loc="upper right")

    draw_figure(plot, out / "sixteen_models.png", size=(7.6, 6.0))
    with (out / "sixteen_models.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["model", *found.metrics])
        for i, name in enumerate(names):
            rows.writerow([name, *(f"{column[m][i]:.4g}" for m in found.metrics)])
    for score, of in SCORES.items():
        for quality, about in QUALITY.items():
            test = spearmanr(column[score], column[quality])
            print(f"{of} against {about}: Spearman {test.statistic:+.2f}, p = {test.pvalue:.2g}")


def labels(found: Table) -> list[str]:
    """What tells the rows apart, in short."""
    return [
        ", ".join(
            value if key in GROUPS else f"{key.rpartition('.')[2]} {value}"
            for key, value in row.settings.items()
            if key != "experiment" and value != "default"
        )
        for row in found.rows
    ]


if __name__ == "__main__":
    main()
