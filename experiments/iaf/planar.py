"""Planar flows fitted to four energies in the plane, by length of the flow.

python experiments/iaf/planar.py --out experiments/iaf/figures

q is a diagonal Gaussian that learns, carried through K planar steps, and p ∝ exp(−U) with U one of
U1 to U4 (Rezende & Mohamed 2015, table 1). Minimised is E_q[log q + β U], β rising from 0.01 to 1
over the first half of the steps (their eq. 20, on another scale); reported is KL(q ‖ p) with the
normaliser from a grid.

exp(−U2) to exp(−U4) are periodic or constant in z1, so they have no normaliser. Here each U has
soft walls at z1 = ±4, the edges of the paper's pictures.

Prints every value, and writes planar.csv and planar.png.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from flexgen.distributions import DiagonalNormal
from flexgen.drawing import draw_figure
from flexgen.flows import Planar

LENGTHS = (2, 8, 32)
WALL, WALL_WIDTH = 4.0, 0.2
FIRST_WEIGHT = 0.01
FRESH = 1000  # seeds of the draws that a fit is measured by, beside those that it was fitted by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of each fit (3000)")
    parser.add_argument("--batch", type=int, default=100, help="draws of q a step (100)")
    parser.add_argument("--n", type=int, default=20_000, help="draws that a KL is of (20000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    rows, pictures = [], {}
    for length in LENGTHS:
        begin = time.process_time()
        fits = Fits(length, asked.seeds)
        fit(fits, asked.seeds, asked.steps, asked.batch)
        seconds = time.process_time() - begin
        found, pictures[length] = measure(fits, asked.seeds, asked.n)
        rows += [{"length": length, **row, "cpu_seconds": seconds} for row in found]
        for row in rows[-len(found) :]:
            print(", ".join(f"{k} {v}" for k, v in written(row).items()), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "planar.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(map(written, rows))
    draw(pictures, asked.out / "planar.png")


def written(row: dict[str, Any]) -> dict[str, str]:
    return {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}


@torch.no_grad()
def measure(fits: "Fits", seeds: list[int], n: int) -> tuple[list[dict[str, Any]], Tensor]:
    """KL(q ‖ p) of each fit by n draws, nats; and the first seed's draws, `(energies, n, 2)`."""
    z, log_q = fits(noise(seeds, n, generators([FRESH + seed for seed in seeds])))
    rows = []
    for i, (name, energy) in enumerate(ENERGIES.items()):
        log_z = log_normaliser(energy)
        for j, seed in enumerate(seeds):
            terms = log_q[i, j] + energy(z[i, j]) + log_z
            spread = float(terms.std()) / math.sqrt(n)
            rows.append({"energy": name, "seed": seed, "kl": float(terms.mean()), "error": spread})
    return rows, z[:, 0]


def bump(distance: Tensor, width: float) -> Tensor:
    """log exp(−½ (distance/width)²)."""
    return -0.5 * (distance / width).square()


def wave(z: Tensor) -> Tensor:
    """z2 less w1 = sin(2π z1 / 4)."""
    return z[..., 1] - (math.pi / 2 * z[..., 0]).sin()


def two_moons(z: Tensor) -> Tensor:
    sides = torch.logaddexp(bump(z[..., 0] - 2, 0.6), bump(z[..., 0] + 2, 0.6))
    return -bump(z.norm(dim=-1) - 2, 0.4) - sides


def sinusoid(z: Tensor) -> Tensor:
    return -bump(wave(z), 0.4)


def split_sinusoid(z: Tensor) -> Tensor:
    w2 = 3 * bump(z[..., 0] - 1, 0.6).exp()
    return -torch.logaddexp(bump(wave(z), 0.35), bump(wave(z) + w2, 0.35))


def forked_sinusoid(z: Tensor) -> Tensor:
    w3 = 3 * ((z[..., 0] - 1) / 0.3).sigmoid()
    return -torch.logaddexp(bump(wave(z), 0.4), bump(wave(z) + w3, 0.35))


def walled(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: energy(z) - bump(relu(z[..., 0].abs() - WALL), WALL_WIDTH)


ENERGIES = {
    "U1": walled(two_moons),
    "U2": walled(sinusoid),
    "U3": walled(split_sinusoid),
    "U4": walled(forked_sinusoid),
}


def log_normaliser(
    energy: Callable[[Tensor], Tensor], edge: float = 8.0, points: int = 800
) -> float:
    """log ∫ exp(−U) dz by sums over a grid of [−edge, edge]²."""
    line = torch.linspace(-edge, edge, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    return float((-energy(grid)).flatten().logsumexp(0) + 2 * (line[1] - line[0]).log())


class Fits(nn.Module):
    """One q for each energy and seed, of equal length, computed together.

    The steps' parameters have batch dimensions, `(energies, seeds, 1, K, 5)`; each fit is as if it
    were alone.
    """

    def __init__(self, num_layers: int, seeds: list[int]) -> None:
        super().__init__()
        starts = []
        for seed in seeds:
            torch.manual_seed(seed)
            starts.append(
                torch.stack([Planar(2, num_layers=num_layers).free.detach() for _ in ENERGIES])
            )
        self.flow = Planar(2, num_layers=num_layers)
        self.flow.free = nn.Parameter(torch.stack(starts, 1)[:, :, None])
        self.loc = nn.Parameter(torch.zeros(len(ENERGIES), len(seeds), 1, 2))
        self.log_scale = nn.Parameter(torch.zeros_like(self.loc))

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Noise `(energies, seeds, n, 2)` to draws and their log-densities."""
        base = DiagonalNormal(self.loc, self.log_scale.exp())
        z0 = base.loc + base.scale * eps
        z, ladj = self.flow(z0)
        return z, base.log_prob(z0) - ladj


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(seeds: list[int], n: int, of: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(len(ENERGIES), n, 2, generator=g) for g in of], 1)


def fit(fits: Fits, seeds: list[int], steps: int, batch: int) -> None:
    """Minimise E_q[log q + β U] for all fits; their sum, as no two share a parameter."""
    optimizer = torch.optim.Adam(fits.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = generators(seeds)
    for step in range(steps):
        weight = min(1.0, FIRST_WEIGHT + 2 * step / steps)
        z, log_q = fits(noise(seeds, batch, draws))
        energies = torch.stack([u(part) for u, part in zip(ENERGIES.values(), z, strict=True)])
        optimizer.zero_grad()
        (log_q + weight * energies).mean(-1).sum().backward()
        optimizer.step()
        schedule.step()


def draw(pictures: dict[int, Tensor], path: Path) -> None:
    """exp(−U), and the draws of the first seed's q at each length, on [−4, 4]²."""
    line = torch.linspace(-4, 4, 200)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)

    def plot(figure: Any) -> None:
        axes = figure.subplots(len(ENERGIES), 1 + len(pictures))
        for i, (name, energy) in enumerate(ENERGIES.items()):
            axes[i, 0].imshow((-energy(grid)).exp(), origin="lower", extent=(-4, 4, -4, 4))
            axes[i, 0].set_ylabel(name)
            for axis, (length, z) in zip(axes[i, 1:], pictures.items(), strict=True):
                axis.hist2d(*z[i].T.numpy(), bins=100, range=[[-4, 4], [-4, 4]])
                axis.set_aspect("equal")
                if i == 0:
                    axis.set_title(f"K = {length}")
        axes[0, 0].set_title("exp(−U)")
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])

    draw_figure(plot, path, size=(6.4, 6.6))


if __name__ == "__main__":
    main()
