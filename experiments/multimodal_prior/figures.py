"""Draws figures 2, 3, 4 and 6 of the paper from finished runs, with their numbers as CSV.

F='python experiments/multimodal_prior/figures.py --out experiments/multimodal_prior/figures'
$F maps multirun/…
$F curves multirun/…
$F generation multirun/…
$F rates multirun/…
$F classes multirun/…
$F islands multirun/…

maps: a column a seed; samples and codes of the constant prior, of the constant one masked at
    generation only, of the masked and of the weighted one (figures 2 and 3).
curves: earth mover's distance against generator steps, mean and standard deviation over seeds.
generation: runs with the constant prior, measured once more with draws masked and weighted, at each
    of their checkpoints.
rates: earth mover's distance against the masking rate, a panel an experiment (figure 4).
islands: connected parts of what a mask keeps of the codes' square, of each run with the constant or
    the masked prior.
classes: the classes of 2,000 samples of each MNIST run by FlexGen's own classifier (figure 6).
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from flexgen.drawing import draw_figure
from flexgen.metrics import ClassBalance, load_or_train_classifier
from flexgen.priors import Masked, Staged, Weighted
from flexgen.report import RunFiles, find_runs, table
from flexgen.report.catalogue import PALETTE
from flexgen.runs.run import Run, open_run
from flexgen.training import isolated_rng

POINTS = 20_000
CLASSIFIED = 2000  # as in figure 6
GRID = 400  # points a side of the codes' square
MEASURED = (
    "emd/samples",
    "emd/unmasked",
    "modes/captured",
    "modes/high_quality",
    "modes/total_variation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    figures = {
        "maps": draw_maps,
        "curves": draw_curves,
        "generation": measure_generation,
        "rates": draw_rates,
        "classes": draw_classes,
        "islands": count_islands,
    }
    parser.add_argument("figure", choices=figures)
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG and CSV")
    asked = parser.parse_args()
    figures[asked.figure]([run for path in asked.paths for run in find_runs(path)], asked.out)


def short_name(run: Path) -> str:
    """The run's name without the study's."""
    return RunFiles.load(run).name.removeprefix("multimodal_prior_")


def load(run: Path, checkpoint: str | None = None) -> tuple[Run, str, int]:
    """A trained run, the name of its prior and its seed."""
    opened = open_run(run, checkpoint=checkpoint)
    name = type(opened.model.prior.current).__name__.lower()
    return opened, "constant" if name == "uniform" else name, opened.config["seed"]


def draw_maps(runs: list[Path], out: Path) -> None:
    """Heat maps of samples and of codes, a row a kind of prior and a column a seed."""
    maps: dict[str, dict[int, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for run in runs:
        opened, prior, seed = load(run)
        model = opened.model
        maps[prior][seed] = draws(opened, model.prior.current)
        if prior == "constant":
            masked = Masked(model.prior.current)
            model.bind(masked)
            maps["constant, masked\nat generation"][seed] = draws(opened, masked)
    for part, name in enumerate(("codes", "samples")):

        def plot(figure: Any, part: int = part) -> None:
            seeds = sorted({seed for cells in maps.values() for seed in cells})
            panels = figure.subplots(len(maps), len(seeds), squeeze=False)
            for line, (kind, cells) in zip(panels, maps.items(), strict=True):
                line[0].set_ylabel(kind, fontsize=8)
                for axes, seed in zip(line, seeds, strict=True):
                    axes.hist2d(
                        *cells[seed][part].T.numpy(),
                        bins=(50, 100)[part],
                        range=[(-1, 1)] * 2,
                        norm="log",
                        cmap="magma",
                    )
                    axes.set(xticks=[], yticks=[], aspect="equal", facecolor="black")
            for axes, seed in zip(panels[0], seeds, strict=True):
                axes.set_title(f"seed {seed}", fontsize=8)

        size = (1.7 * len(next(iter(maps.values()))) + 0.4, 1.7 * len(maps) + 0.2)
        draw_figure(plot, out / f"{name}_{short_name(runs[0])}.png", size=size)


def draws(run: Run, prior: Any) -> tuple[Tensor, Tensor]:
    """Codes of a prior and the generator's data for them, `(n, 2)` each."""
    with isolated_rng(0):
        z = prior().sample((POINTS,))
    return z, run.decode(z)


