"""FlexGen's VAE training step against a hand-written loop, sides in turn in one process.

    python benchmarks/vae.py [--updates 50] [--rounds 40] [--threads 1] [--mnist data]

The plain VAE 784-200-200-50 on binarised MNIST, batch 100, Adam at 1e-3, Bernoulli pixels. The
hand-written loop holds the data in one tensor, draws batches by index, uses torch's default Adam
and the closed-form KL, and logs nothing. FlexGen runs its Trainer with the CSV logger and the
progress bar on, as `flexgen train` does, and its fused Adam. Lightning's side is the same model in
automatic optimization with a DataLoader over the resident tensor, one `self.log` of the loss and
its own bar. Each round times one side after the other; quoted are medians over the rounds of CPU
seconds of the process per step, and median and quartiles of the rounds' ratios to the hand-written
loop. Rounds are many and short because the machine's speed changes within seconds: a round's ratio
spreads by a tenth though no side takes a page fault, and the median of 7 rounds still swings.
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
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from flexgen.callbacks import Progress
from flexgen.data import ImageData
from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPEncoder, MLPGenerator
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal
from flexgen.training import CSVLogger

BATCH, LATENT = 100, 50
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)

DRIVER_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Lightning sets it to 1 on import, and each step of an Adam looks for GPUs through their driver. A
loop that does not import Lightning is spared that, so the hand-written ones are here too."""


class Terminal(io.StringIO):
    """What a progress bar draws on: a terminal that nobody looks at."""

    def isatty(self) -> bool:
        return True


class Networks(nn.Module):
    """Encoder, head and decoder, for all sides alike."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.posterior = DiagonalGaussian(MLPEncoder(shape, [200, 200]), LATENT)
        self.decoder = MLPGenerator(LATENT, shape, None, [200, 200])

    def loss(self, x: Tensor) -> Tensor:
        """Minus the ELBO as one writes it by hand."""
        h = self.posterior.encoder(x)
        loc, log_scale = self.posterior.head(h).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        return (reconstruction + kl) / len(x)


def raw_loop(networks: Networks, x: Tensor, make: Callable[..., Any]) -> Callable[[int], float]:
    optimizer = make(networks.parameters())

    def run(updates: int) -> float:
        started = time.process_time()
        for _ in range(updates):
            loss = networks.loss(x[torch.randint(len(x), (BATCH,))])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.process_time() - started

    return run


class Clock(pl.Callback):
    """CPU seconds of the steps alone, without Lightning's start and end."""

    def on_train_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.started


def flexgen_loop(networks: Networks, data: ImageData) -> Callable[[int], float]:
    model = VAE(
        networks.posterior, Bernoulli(networks.decoder), Normal(LATENT),
        optimizer=functools.partial(ADAM, fused=True),
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


class Automatic(pl.LightningModule):
    """The same model as Lightning's first page has it."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.networks.loss(batch[0])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return ADAM(self.parameters())


def lightning_loop(networks: Networks, x: Tensor) -> Callable[[int], float]:
    model = Automatic(networks)
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True)

    def run(updates: int) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(Terminal()):
            trainer = pl.Trainer(
                default_root_dir=folder, accelerator="cpu", devices=1, max_steps=updates,
                logger=pl.loggers.CSVLogger(folder), callbacks=[clock],
                enable_checkpointing=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(model, loader)
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=50, help="steps a round")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mnist", help="folder with MNIST/raw; digits at 28×28 without it")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options: dict[str, Any] = {"binarise": "static", "range": (0, 1), "batch_size": BATCH}
    data = (
        ImageData("mnist", root=asked.mnist, **options)
        if asked.mnist
        else ImageData("digits", shape=(1, 28, 28), **options)
    )
    data.setup("fit")
    x, _ = data.split("train")
    networks = Networks(tuple(data.shape))
    fused = functools.partial(ADAM, fused=True)
    sides = {
        "raw": raw_loop(copy.deepcopy(networks), x, ADAM),
        "raw, fused Adam": raw_loop(copy.deepcopy(networks), x, fused),
        "FlexGen": flexgen_loop(copy.deepcopy(networks), data),
        "Lightning's defaults": lightning_loop(copy.deepcopy(networks), x),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.rounds + 1):
        for name, run in sides.items():
            os.environ[DRIVER_CHECK] = "0" if name.startswith("raw") else "1"
            taken[name].append(1e3 * run(asked.updates) / asked.updates)
    taken = {name: values[1:] for name, values in taken.items()}  # the first warms up
    print(
        f"torch {torch.__version__}, {asked.threads} thread(s), {asked.rounds} rounds of "
        f"{asked.updates} steps, {data.name}"
    )
    for name, values in taken.items():
        ratios = [a / b for a, b in zip(values, taken["raw"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        took = statistics.median(values)
        print(f"{name:<24}{took:8.2f} ms{median:8.2f}× ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
