"""What each of two processes does for `test_processes.py`: runs in turn, and notes on each.

python -m tests.integration.ranks FOLDER    # with torchrun's environment variables
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from flexgen import codes
from flexgen.cli import main
from flexgen.models import Adversarial, Latent
from flexgen.priors import Pushforward
from tests.conftest import REFIT, SMALL

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

RUNS: dict[str, tuple[str, ...]] = {
    "gan": (*SHARED, *REFIT, "prior=masked", "model=gan"),
    "wgan": (*SHARED, "model=wgan", "model.critic_steps=2", "trainer.precision=bf16-mixed"),
    "vae": VAE,
    "normed": NORMED,
    "measured": (*NORMED, "callbacks.quality.every=4"),
    "stopped": NORMED,
}


def watch(notes: dict[str, Any]) -> None:
    """Write down codes drawn, rows reversed, priors fitted, and the state when training ends."""
    draw, find, fit = Adversarial.codes, codes.reverse, Pushforward.fit

    def drawing(self: Adversarial, *args: Any) -> torch.Tensor:
        z = draw(self, *args)
        notes.setdefault("codes", z.detach().clone())
        return z

    def finding(generator: Any, x: torch.Tensor, **options: Any) -> Any:
        notes.setdefault("reversed", []).append(len(x))
        return find(generator, x, **options)

    def fitting(*args: Any, **options: Any) -> dict[str, float]:
        notes["fits"] = notes.get("fits", 0) + 1
        return fit(*args, **options)

    def ending(self: Latent) -> None:
        notes["state"] = {name: t.clone() for name, t in self.state_dict().items()}

    Adversarial.codes, Latent.on_train_end = drawing, ending
    codes.reverse, Pushforward.fit = finding, fitting


def stop_in_one(rank: int) -> Any:
    """Have process 1 alone asked to stop, in the middle of a critic's phase."""
    taken = Adversarial.step_optimizer

    def step(self: Adversarial, optimizer: Any, learner: int) -> None:
        taken(self, optimizer, learner)
        is_critic = learner == 1
        self.stop_requested |= rank == 1 and is_critic and self.counters.critic_steps == 24

    Adversarial.step_optimizer = step
    return taken


def spoil_in_one(rank: int) -> None:
    """Have the last loss of process 1 be no number."""
    record = Latent.record

    def recording(self: Latent, name: str, loss: torch.Tensor) -> None:
        last = rank == 1 and self.counters.generator_steps == 29
        record(self, name, loss * torch.nan if last and name == "loss/generator" else loss)

    Latent.record = recording


def run(folder: Path, rank: int) -> None:
    notes: dict[str, Any] = {}
    watch(notes)
    for name, words in RUNS.items():
        taken = stop_in_one(rank) if name == "stopped" else None
        try:
            main(["train", *words, f"paths.run_dir={folder / name}"])
        except SystemExit as end:
            notes["exit"] = end.code
        if taken is not None:
            Adversarial.step_optimizer = taken
            main(["resume", f"run={folder / name}"])
        torch.save(dict(notes), folder / f"{name}.{rank}.pt")
        notes.clear()
    spoil_in_one(rank)
    try:
        main(["train", *SHARED, "model=gan", f"paths.run_dir={folder / 'spoilt'}"])
    except SystemExit as end:
        notes["exit"] = end.code
    torch.save(notes, folder / f"spoilt.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(os.environ["RANK"]))
