"""ALI's training step against a hand-written loop, sides in turn in one process.

    python benchmarks/inference.py [--updates 20] [--rounds 15] [--threads 1]

A generator step of WGAN-GP over pairs on digits, batch 100, 5 critic steps to 1, Adam at 5e-4,
codes of 20 numbers; generator and encoder of two layers of 128, critic of two of 256. Once with an
encoder without noise (BiGAN) and once with a Gaussian one (ALI). The hand-written loop holds the
data in one tensor, draws batches by index, makes what it shows the critic under `no_grad`, steps
encoder and generator by one of torch's default Adams and takes the penalty in a few lines; it logs
nothing. FlexGen runs its Trainer with the CSV logger and the progress bar on, as `flexgen train`
does, and its fused Adam. Each round times one side after the other; quoted are medians over the
rounds of CPU milliseconds of the process a generator step, and median and quartiles of the rounds'
ratios.
"""

import argparse
import contextlib
import copy
import functools
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flexgen.callbacks import Progress
from flexgen.data import ImageData
from flexgen.models import ALI
from flexgen.networks import JointCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import WGANGP
from flexgen.posteriors import Deterministic, DiagonalGaussian
from flexgen.priors import Normal
from flexgen.training import CSVLogger

BATCH, LATENT, CRITIC_STEPS, PENALTY = 100, 20, 5, 10.0
ADAM = functools.partial(torch.optim.Adam, lr=5e-4, betas=(0.0, 0.9))

DRIVER_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Lightning sets it to 1 on import, and each step of an Adam looks for GPUs through their driver. A
loop that does not import Lightning is spared that, so the hand-written ones are here too."""


class Terminal(io.StringIO):
    """What a progress bar draws on: a terminal that nobody looks at."""

    def isatty(self) -> bool:
        return True


class Networks(nn.Module):
    """Generator, encoder and critic, for both sides alike."""

    def __init__(self, shape: tuple[int, ...], noisy: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = MLPEncoder(shape, [128, 128])
        self.generator = MLPGenerator(LATENT, shape, (-1.0, 1.0), [128, 128])
        self.posterior = (DiagonalGaussian if noisy else Deterministic)(encoder, LATENT)
        self.critic = JointCritic(MLPEncoder(shape, []), LATENT, hidden_features=[256, 256])


def raw_loop(networks: Networks, x: Tensor, make: Callable[..., Any]) -> Callable[[int], float]:
    """The loop that one writes by hand: returns CPU seconds for so many updates."""
    generator, posterior, critic = networks.generator, networks.posterior, networks.critic
    generator_opt = make([*generator.parameters(), *posterior.parameters()])
    critic_opt = make(critic.parameters())

    def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        real = x[torch.randint(len(x), (BATCH,))]
        z = torch.randn(BATCH, LATENT)
        return real, posterior(real).rsample(), generator(z), z

    def penalty(x: Tensor, z: Tensor, x_hat: Tensor, z_hat: Tensor) -> Tensor:
        eps = torch.rand(BATCH, 1)
        mixed_x = torch.lerp(x_hat, x, eps[:, :, None, None]).requires_grad_()
        mixed_z = torch.lerp(z_hat, z, eps).requires_grad_()
        logits = critic(mixed_x, mixed_z)
        of = torch.autograd.grad(logits.sum(), [mixed_x, mixed_z], create_graph=True)
        norm = torch.cat([gradient.flatten(1) for gradient in of], 1).norm(dim=1)
        return (norm - 1).square().mean()

    def run(updates: int) -> float:
        started = time.process_time()
        for _ in range(updates):
            for _ in range(CRITIC_STEPS):
                with torch.no_grad():
                    real, code, fake, z = pairs()
                loss = critic(fake, z).mean() - critic(real, code).mean()
                loss = loss + PENALTY * penalty(real, code, fake, z)
                critic_opt.zero_grad()
                loss.backward()
                critic_opt.step()
            real, code, fake, z = pairs()
            loss = critic(real, code).mean() - critic(fake, z).mean()
            generator_opt.zero_grad()
            loss.backward()
            generator_opt.step()
        return time.process_time() - started

    return run


class Clock(pl.Callback):
    """CPU seconds of the steps alone, without Lightning's start and end."""

    def on_train_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.started


def flexgen_loop(networks: Networks, data: ImageData) -> Callable[[int], float]:
    make = functools.partial(ADAM, fused=True)
    model = ALI(
        networks.generator, networks.critic, networks.posterior, Normal(LATENT),
        WGANGP(penalty_weight=PENALTY), generator_optimizer=make, critic_optimizer=make,
        critic_steps=CRITIC_STEPS,
    )  # fmt: skip

    def run(updates: int) -> float:
        clock = Clock()
        model.schedule.end = model.counters.generator_steps + updates
        data.position = model.counters.batches
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(Terminal()):
            trainer = pl.Trainer(
                default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=-1,
                logger=CSVLogger(folder), callbacks=[Progress(), clock],
                enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(model, datamodule=data)
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20, help="generator steps a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = ImageData("digits", shape=(1, 8, 8), batch_size=BATCH)
    data.setup("fit")
    x, _ = data.split("train")
    print(
        f"torch {torch.__version__}, {asked.threads} thread(s), {asked.rounds} rounds of "
        f"{asked.updates} generator steps"
    )
    for name, noisy in (("BiGAN", False), ("ALI", True)):
        networks = Networks(tuple(data.shape), noisy)
        fused = functools.partial(ADAM, fused=True)
        sides = {
            "raw": raw_loop(copy.deepcopy(networks), x, ADAM),
            "raw, fused Adam": raw_loop(copy.deepcopy(networks), x, fused),
            "FlexGen": flexgen_loop(copy.deepcopy(networks), data),
        }
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(asked.rounds + 1):
            for side, run in sides.items():
                os.environ[DRIVER_CHECK] = "0" if side.startswith("raw") else "1"
                taken[side].append(1e3 * run(asked.updates) / asked.updates)
        taken = {side: values[1:] for side, values in taken.items()}  # the first warms up
        for side, values in taken.items():
            ratios = [a / b for a, b in zip(values, taken["raw"], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            took = statistics.median(values)
            print(f"{name}, {side:<18}{took:8.2f} ms{median:8.2f}× ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
