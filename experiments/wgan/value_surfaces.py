"""Value surfaces of WGAN critics trained to optimality: clipped weights against a penalty.

python experiments/wgan/value_surfaces.py --out experiments/wgan/figures

Gulrajani et al. 2017, figure 1: the 'generator' is held fixed at the real data plus Gaussian noise
of unit variance, x̃ = x + ε, and only the critic is trained. Toys are divided by their standard
deviation (root mean square over both coordinates), so that the noise is as wide as the data
whatever a toy's scale. A penalty is taken on the lines from x to its own x̃.

Of each critic, on fresh points of such lines:

* unexplained: share of D's variance that the best linear, or quadratic, function of x leaves over;
* gradient: mean of ‖∇D‖, and its standard deviation over the mean, which is 0 if D rises with one
  slope everywhere; the largest, which is taken over a grid on the plotted square too.

On fresh samples of n points:

* higher moments: (E D(x) − E D(y)) / (E D(x) − E D(x̃)), with y normal of the data's mean and
  covariance, which a critic of the first two moments cannot tell from data;
* transport: (E D(x) − E D(x̃)) / max ‖∇D‖ as a share of the exact earth mover's distance, 1 for the
  perfect critic. (The distance of two samples of data, its floor, is printed beside it.)

Prints every value, and writes surfaces.csv and surfaces.png (first seed).
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import cholesky

from flexgen.data import Grid, Ring, SwissRoll
from flexgen.drawing import draw_figure
from flexgen.metrics import earth_mover_distance
from flexgen.networks import MLPCritic
from flexgen.objectives import WGAN, WGANGP, gradient_penalty

TOYS = {"8 Gaussians": Ring(), "25 Gaussians": Grid(), "Swiss roll": SwissRoll()}
GAMES = {
    "weight clipping": WGAN(),
    "penalty, λ = 10": WGANGP(),
    "penalty, λ = 0.1": WGANGP(penalty_weight=0.1),
}
HIDDEN = (128, 128, 128)
BATCH = 256
MANY = 100_000  # points behind a mean of D
HALF_WIDTH = 3.0  # of the plotted square, in standard deviations of the data
TICKS = 121


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--n", type=int, default=2000, help="points a set to measure with (2000)")
    parser.add_argument("--steps", type=int, default=2000, help="of the critic (2000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    rows, surfaces = [], {}
    for seed in asked.seeds:
        for toy in asked.toys:
            for game in GAMES:
                about = {"toy": toy, "game": game, "seed": seed}
                start = time.perf_counter()
                source = Source(toy, seed)
                critic = train(source, GAMES[game], asked.steps)
                values = measure(critic, source, asked.n)
                rows.append(about | {name: f"{v:.4g}" for name, v in values.items()})
                print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
                if seed == asked.seeds[0]:
                    surfaces[game, toy] = values_on(critic, square()), source.real(1000)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "surfaces.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    draw(surfaces, asked.out / "surfaces.png")


class Source:
    """Draws of a toy at unit variance, and of the fixed 'generator': the same plus noise."""

    def __init__(self, toy: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.toy, self.generator = TOYS[toy], torch.Generator().manual_seed(seed)
        many, _ = self.toy.sample(MANY, self.generator)
        self.scale = float((many - many.mean(0)).square().mean().sqrt())

    def real(self, n: int) -> Tensor:
        """Data, `(n, 2)`."""
        return self.toy.sample(n, self.generator)[0] / self.scale

    def pair(self, n: int) -> tuple[Tensor, Tensor]:
        """Data and the fakes made of them, `(n, 2)` each."""
        real = self.real(n)
        return real, real + torch.randn(n, 2, generator=self.generator)


def train(source: Source, objective: WGAN, steps: int) -> nn.Module:
    """A critic of `objective` against the fixed generator, at the games' usual step sizes."""
    critic = MLPCritic([2], hidden_features=HIDDEN, activation="ReLU")
    weights = list(critic.parameters())
    optimizer: torch.optim.Optimizer
    if objective.clip:
        optimizer = torch.optim.RMSprop(weights, lr=5e-5, foreach=True)
    else:
        optimizer = torch.optim.Adam(weights, lr=1e-3, betas=(0.5, 0.9), fused=True)
    for _ in range(steps):
        real, fake = source.pair(BATCH)
        loss = objective.critic(critic(real), critic(fake))
        if objective.penalty_weight:
            loss = loss + objective.penalty_weight * gradient_penalty(critic, (real,), (fake,))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if objective.clip:
            with torch.no_grad():
                for weight in weights:
                    weight.clamp_(-objective.clip, objective.clip)
    return critic


