"""FlexGen's training step against a hand-written loop, both sides in turn in one process.

    python benchmarks/train_overhead.py [--updates 200] [--rounds 7] [--threads 1]

Both sides have the same networks, weights, data, objective, batch size and optimizer settings.
The hand-written loop holds the whole data set in one tensor, draws a random batch by index, and
uses torch's default Adam and a gradient penalty of a few lines; it logs nothing. FlexGen runs its
Trainer with the CSV logger and the progress bar on, as `flexgen train` does. Each round times one
side and then the other; quoted are medians over the rounds of seconds per generator step, and the
median of the rounds' ratios.
Two more columns are ours: the raw loop with a fused Adam, and FlexGen with torch's default Adam.
"""

import argparse
import contextlib
import copy
import functools
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from flexgen.callbacks import Progress
from flexgen.data import DataModule, ImageData, ring8
from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN, WGANGP, Objective
from flexgen.priors import Normal
from flexgen.training import CSVLogger

ADAM = functools.partial(torch.optim.Adam, lr=1e-4, betas=(0.5, 0.9))


class Terminal(io.StringIO):
    """What the progress bar draws on: a terminal that nobody looks at."""

    def isatty(self) -> bool:
        return True


class Task:
    """A data set, two networks and a game."""

    def __init__(
        self, name: str, data: DataModule, latent_dim: int, width: list[int],
        objective: Objective, critic_steps: int,
    ) -> None:  # fmt: skip
        self.name, self.data, self.latent_dim = name, data, latent_dim
        self.objective, self.critic_steps = objective, critic_steps
        torch.manual_seed(0)
        self.generator = MLPGenerator(latent_dim, data.shape, data.range, width)
        self.critic = MLPCritic(data.shape, width)


def tasks(mnist: str | None) -> list[Task]:
    name = "MNIST" if mnist else "digits at 28×28 (no MNIST found)"
    images = (
        ImageData("mnist", root=mnist, batch_size=100)
        if mnist
        else ImageData("digits", shape=(1, 28, 28), batch_size=100)
    )
    ring = Task("8 Gaussians, WGAN-GP, batch 500, 5 to 1", ring8(), 2, [128] * 3, WGANGP(), 5)
    return [ring] + [
        Task(f"GAN on {name}, batch 100, {steps} to 1", images, 20, [256, 256], GAN(), steps)
        for steps in (5, 1)
    ]


def penalty(critic: torch.nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E(‖∇D(x̃)‖ − 1)², as one writes it by hand."""
    eps = torch.rand(len(real), *[1] * (real.ndim - 1))
    mixed = torch.lerp(fake, real, eps).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def raw_loop(task: Task, make: Callable[..., torch.optim.Optimizer]) -> Callable[[int], float]:
    """The loop that one writes by hand: returns seconds for so many updates."""
    generator, critic = copy.deepcopy(task.generator), copy.deepcopy(task.critic)
    x, _ = task.data.split("train")
    batch, objective = task.data.batch_size, task.objective
    generator_opt, critic_opt = make(generator.parameters()), make(critic.parameters())

    def run(updates: int) -> float:
        started = time.perf_counter()
        for _ in range(updates):
            for _ in range(task.critic_steps):
                real = x[torch.randint(len(x), (batch,))]
                with torch.no_grad():
                    fake = generator(torch.randn(batch, task.latent_dim))
                loss = objective.critic(critic(real), critic(fake))
                if objective.penalty_weight:
                    loss = loss + objective.penalty_weight * penalty(critic, real, fake)
                critic_opt.zero_grad()
                loss.backward()
                critic_opt.step()
            loss = objective.generator(critic(generator(torch.randn(batch, task.latent_dim))))
            generator_opt.zero_grad()
            loss.backward()
            generator_opt.step()
        return time.perf_counter() - started

    return run


def flexgen_loop(task: Task, make: Callable[..., torch.optim.Optimizer]) -> Callable[[int], float]:
    """FlexGen's trainer, resumed by its stream's position between calls."""
    model = Adversarial(
        copy.deepcopy(task.generator), copy.deepcopy(task.critic), Normal(task.latent_dim),
        task.objective, generator_optimizer=make, critic_optimizer=make,
        critic_steps=task.critic_steps,
    )  # fmt: skip

    class Clock(pl.Callback):
        seconds = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    def run(updates: int) -> float:
        clock = Clock()
        model.schedule.end = model.counters.generator_steps + updates
        task.data.position = model.counters.batches
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(Terminal()):
            trainer = pl.Trainer(
                default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=-1,
                logger=CSVLogger(folder), callbacks=[Progress(), clock],
                enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(model, datamodule=task.data)
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200, help="generator steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--task", type=int, choices=(0, 1, 2), help="only this one")
    parser.add_argument("--mnist", help="folder with MNIST/raw; digits at 28×28 without it")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    fused: Callable[..., torch.optim.Optimizer] = functools.partial(ADAM, fused=True)
    print(
        f"torch {torch.__version__}, {asked.threads} thread(s), "
        f"{asked.rounds} rounds of {asked.updates} generator steps"
    )
    print(f"{'':<52}{'raw':>9}{'raw fused':>11}{'FlexGen':>9}{'unfused':>9}{'FlexGen/raw':>13}")
    chosen = tasks(asked.mnist)
    for task in chosen if asked.task is None else [chosen[asked.task]]:
        sides = {
            "raw": raw_loop(task, ADAM),
            "raw fused": raw_loop(task, fused),
            "flexgen": flexgen_loop(task, fused),
            "unfused": flexgen_loop(task, ADAM),
        }
        for run in sides.values():
            run(max(10, asked.updates // 5))
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(asked.rounds):
            for name, run in sides.items():
                taken[name].append(1e3 * run(asked.updates) / asked.updates)
        ratio = statistics.median(
            a / b for a, b in zip(taken["flexgen"], taken["raw"], strict=True)
        )
        cells = "".join(
            f"{statistics.median(taken[n]):{w}.2f}"
            for n, w in zip(sides, (9, 11, 9, 9), strict=True)
        )
        print(f"{task.name:<52}{cells}{ratio:>13.2f}", flush=True)
    print("milliseconds a generator step, medians; the ratio is the median over rounds")


if __name__ == "__main__":
    main()
