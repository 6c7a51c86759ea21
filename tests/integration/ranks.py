"""What each of two processes does for `test_processes.py`: runs in turn, and notes on each.

python -m tests.integration.ranks FOLDER    # with torchrun's environment variables
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flexgen import codes
from flexgen.cli import main
from flexgen.networks import MLPGenerator
from flexgen.objectives import GAN, WGANGP
from flexgen.priors import Pushforward
from flexgen.training.loop import Loop
from tests.conftest import REFIT, SMALL
from tests.training import at_call, interrupt, not_a_number

SHARED = (
    *SMALL,
    "trainer=ddp_cpu",
    "report=false",
    "callbacks.reversal.options.batch_size=16",
    "callbacks.reversal.options.progress=false",
)
VAE = (
    *SHARED,
    "model=vae",
    "likelihood=gaussian",
    "network.encoder.hidden_features=[16]",
    "network.decoder.hidden_features=[16]",
    "callbacks=[progress,samples,reversal,quality,likelihood,checkpoint]",
    "callbacks.likelihood.split=validation",
    "callbacks.likelihood.n=100",
)
NORMED = (
    *SHARED,
    "model=wgan_gp",
    "model.critic_steps=2",
    "prior=masked",
    "network.generator.norm=batch",
)
DENSITY = (  # which stops early at step 30, at what one process measures
    "model=density", "data=digits_static", "data.batch_size=32", "network.pixels.channels=4",
    "network.pixels.num_layers=2", "trainer=ddp_cpu", "report=false", "steps=60",
    "callbacks=[progress,nll,early_stopping,checkpoint]", "callbacks.checkpoint.every=10",
    "callbacks.nll.every=10", "callbacks.early_stopping.metric=nll/samples", "model.log_every=7",
    "callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_change=1000",
)  # fmt: skip
VQ_VAE = (
    "model=vq_vae", "data=digits_static", "data.batch_size=32", "latent_dim=16",
    "network.encoder.channels=[4]", "network.decoder.channels=[4]", "model.codebook.num_vectors=8",
    "model.codebook.restart=10", "trainer=ddp_cpu", "report=false", "steps=30",
    "callbacks=[progress,code_length,checkpoint]", "callbacks.checkpoint.every=10",
)  # fmt: skip
HALI = (
    "model=hali", "data=ring8", "data.num_train=640", "data.batch_size=32", "latent_dim=4",
    "network.generator.hidden_features=[16]", "network.encoder.hidden_features=[16]",
    "network.joint_critic.hidden_features=[16]", "model.critic_steps=2", "trainer=ddp_cpu",
    "report=false", "steps=30", "callbacks=[progress,checkpoint]", "callbacks.checkpoint.every=10",
)  # fmt: skip

RUNS: dict[str, tuple[str, ...]] = {
    "gan": (*SHARED, *REFIT, "callbacks.refit.source=reversal", "prior=masked", "model=gan"),
    "wgan": (*SHARED, "model=wgan", "model.critic_steps=2", "trainer.precision=bf16-mixed"),
    "vae": VAE,
    "normed": NORMED,
    "measured": (*NORMED, "callbacks.quality.every=4"),
    "stopped": NORMED,
    "density": DENSITY,
    "vq_vae": VQ_VAE,
    "hali": HALI,
}


def watch(patched: pytest.MonkeyPatch, notes: dict[str, Any]) -> None:
    """Write down codes drawn, rows reversed, priors fitted, and the state when training ends."""
    forward, find, fit = MLPGenerator.forward, codes.reverse, Pushforward.fit

    def drawing(self: MLPGenerator, z: torch.Tensor, *context: Any) -> torch.Tensor:
        if self.training:
            notes.setdefault("codes", z.detach().clone())
        return forward(self, z, *context)

    @functools.wraps(find)  # whose batch size is asked for
    def finding(generator: Any, x: torch.Tensor, **options: Any) -> Any:
        notes.setdefault("reversed", []).append(len(x))
        return find(generator, x, **options)

    def fitting(*args: Any, **options: Any) -> dict[str, float]:
        notes["fits"] = notes.get("fits", 0) + 1
        return fit(*args, **options)

    def ending(self: Loop) -> None:
        notes["state"] = {name: t.clone() for name, t in self.state_dict().items()}

    patched.setattr(MLPGenerator, "forward", drawing)
    patched.setattr(Loop, "on_train_end", ending)
    patched.setattr(codes, "reverse", finding)
    patched.setattr(Pushforward, "fit", fitting)


def command(notes: dict[str, Any], *words: str) -> None:
    try:
        main([*words])
    except SystemExit as end:
        notes["exit"] = end.code


def run(folder: Path, rank: int) -> None:
    notes: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        watch(patched, notes)
        for name, words in RUNS.items():
            with pytest.MonkeyPatch.context() as in_one:
                if name == "stopped" and rank == 1:  # in the middle of a critic's phase
                    at_call(in_one, WGANGP, "critic", 25, interrupt)
                command(notes, "train", *words, f"paths.run_dir={folder / name}")
            if name == "stopped":
                main(["resume", f"run={folder / name}"])
            torch.save(dict(notes), folder / f"{name}.{rank}.pt")
            notes.clear()
        if rank == 1:
            at_call(patched, GAN, "generator", 30, not_a_number)
        command(notes, "train", *SHARED, "model=gan", f"paths.run_dir={folder / 'spoilt'}")
        torch.save(notes, folder / f"spoilt.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(os.environ["RANK"]))
