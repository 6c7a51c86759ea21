"""Inverts unseen images under trained generators (Creswell & Bharath 2016, tables 2 and 3).

python experiments/inverting/invert.py runs/inverting_mnist/… --out experiments/inverting/figures

For each run, with and without the prior's constraint and with both norms, a batch of test images is
inverted for each seed, which picks the images and the starting codes (draws from the prior).
Writes inversions.csv (a row an inversion), curves.csv (error after 0, 1, 2, 5, … steps, first
seed), curves.png and inverted_<data>_<prior>.png (from top to bottom: images, then inversions
without constraint by norm="eval" and "batch", then both with it), and prints the table. Rows of
runs measured before are kept, so runs may be given one by one.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.drawing import draw_figure, draw_images
from flexgen.reversal import Reversal, reverse
from flexgen.runs.run import Run, open_run
from flexgen.training import isolated_rng

PUBLISHED = {
    ("mnist", "uniform", "none"): 0.027,
    ("mnist", "uniform", "clip"): 0.032,
    ("mnist", "normal", "none"): 0.042,
    ("mnist", "normal", "moments"): 0.044,
    ("omniglot_small", "uniform", "none"): 0.023,
    ("omniglot_small", "uniform", "clip"): 0.045,
    ("omniglot_small", "normal", "none"): 0.020,
    ("omniglot_small", "normal", "moments"): 0.020,
}
KEY = ("data", "prior", "constraint", "norm", "method", "lr", "steps", "split", "training", "seed")
SETTING = KEY[:9]
ITS_OWN = ("auto", "lbfgs")  # methods with starts, steps and a stopping rule of their own
PICTURED = 16


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--method", default="rmsprop", help="gd, rmsprop, adam, auto, …")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--norms", nargs="+", default=["eval", "batch"])
    parser.add_argument("--split", default="test", help="where the images come from (test)")
    parser.add_argument("--free", action="store_true", help="without the prior's constraint only")
    parser.add_argument("--no-curves", action="store_true", help="leave curves and pictures as is")
    asked = parser.parse_args()
    descent = {"lr": asked.lr, "steps": asked.steps}
    if asked.method in ITS_OWN:
        descent, asked.no_curves = {"lr": "its own", "steps": "its own"}, True
    for path in asked.runs:
        run, about = load_run(path)
        bound = "moments" if run.model.prior.current.support is None else "clip"
        rows, curves, shown = [], [], {}
        for constraint in ("none",) if asked.free else ("none", bound):
            for norm in asked.norms:
                how = {"constraint": constraint, "norm": norm, "method": asked.method, **descent}
                for seed in asked.seeds:
                    x = run.data.split(asked.split, asked.n, seed)[0].to(run.model.device)
                    row = {**about, **how, "split": asked.split, "seed": seed}
                    found = invert(run, x, seed, **how)
                    rows.append(row | errors(run, x, found))
                    print(", ".join(str(value) for value in rows[-1].values()), flush=True)
                    if seed != asked.seeds[0] or asked.no_curves:
                        continue
                    shown["images"], shown[f"{constraint}/{norm}"] = x, found.x_hat
                    for steps in grid(asked.steps):
                        early = invert(run, x, seed, **{**how, "steps": steps})
                        curves.append({**row, "after": steps, "mae": mae(early.x_hat, x)})
                    curves.append({**row, "after": asked.steps, "mae": mae(found.x_hat, x)})
        merge(asked.out / "inversions.csv", rows, KEY)
        if not asked.no_curves:
            merge(asked.out / "curves.csv", curves, (*KEY, "after"))
            columns = torch.cat([images[:PICTURED] for images in shown.values()])
            name = f"inverted_{about['data']}_{about['prior']}.png"
            draw_images(columns, run.data.range, asked.out / name, columns=PICTURED)
    if (asked.out / "curves.csv").is_file():
        draw_curves(read(asked.out / "curves.csv"), asked.out / "curves.png")
    print_table(read(asked.out / "inversions.csv"))


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What both scripts of this study ask for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=form)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of trained generators")
    parser.add_argument("--n", type=int, default=64, help="images in a batch (64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    return parser


def load_run(path: Path) -> tuple[Run, dict[str, Any]]:
    """A trained run, and what to call it in a table."""
    run = open_run(path)
    config = run.config
    prior = config["model"]["prior"]["_target_"].rpartition(".")[2].lower()
    about = {"data": config["data"]["name"], "prior": prior, "training": config["seed"]}
    return run, about


def invert(
    run: Run, x: Tensor, seed: int, *, constraint: str, method: str, **options: Any
) -> Reversal:
    """Algorithm 1 of the paper: cross-entropy, codes that start as draws from the prior.

    All images share one batch, as `norm="batch"` and the moments need. L-BFGS takes its starts from
    a bank of 2,048 draws of the prior, and its own number of steps.
    """
    prior = run.model.prior.current
    with isolated_rng(seed):
        if method in ITS_OWN:
            options = {"norm": options["norm"], "bank": prior().sample((2048,))}
        else:
            options |= {"init": prior().sample((len(x),)), "tolerance": 0}
    if constraint == "clip":
        options["bounds"] = prior.support
    return reverse(
        run.model.decoder, x, latent_shape=run.model.latent_dim, loss="bce", method=method,
        constraint=None if constraint == "none" else constraint, batch_size=len(x), seed=seed,
        **options,
    )  # fmt: skip


def mae(x_hat: Tensor, x: Tensor) -> float:
    """Mean absolute error of a pixel, over all images; pixels lie in [0, 1]."""
    return float((x_hat - x).abs().mean())


@torch.no_grad()
def errors(run: Run, x: Tensor, found: Reversal) -> dict[str, Any]:
    """Of an inversion: errors, that of the codes decoded in eval mode, and the codes' moments."""
    each = (found.x_hat - x).abs().flatten(1).mean(1)
    alone = run.model.decoder.eval()(found.z)
    numbers = {
        "mae": each.mean(), "mae_median": each.median(), "mae_worst_tenth": each.quantile(0.9),
        "mae_eval": (alone - x).abs().mean(), "nats": found.loss.mean(),
        "z_mean": found.z.mean(), "z_std": found.z.std(), "z_largest": found.z.abs().max(),
    }  # fmt: skip
    return {"n": len(x)} | {name: f"{float(value):.5g}" for name, value in numbers.items()}