def measure(critic: nn.Module, source: Source, n: int) -> dict[str, float]:
    """The numbers of the module's docstring, from fresh draws."""
    real, fake = source.pair(MANY)
    few, few_fakes, other = real[:n], fake[:n], source.real(n)
    lines = torch.lerp(few_fakes, few, torch.rand(n, 1, generator=source.generator))
    slope, on_square = gradient_norms(critic, lines), gradient_norms(critic, square())
    largest = torch.cat([slope, on_square]).max()
    normal = (
        real.mean(0) + torch.randn(MANY, 2, generator=source.generator) @ cholesky(real.T.cov()).T
    )
    means = [values_on(critic, x).mean() for x in (real, fake, normal)]
    gap = means[0] - means[1]
    emd = earth_mover_distance(other, few_fakes)
    values = values_on(critic, lines)
    return {
        "unexplained, linear": unexplained(values, lines, degree=1),
        "unexplained, quadratic": unexplained(values, lines, degree=2),
        "gradient, mean": float(slope.mean()),
        "gradient, std / mean": float(slope.std() / slope.mean()),
        "gradient, largest": float(largest),
        "gap": float(gap),
        "EMD": float(emd),
        "EMD floor": float(earth_mover_distance(few, other)),
        "higher moments": float((means[0] - means[2]) / gap),
        "transport": float(gap / largest / emd),
    }


def unexplained(values: Tensor, x: Tensor, degree: int) -> float:
    """Share of the variance of `values (n,)` left by the best polynomial of `x (n, 2)`."""
    x, values = x.double(), values.double()
    powers = [x[:, 0] ** i * x[:, 1] ** j for i in range(degree + 1) for j in range(degree + 1 - i)]
    basis = torch.stack(powers, 1)
    fit = basis @ torch.linalg.lstsq(basis, values[:, None]).solution
    return float((values - fit[:, 0]).var() / values.var())


def gradient_norms(critic: nn.Module, x: Tensor) -> Tensor:
    """‖∇D(x)‖ at each point, `(n,)`."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    return gradient.norm(dim=1)


@torch.no_grad()
def values_on(critic: nn.Module, x: Tensor) -> Tensor:
    """D at each point, `(n,)`."""
    values: Tensor = critic(x)
    return values


def square() -> Tensor:
    """The plotted square as points, row by row, `(ticks², 2)`."""
    ticks = torch.linspace(-HALF_WIDTH, HALF_WIDTH, TICKS)
    return torch.cartesian_prod(ticks, ticks).flip(1)


def draw(surfaces: dict[tuple[str, str], tuple[Tensor, Tensor]], path: Path) -> None:
    """Contours of D, a row a game and a column a toy, with data on top."""
    ticks = torch.linspace(-HALF_WIDTH, HALF_WIDTH, TICKS).numpy()
    columns = len(surfaces) // len(GAMES)

    def plot(figure: Any) -> None:
        for axes, ((game, toy), (values, x)) in zip(
            figure.subplots(len(GAMES), columns, squeeze=False).flat,
            sorted(surfaces.items(), key=lambda item: list(GAMES).index(item[0][0])),
            strict=True,
        ):
            axes.contour(ticks, ticks, values.view(TICKS, TICKS).numpy(), levels=20, linewidths=0.8)
            axes.scatter(*x.numpy().T, s=2, color="#D55E00")
            axes.set(xticks=[], yticks=[], aspect="equal", title=f"{toy}, {game}")
            axes.title.set_fontsize(9)

    draw_figure(plot, path, size=(2.8 * columns, 8.6))


if __name__ == "__main__":
    main()
