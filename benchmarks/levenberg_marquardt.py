"""Levenberg-Marquardt on the d-column Jacobian against L-BFGS, from the same starts.

    OMP_NUM_THREADS=1 python benchmarks/levenberg_marquardt.py RUN

Why `reverse` has the one and not the other. Per image, z ← z − (JᵀJ + λ diag JᵀJ)⁻¹ Jᵀ(G(z) − x),
λ a third of itself after a step that lowers the loss, four times itself after one that does not.
J has d columns, each a forward-mode derivative: one step costs d passes with their derivatives.
Both start at the nearest of 2,048 G(z), both use the fast pass in float32; an image is timed to its
own mark: 1.05 of the lower of its two final losses.
"""

import argparse
from pathlib import Path

import torch
from reversal import Clock, step
from torch import Tensor

from flexgen.reversal import reverse
from flexgen.reversal.fast import FastPass
from flexgen.reversal.losses import half_squared_error
from flexgen.reversal.starts import Bank, normal_codes
from flexgen.runs.run import open_run


def jacobian(generate: FastPass, z: Tensor) -> tuple[Tensor, Tensor]:
    """G(z) and J, `(batch, elements, d)`, by columns."""
    columns, value = [], z.new_empty(0)
    for direction in torch.eye(z.shape[1]):
        value, column = torch.func.jvp(generate, (z,), (direction.expand_as(z).contiguous(),))
        columns.append(column.flatten(1))
    return value, torch.stack(columns, 2)


@torch.no_grad()
def levenberg_marquardt(
    generate: FastPass, x: Tensor, z: Tensor, steps: int
) -> tuple[list[float], Tensor]:
    clock, seconds, losses = Clock(x.device), [], []
    damping = torch.full((len(z),), 0.1)
    value, j = jacobian(generate, z)
    loss = half_squared_error(value, x)
    for _ in range(steps):
        squares = j.mT @ j
        ridge = torch.diag_embed(damping[:, None] * squares.diagonal(dim1=1, dim2=2) + 1e-6)
        slope = j.mT @ (value - x).flatten(1)[:, :, None]
        trial = z - torch.linalg.solve(squares + ridge, slope)[:, :, 0]
        tried = half_squared_error(generate(trial), x)
        better = tried < loss
        z = torch.where(better[:, None], trial, z)
        damping = torch.where(better, damping / 3, damping * 4)
        value, j = jacobian(generate, z)
        loss = half_squared_error(value, x)
        seconds.append(clock())
        losses.append(loss)
    return seconds, torch.stack(losses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--n", type=int, default=64, help="images")
    parser.add_argument("--steps", type=int, default=25, help="of Levenberg-Marquardt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(args.run)
    run.config["trainer"]["accelerator"] = "cpu"
    generator = run.model.decoder.eval().requires_grad_(False)
    run.data.setup("test")
    x = run.data.split("test", args.n, 0)[0]
    d = int(run.model.prior().event_shape[0])
    generate = FastPass(generator, torch.float32)
    start = Bank(generate, normal_codes(torch.arange(2048), (d,), 0)).nearest(x, 1)

    seconds, theirs = levenberg_marquardt(generate, x, start[:, 0], args.steps)
    clock, seen = Clock(x.device), []
    reverse(
        generator, x, latent_shape=d, init=start, precision="float32", steps=200,
        watch=lambda z: seen.append((clock(), z.clone())),
    )  # fmt: skip
    with torch.no_grad():
        ours = torch.stack([half_squared_error(generate(z), x) for _, z in seen])
    mark = 1.05 * torch.minimum(ours[-1], theirs[-1])
    clock = Clock(x.device)
    step(generate, start[:, 0], x)
    one = clock()
    for name, times, losses in (
        ("L-BFGS", [t for t, _ in seen], ours), ("Levenberg-Marquardt", seconds, theirs)
    ):  # fmt: skip
        met = (losses <= mark).float().mean(1)
        half = next((t for t, share in zip(times, met, strict=True) if share >= 0.5), float("inf"))
        print(
            f"{name}: half the images at their mark after {half:.2f} s ({half / one:.0f} inner "
            f"steps); in the end {met[-1]:.0%} of them, mean loss {losses[-1].mean():.2f}, "
            f"{times[-1]:.1f} s in all"
        )


if __name__ == "__main__":
    main()
