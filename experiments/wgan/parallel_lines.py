"""Two parallel lines: Wasserstein distance and Jensen-Shannon divergence as one moves away.

python experiments/wgan/parallel_lines.py --out experiments/wgan/figures

P is uniform on {0} x [0, 1], P_θ on {θ} x [0, 1]. Then W = |θ|, and JS = log 2 for θ ≠ 0 and 0 at
θ = 0 (Arjovsky et al. 2017, example 1), where JS is the mean of the two divergences to the mixture;
their sum, as it is printed at times, would be 2 log 2. Beside the closed forms:

* W: the exact earth mover's distance of two independent samples;
* JS: of two histograms with square bins, and the bound that a trained discriminator gives.

Prints every value, and writes parallel_lines.csv and parallel_lines.png.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexgen.drawing import draw_figure
from flexgen.metrics import earth_mover_distance
from flexgen.networks import MLPCritic
from flexgen.objectives import GAN

SHIFTS = (-1.0, -0.5, -0.25, -0.1, -0.01, 0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
BATCH = 256
MEASURES = {
    "emd": "W, samples",
    "js_histogram": "JS, histograms",
    "js_discriminator": "JS, discriminator",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=1000, help="points in a sample (1000)")
    parser.add_argument("--steps", type=int, default=1000, help="of the discriminator (1000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    rows = []
    for seed in asked.seeds:
        for shift in SHIFTS:
            rows.append(
                {"seed": seed, "theta": shift, **measure(shift, seed, asked.n, asked.steps)}
            )
            print(", ".join(f"{k} {v:.5g}" for k, v in rows[-1].items()), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "parallel_lines.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({k: f"{v:.5g}" for k, v in row.items()} for row in rows)
    draw(rows, asked.out / "parallel_lines.png")


def measure(shift: float, seed: int, n: int, steps: int) -> dict[str, float]:
    """W and JS at one θ, exact and from samples."""
    torch.manual_seed(seed)
    w, js = closed_form(shift)
    here, there = line(0.0, n), line(shift, n)
    return {
        "w": w,
        "emd": float(earth_mover_distance(here, there)),
        "js": js,
        "js_histogram": histogram_divergence(line(0.0, 100 * n), line(shift, 100 * n), bin=0.05),
        "js_discriminator": discriminator_bound(shift, steps),
    }


def closed_form(shift: float) -> tuple[float, float]:
    """W and JS (nats) between the lines at 0 and at `shift`."""
    return abs(shift), math.log(2) if shift else 0.0


def line(shift: float, n: int) -> Tensor:
    """Points `(n, 2)` of the line at `shift`, drawn from the global generator."""
    return torch.stack([torch.full((n,), shift), torch.rand(n)], 1)


def histogram_divergence(a: Tensor, b: Tensor, bin: float) -> float:
    """JS of two point sets in the plane, counted in squares of side `bin`, in nats."""
    # The middle of a bin, not its edge, lies at 0.
    squares = torch.cat([a, b]).div(bin).round().unique(dim=0, return_inverse=True)[1]
    p, q = (squares[half].bincount(minlength=int(squares.max()) + 1) / len(a)
            for half in (slice(0, len(a)), slice(len(a), None)))  # fmt: skip
    middle = (p + q) / 2
    return float(sum(torch.xlogy(r, r) - torch.xlogy(r, middle) for r in (p, q)).sum() / 2)


def discriminator_bound(shift: float, steps: int) -> float:
    """JS ≥ log 2 − half the log-loss of a discriminator, trained here, on held-out points; nats."""
    critic: nn.Module = MLPCritic([2], hidden_features=[64, 64])
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    loss_of = GAN().critic

    def loss(n: int) -> Tensor:
        return loss_of(critic(line(0.0, n)), critic(line(shift, n)))

    for _ in range(steps):
        optimizer.zero_grad()
        loss(BATCH).backward()
        optimizer.step()
    with torch.no_grad():
        return math.log(2) - float(loss(100_000)) / 2


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Both distances against θ: closed form as a line, measured as points with their spread."""
    found: dict[str, dict[float, list[float]]] = {m: defaultdict(list) for m in MEASURES}
    for row in rows:
        for name in MEASURES:
            found[name][row["theta"]].append(row[name])
    theta = np.array(SHIFTS)

    def plot(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(theta, abs(theta), color="#888888", label="|θ|")
        right.plot([-1, 1], [math.log(2)] * 2, color="#888888", label="log 2 for θ ≠ 0")
        right.plot([0], [0], "o", mfc="none", color="#888888", label="0 at θ = 0")
        colours = "#0072B2", "#D55E00", "#009E73"
        styles = zip((left, right, right), MEASURES, "osx", colours, strict=True)
        for axes, name, marker, colour in styles:
            values = np.array([found[name][shift] for shift in SHIFTS])
            spread = values.std(1, ddof=1) if values.shape[1] > 1 else None
            axes.errorbar(
                theta, values.mean(1), spread, fmt=marker, ms=5, color=colour, label=MEASURES[name]
            )
        left.set(title="Wasserstein distance", xlabel="θ")
        right.set(title="Jensen-Shannon divergence, nats", xlabel="θ")
        for axes in (left, right):
            axes.legend(fontsize=8)

    draw_figure(plot, path, size=(7.6, 3.4))


if __name__ == "__main__":
    main()
