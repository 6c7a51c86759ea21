"""Draws the paper's figures 4 and 6 from finished runs, each with its numbers as CSV.

python experiments/flexible_prior/figures.py loss multirun/… --out experiments/flexible_prior
python experiments/flexible_prior/figures.py scatter multirun/… --out experiments/flexible_prior
python experiments/flexible_prior/figures.py ranks multirun/… --out experiments/flexible_prior

ranks: of models with several seeds each, Spearman's coefficient of each score with quality within a
    seed, a mean over seeds; of all models, and without those that draw one grey blot (classifier
    score below 1.5).
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from flexgen.drawing import draw_figure
from flexgen.report import Table, table

sys.path.insert(0, str(Path(__file__).parents[1]))
from paired import tested

GROUPS = ("network", "model")  # named by their value alone
QUALITY = {"inception": "classifier score", "fid": "FID"}
BLOT = 1.5  # classifier score below which a model draws one image
SCORES = {
    "pag/unit": "PAG (unit)",
    "pag/literal": "PAG (literal)",
    "pag/kl": "Gaussian KL",
    "reversal/error": "reversal error",
    "codes/cluster_ratio_tsne": "cluster ratio in the t-SNE plane",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", choices=["loss", "scatter", "ranks"])
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    draw = {"loss": draw_loss, "scatter": draw_scatter, "ranks": rank_models}[asked.figure]
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


def rank_models(paths: list[str], out: Path) -> None:
    """Spearman's coefficient of each score with quality, seed by seed."""
    scores = [*(s for s in SCORES if not s.startswith("codes/")), "pag/posterior", "nll/ais"]
    found = table(paths, metrics=[*scores, "own/pag_posterior", "nll/ais_gap", *QUALITY])
    shared = set.intersection(*(set(row.settings.items()) for row in found.rows))
    models: dict[int, list[dict[str, Any]]] = {}
    for row in found.rows:
        own = {k.rpartition(".")[2]: v for k, v in row.settings.items() if (k, v) not in shared}
        for i, seed in enumerate(row.seeds):
            values = {m: row.cells[m].values[i] for m in found.metrics}
            models.setdefault(seed, []).append({**own, "seed": seed, **values})
    for kind, least in (("all", 0.0), ("without blots", BLOT)):
        kept = {s: [m for m in of if m["inception"] >= least] for s, of in models.items()}
        print(kind, {seed: len(of) for seed, of in kept.items()})
        for score in scores:
            for quality, about in QUALITY.items():
                rho = [
                    spearmanr([m[score] for m in of], [m[quality] for m in of]).statistic
                    for of in kept.values()
                ]
                each = ", ".join(f"{r:+.2f}" for r in rho)
                print(f"{score} against {about}: {each}: {tested(rho)}")
    with (out / "sixteen_ranks.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        rows = [row for of in models.values() for row in of]
        writer.writerow(list(rows[0]))
        for row in rows:
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in row.values()])


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
