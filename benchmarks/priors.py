"""A training step with a masked or weighted prior against the constant one, all sides in turn.

    python benchmarks/priors.py [--updates 60] [--rounds 7] [--presample 2]

The ring of eight with the networks of Goerttler & Kloft (Table 1), WGAN-GP with λ = 1, five critic
steps to one, batch 500, so a pre-sample of 1,000; the base of all sides is U(-1, 1)². Each side is
FlexGen's Trainer with the CSV logger, as `flexgen train` runs it, on the same networks and data.
Each round times one side after the other; quoted are medians over the rounds of CPU seconds of
the process, with one thread, per generator step, and the median of the rounds' ratios.
"""

import argparse
import functools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from flexgen.data import ring8
from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import WGANGP
from flexgen.priors import Masked, Uniform, Weighted
from flexgen.training import CSVLogger

ADAM = functools.partial(torch.optim.Adam, lr=1e-4, betas=(0.5, 0.9), fused=True)


class Clock(pl.Callback):
    """CPU seconds of the steps alone, without Lightning's start and end."""

    def on_train_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.started


def training(prior: nn.Module, data: Any) -> Callable[[int], float]:
    """Training with `prior`, gone on with at each call: returns seconds for so many updates."""
    torch.manual_seed(0)
    model = Adversarial(
        MLPGenerator(2, data.shape, (-1, 1), [128, 128], activation="ReLU"),
        MLPCritic(data.shape, [128, 128, 128], activation="Tanh"), prior, WGANGP(penalty_weight=1),
        generator_optimizer=ADAM, critic_optimizer=ADAM, critic_steps=5, ema_decay=0.999,
    )  # fmt: skip

    def run(updates: int) -> float:
        clock = Clock()
        model.schedule.end = model.counters.generator_steps + updates
        data.position = model.counters.batches
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=-1,
                logger=CSVLogger(folder), callbacks=[clock], enable_progress_bar=False,
                enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(model, datamodule=data)
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60, help="generator steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--presample", type=float, default=2.0, help="scored codes for one drawn")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data, base = ring8(batch_size=500), Uniform(2)
    options: dict[str, Any] = {"presample": asked.presample}
    sides = {
        "constant": training(base, data),
        "masked": training(Masked(base, **options), data),
        "weighted": training(Weighted(base, **options), data),
        "masked, critic's steps": training(Masked(base, where="critic", **options), data),
        "masked, generator's steps": training(Masked(base, where="generator", **options), data),
    }
    for run in sides.values():
        run(max(10, asked.updates // 5))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, run in sides.items():
            taken[name].append(1e3 * run(asked.updates) / asked.updates)
    print(
        f"torch {torch.__version__}, 1 thread, {asked.rounds} rounds of {asked.updates} generator "
        f"steps, pre-sample {asked.presample:g} × 500"
    )
    for name, values in taken.items():
        ratio = statistics.median(a / b for a, b in zip(values, taken["constant"], strict=True))
        print(f"{name:<28}{statistics.median(values):8.2f} ms{ratio:8.2f}×")


if __name__ == "__main__":
    main()