def count_islands(runs: list[Path], out: Path) -> None:
    """Parts of [−1, 1]² that a mask keeps, joined by edges, of at least a hundredth of its area."""
    rows = []
    line = (torch.arange(GRID) + 0.5) / GRID * 2 - 1
    square = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    for run in runs:
        opened, prior, seed = load(run)
        if prior not in ("constant", "masked"):
            continue
        with torch.no_grad():
            scores = opened.model.score(square)
        kept = scores > scores.quantile(1 - Masked(opened.model.prior.current).rate)
        parts, _ = ndimage.label(kept.view(GRID, GRID).numpy())
        areas = np.bincount(parts.ravel())[1:] / GRID**2
        rows.append({"prior": prior, "seed": seed, "islands": int((areas >= 0.01).sum())})
        print(rows[-1], [f"{area:.3f}" for area in sorted(areas, reverse=True) if area >= 0.001])
    with (out / f"islands_{short_name(runs[0])}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(runs: list[Path], out: Path) -> None:
    """Earth mover's distance against generator steps, a line a kind of prior."""
    curves: dict[str, list[Any]] = defaultdict(list)
    for path in runs:
        run = RunFiles.load(path)
        curves[run.config["model"]["prior"]["_target_"].rpartition(".")[2].lower()].append(run)

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        for (prior, own), colour in zip(curves.items(), PALETTE, strict=False):
            steps = own[0].curves["emd/samples"].counters["generator_steps"]
            values = np.stack([run.curves["emd/samples"].values for run in own])
            mean, std = values.mean(0), values.std(0, ddof=1)
            axes.plot(steps, mean, color=colour, label="constant" if prior == "uniform" else prior)
            axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
        axes.axhline(run.final["emd/floor"], color="#888888", ls=":", label="floor")
        axes.set(xlabel="generator steps", ylabel="EMD", ylim=(0, None))
        axes.legend(fontsize=8)

    draw_figure(plot, out / f"curves_{short_name(runs[0])}.png", size=(5.4, 3.6))


def measure_generation(runs: list[Path], out: Path) -> None:
    """What masking and weighting make of runs that were trained with the constant prior."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        for checkpoint in RunFiles.load(run).checkpoints.values():
            opened, prior, seed = load(run, str(checkpoint))
            if prior != "constant":
                break
            base, quality = opened.model.prior.current, opened.measurements["quality"]
            for kind, changed in (
                ("masked 0.5", Masked(base, 0.5)),
                ("masked 0.7", Masked(base, 0.7)),
                ("weighted", Weighted(base)),
            ):
                opened.model.bind(changed)
                opened.model.prior = Staged([changed])
                values = quality.run(opened.model, opened.data, run)
                row = {"generation": kind, "seed": seed}
                row["step"] = opened.model.counters.generator_steps
                rows.append(row | {metric: round(values[metric], 4) for metric in MEASURED})
    with (out / f"generation_{short_name(runs[0])}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for kind in dict.fromkeys(row["generation"] for row in rows):
        for metric in MEASURED:
            by_seed = defaultdict(list)
            for row in rows:
                if row["generation"] == kind:
                    by_seed[row["seed"]].append(row[metric])
            means = np.array([np.mean(values) for values in by_seed.values()])
            print(
                f"{kind}, {metric}: {means.mean():.4f} ± {means.std(ddof=1):.4f} (n={len(means)})"
            )


def draw_rates(runs: list[Path], out: Path) -> None:
    """Earth mover's distance at the end against the masking rate."""
    found = table(runs, metrics=["emd/samples", "emd/unmasked", "emd/floor", "modes/high_quality"])

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        rows = sorted(found.rows, key=lambda row: float(row.settings["prior.rate"]))
        rates = [float(row.settings["prior.rate"]) for row in rows]
        for (metric, label), colour in zip(
            {"emd/samples": "masked", "emd/unmasked": "the base"}.items(), PALETTE, strict=False
        ):
            cells = [row.cells[metric] for row in rows]
            means, stds = [cell.mean for cell in cells], [cell.std for cell in cells]
            axes.errorbar(rates, means, stds, color=colour, marker="o", capsize=3, label=label)
        floor = found.rows[0].cells["emd/floor"].mean
        axes.axhline(floor, color="#888888", ls=":", label="floor")
        axes.set(xlabel="masking rate r", ylabel="EMD", ylim=(0, None))
        axes.legend(fontsize=8)

    draw_figure(plot, out / f"rates_{short_name(runs[0])}.png", size=(5.4, 3.6))
    (out / f"rates_{short_name(runs[0])}.csv").write_text(found.csv())


def draw_classes(runs: list[Path], out: Path) -> None:
    """Shares of the classes among samples, a panel a kind of prior, and their total variation."""
    shares: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for run in runs:
        opened, prior, seed = load(run)
        data = opened.data
        x, y = data.split("train", None, 0)
        classifier = load_or_train_classifier(
            data.name,
            x,
            y,
            *data.split("validation", None, 0),
            data.num_classes,
            opened.callbacks["quality"].cache_dir,
        )
        wanted = y.bincount(minlength=data.num_classes) / len(y)
        balance = ClassBalance(classifier)
        with isolated_rng(0):
            balance.update(opened.model.sample(CLASSIFIED))
        shares[prior][seed] = balance.shares()
    rows: list[list[Any]] = []
    for prior, by_seed in shares.items():
        for seed, share in sorted(by_seed.items()):
            even = 0.5 * (share - 0.1).abs().sum()
            real = 0.5 * (share - wanted).abs().sum()
            rows.append([prior, seed, f"{even:.4f}", f"{real:.4f}", *(f"{s:.4f}" for s in share)])
    name = short_name(runs[0])
    with (out / f"classes_{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prior", "seed", "to_uniform", "to_data", *range(len(wanted))])
        writer.writerows(rows)
    for prior, by_seed in shares.items():
        own = np.array([[float(v) for v in row[2:4]] for row in rows if row[0] == prior])
        mean, std = own.mean(0), own.std(0, ddof=1) if len(own) > 1 else np.full(2, np.nan)
        print(
            f"{prior}: total variation to uniform {mean[0]:.3f} ± {std[0]:.3f}, "
            f"to the data's shares {mean[1]:.3f} ± {std[1]:.3f}, {len(by_seed)} seeds"
        )

    def plot(figure: Any) -> None:
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
        for axes, (prior, by_seed) in zip(panels, shares.items(), strict=True):
            all_shares = torch.stack(list(by_seed.values()))
            places = range(all_shares.shape[1])
            axes.bar(places, all_shares.mean(0), color=PALETTE[0], alpha=0.6)
            for share in all_shares:
                axes.plot(places, share, "o", color=PALETTE[1], ms=2.5)
            axes.step(places, wanted, where="mid", color="black", lw=1, label="data")
            axes.set(title=prior, xlabel="digit", xticks=list(places))
        panels[0].set_ylabel("share of samples")
        panels[0].legend(fontsize=8)

    draw_figure(plot, out / f"classes_{name}.png", size=(3.2 * len(shares), 2.8))


if __name__ == "__main__":
    main()
