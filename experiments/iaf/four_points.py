"""Four data, a code in the plane: how well the posteriors of a VAE fill the prior together.

python experiments/iaf/four_points.py --out experiments/iaf/figures

Kingma et al. 2016, figure 1: one VAE with diagonal Gaussian posteriors, one with inverse
autoregressive ones, both with the prior N(0, I). The paper does not say what its four data are;
here they are the four one-hot vectors of four binary pixels. The best possible ELBO is then
−log 4 nats, reached only where the four posteriors tile the prior.

q(z) is the mean of the four posteriors. Its KL to the prior is of draws with exact densities, the
energy distance of 4,000 draws of each; log p(x) is an integral over a grid, so log p(x) − ELBO, the
mean KL of the posteriors to the true ones, has no bias of importance sampling.

Prints every value, and writes four_points.csv and four_points.png.
"""

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.drawing import draw_figure
from flexgen.flows import Autoregressive
from flexgen.likelihoods import Bernoulli
from flexgen.metrics import EnergyDistance, marginal_log_prob
from flexgen.models import VAE
from flexgen.networks import MLPEncoder, MLPGenerator
from flexgen.posteriors import DiagonalGaussian, FlowPosterior
from flexgen.priors import Normal

DATA = torch.eye(4)
STEPS = 8
GATE_BIAS = 1.0
HIDDEN = [64, 64]
CONTEXT = 16
PAIRED = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of Adam (3000)")
    parser.add_argument("--draws", type=int, default=64, help="of each posterior a step (64)")
    parser.add_argument("--n", type=int, default=20_000, help="draws that a value is of (20000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    rows, pictures = [], {}
    for seed in asked.seeds:
        for name, flow_steps in (("VAE", 0), ("VAE with IAF", STEPS)):
            begin = time.process_time()
            torch.manual_seed(seed)
            model = build(flow_steps)
            fit(model, asked.steps, asked.draws)
            seconds = time.process_time() - begin
            rows.append(
                {"model": name, "seed": seed, **measure(model, asked.n), "cpu_seconds": seconds}
            )
            print(", ".join(f"{k} {v}" for k, v in written(rows[-1]).items()), flush=True)
            if seed == asked.seeds[0]:
                pictures[name] = model.posterior(DATA.double()).sample((1000,)).detach()
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "four_points.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(map(written, rows))
    draw(pictures, asked.out / "four_points.png")


def written(row: dict[str, Any]) -> dict[str, str]:
    return {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}


def build(flow_steps: int) -> VAE:
    """A VAE with so many inverse autoregressive steps in its posterior; 0: a diagonal one."""
    encoder = MLPEncoder((4,), HIDDEN)
    posterior: nn.Module = DiagonalGaussian(encoder, 2)
    if flow_steps:
        flow = Autoregressive(
            2, num_layers=flow_steps, hidden_features=HIDDEN, update="gated",
            gate_bias=GATE_BIAS, context_features=CONTEXT, activation="ELU",
        )  # fmt: skip
        posterior = FlowPosterior(encoder, flow, 2)
    return VAE(
        posterior, Bernoulli(MLPGenerator(2, (4,), None, HIDDEN)), Normal(2),
        optimizer=torch.optim.Adam,
    )  # fmt: skip


def fit(model: VAE, steps: int, draws: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.draws = draws
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(DATA).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(model: VAE, n: int) -> dict[str, float]:
    """ELBO, log p(x), their difference and KL(q(z) ‖ p), nats; energy distance of q(z) to p."""
    # In float32 a code's base noise under another datum's posterior overflows.
    model.double()
    x = DATA.double()
    q, p = model.posterior(x), model.prior()
    elbo = float(model.log_weights(x, n).mean())
    evidence = float(log_evidence(model).mean())
    z = q.sample((n // len(DATA),)).flatten(0, 1)
    log_marginal = marginal_log_prob(z, q.log_prob, len(DATA))
    energy = EnergyDistance()
    energy.update(z[:PAIRED], real=True)
    energy.update(p.sample((PAIRED,)), real=False)
    return {
        "elbo": elbo,
        "log_p": evidence,
        "gap": evidence - elbo,
        "marginal_kl": float((log_marginal - p.log_prob(z)).mean()),
        "energy": float(energy.compute()),
    }


def log_evidence(model: VAE, edge: float = 6.0, points: int = 400) -> Tensor:
    """log p(x) of each datum under a model in float64, by sums over a grid of codes."""
    line = torch.linspace(-edge, edge, points, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 1, 2)
    joint = model.likelihood(z).log_prob(DATA) + model.prior().log_prob(z)
    return joint.logsumexp(0) + 2 * math.log(float(line[1] - line[0]))


def draw(pictures: dict[str, Tensor], path: Path) -> None:
    """The prior's draws, and each model's posteriors, a colour a datum."""
    colours = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

    def plot(figure: Any) -> None:
        axes = figure.subplots(1, 1 + len(pictures), sharex=True, sharey=True)
        prior = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        axes[0].scatter(*prior.T.numpy(), s=1, color="#888888")
        axes[0].set_title("prior")
        for axis, (name, z) in zip(axes[1:], pictures.items(), strict=True):
            for i, colour in enumerate(colours):
                axis.scatter(*z[:, i].T.numpy(), s=1, color=colour)
            axis.set_title(name)
        for axis in axes:
            axis.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")

    draw_figure(plot, path, size=(7.6, 2.9))


if __name__ == "__main__":
    main()
