"""Gradients through deep critics and their weights: clipped against a penalty.

python experiments/wgan/deep_critics.py multirun/wgan_deep_critic/… --out experiments/wgan/figures

Gulrajani et al. 2017, figure 2, from runs of conf/experiment/wgan/deep_critic.yaml. Of each critic,
after training and, for comparison, with its initial weights (clipped, where the game clips):

* gain: factor by which ‖∂D/∂h‖, averaged over real and generated points, grows with each layer
  farther from the output: exp of the slope of its logarithm over the hidden activations h₁ … h₁₂;
* ratio: ‖∂D/∂h₁‖ / ‖∂D/∂h₁₂‖;
* at the threshold: share of the weights (biases left out) within 5 % of ±c.

Prints every value, and writes deep_critics.csv, gradient_norms.png and weights.png.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexgen.drawing import draw_figure
from flexgen.report import find_runs
from flexgen.runs.run import Run, open_run

POINTS = 2000
NEAR = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG and the CSV")
    asked = parser.parse_args()
    rows, norms, shown = [], defaultdict(list), {}
    for folder in sorted(run for path in asked.paths for run in find_runs(path)):
        trained = open_run(folder)
        config = trained.config
        for when, run in ("initial", Run(config).build()), ("trained", trained):
            game, values, each, weights = measure(run)
            rows.append(
                {"critic": game, "seed": config["seed"], "when": when}
                | {name: f"{value:.4g}" for name, value in values.items()}
            )
            print(", ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            if when == "trained":
                norms[game].append(each.numpy())
                shown.setdefault(game, weights)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "deep_critics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    draw_norms(norms, asked.out / "gradient_norms.png")
    draw_weights(shown, asked.out / "weights.png")


def measure(run: Run) -> tuple[str, dict[str, float], Tensor, Tensor]:
    """The name of a critic's game, its numbers, its gradient norms by layer, all its weights."""
    model, clip = run.model, run.model.objective.clip
    if clip is not None:
        with torch.no_grad():
            for weight in model.critic.parameters():
                weight.clamp_(-clip, clip)
    x, _ = run.data.split("validation", POINTS, 0)
    norms = layer_gradients(model.critic, torch.cat([x, run.sample(POINTS)]))
    weights = torch.cat(
        [m.weight.detach().flatten() for m in model.critic.modules() if isinstance(m, nn.Linear)]
    )
    values = {
        "gain": gain(norms),
        "ratio": float(norms[0] / norms[-1]),
        "at the threshold": float("nan") if clip is None else share_near(weights, clip),
        "weight std": float(weights.std()),
    }
    name = "gradient penalty" if clip is None else f"clipping, c = {clip:g}"
    return name, values, norms, weights


def layer_gradients(critic: nn.Module, x: Tensor) -> Tensor:
    """Mean over x of ‖∂D(x)/∂h‖ for each hidden activation h, `(layers,)`, first layer first."""
    activations: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, h: activations.append(h))
        for module in critic.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        total = critic(x).sum()
    finally:
        for hook in hooks:
            hook.remove()
    # Double precision: at c = 0.001 a squared norm would leave the range of a float.
    gradients = torch.autograd.grad(total, activations)
    return torch.stack([g.double().norm(dim=1).mean() for g in gradients])


def gain(norms: Tensor) -> float:
    """Growth of gradient norms `(layers,)` with each layer farther from the output."""
    return float(np.exp(-np.polyfit(np.arange(len(norms)), norms.log().numpy(), 1)[0]))


def share_near(weights: Tensor, clip: float) -> float:
    """Share of weights within 5 % of ±clip."""
    return float((weights.abs() >= NEAR * clip).double().mean())


def draw_norms(norms: dict[str, list[np.ndarray]], path: Path) -> None:
    """Gradient norm against layer: a line for each run, a colour for each game."""

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, (game, runs) in enumerate(norms.items()):
            for seed, norm in enumerate(runs):
                label = game if seed == 0 else None
                axes.plot(range(1, len(norm) + 1), norm, "o-", ms=3, color=f"C{i}", label=label)
        axes.set(yscale="log", xlabel="hidden layer (1 is next to the data)", ylabel="‖∂D/∂h‖")
        figure.legend(fontsize=8, loc="outside right upper")

    draw_figure(plot, path, size=(7.0, 3.6))


def draw_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Histograms of weights, a panel for each game (its first run)."""

    def plot(figure: Any) -> None:
        panels = figure.subplots(1, len(weights))
        for axes, (game, values) in zip(np.atleast_1d(panels), weights.items(), strict=True):
            axes.hist(values.numpy(), bins=61, density=True, color="#0072B2")
            axes.set_title(game, fontsize=9)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)

    draw_figure(plot, path, size=(2.5 * len(weights), 2.4))


if __name__ == "__main__":
    main()