def grid(steps: int) -> list[int]:
    """0, 1, 2, 5, 10, … below the number of steps."""
    return [0, *(s for e in range(5) for m in (1, 2, 5) if (s := m * 10**e) < steps)]


def merge(path: Path, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Write rows into a CSV file in place of those with the same key."""
    kept = {tuple(row[k] for k in key): row for row in (read(path) if path.is_file() else [])}
    kept |= {tuple(str(row[k]) for k in key): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(next(iter(kept.values()))), lineterminator="\n")
        table.writeheader()
        table.writerows(kept[k] for k in sorted(kept))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(rows: list[dict[str, str]], path: Path) -> None:
    """Error against steps: a panel for each data set and prior, a curve for each setting."""
    panels = sorted({(row["data"], row["prior"]) for row in rows})

    def plot(figure: Any) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (data, prior) in zip(axes, panels, strict=True):
            curves = defaultdict(list)
            for row in rows:
                if (row["data"], row["prior"]) == (data, prior) and row["training"] == "0":
                    name = f"{row['constraint'].replace('moments', 'regularised')}, {row['norm']}"
                    curves[name].append((int(row["after"]), float(row["mae"])))
            for name, points in sorted(curves.items()):
                line = "--" if name.endswith("batch") else "-"
                colour = "#0072B2" if name.startswith("none") else "#D55E00"
                panel.plot(*zip(*sorted(points), strict=True), line, color=colour, label=name)
            panel.set(title=f"{data}, {prior}", xlabel="steps")
            panel.set_xscale("symlog", linthresh=1)
            panel.legend(fontsize=7)
        axes[0].set_ylabel("mean absolute error of a pixel")

    draw_figure(plot, path, size=(3.2 * len(panels), 3.4))


def print_table(rows: list[dict[str, str]]) -> None:
    """Mean ± standard deviation over seeds for each run, beside what the paper printed."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[k] for k in SETTING)].append(row)
    for setting, group in sorted(groups.items()):
        value, alone = (np.array([float(row[k]) for row in group]) for k in ("mae", "mae_eval"))
        spread = f"± {value.std(ddof=1):.4f}" if len(value) > 1 else ""
        printed = PUBLISHED.get(setting[:3], "-") if "test" in setting else "-"
        print(
            f"{', '.join(setting)}: {value.mean():.4f} {spread} (batches {len(value)}; codes "
            f"decoded in eval mode {alone.mean():.4f}; paper {printed})"
        )


if __name__ == "__main__":
    main()
