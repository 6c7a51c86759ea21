"""From plain configuration to objects."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import Tensor

from flexgen.callbacks import Measurement, PriorRefit
from flexgen.models import Latent
from flexgen.runs.trust import rebuilding
from flexgen.training import isolated_rng, latest_checkpoint, load_checkpoint

__all__ = ["Parts", "build", "build_trainer", "examples", "find_checkpoint", "load_trained"]


@dataclass
class Parts:
    """The objects of a run, and the checkpoint that the model holds, if any."""

    model: Latent
    data: Any
    callbacks: dict[str, pl.Callback]
    checkpoint: Path | None = None

    @property
    def measurements(self) -> dict[str, Measurement]:
        return {k: v for k, v in self.callbacks.items() if isinstance(v, Measurement)}


def build(config: dict[str, Any]) -> Parts:
    """Seed, then build data, model and callbacks; the same seed builds the same weights.

    Raises:
        ValueError: if the networks, the prior and the data do not fit each other.
    """
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    pl.seed_everything(config["seed"], verbose=False)
    data = instantiate(config["data"])
    model: Latent = instantiate(config["model"])
    # A callback with weights, a refit's prior, must not shift what training draws.
    with isolated_rng(config["seed"]):
        callbacks = {n: instantiate(c) for n, c in config["callbacks"].items() if c is not None}
    for callback in callbacks.values():
        if isinstance(callback, PriorRefit):
            callback.add_stages(model)
    _check_fit(model, data)
    data.prepare_data()
    data.setup("fit")
    model.prior.bind(data=examples(data, config["seed"]))
    return Parts(model, data, callbacks)


def examples(data: Any, seed: int) -> Callable[[int], Tensor]:
    """A number n to n training data at random, or all if there are fewer; for priors of data."""

    def draw(n: int) -> Tensor:
        x: Tensor = data.split("train", min(n, data.size("train")), seed)[0]
        return x

    return draw


def build_trainer(config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    """The trainer with its loggers."""
    loggers = [instantiate(c) for c in config["logger"].values() if c is not None]
    trainer: pl.Trainer = instantiate(
        config["trainer"], logger=loggers or False, callbacks=callbacks
    )
    return trainer


def find_checkpoint(run_dir: Path, name: str | None) -> Path:
    """A run's last checkpoint, or the one called `name` in its checkpoints/, or at that path."""
    if name is None:
        return latest_checkpoint(run_dir)
    inside = run_dir / "checkpoints" / name
    return inside if inside.is_file() else Path(name)


def load_trained(config: dict[str, Any], run_dir: Path, checkpoint: str | None = None) -> Parts:
    """A trained run's parts, its weights and counters read from its last checkpoint or a named one.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is damaged, or does not fit the configuration.
    """
    path = find_checkpoint(run_dir, checkpoint)
    saved = load_checkpoint(path)
    with rebuilding(run_dir):
        parts = build(config)
        weights = parts.model.match_stages(saved["state_dict"])
    try:
        parts.model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} does not fit the run's configuration ({first}); "
            "leave out overrides that change the networks"
        ) from error
    parts.model.counters.load_state_dict(saved["flexgen"]["counters"])
    parts.checkpoint = path
    device = config["trainer"]["accelerator"]
    on_gpu = device in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    parts.model.to("cuda" if on_gpu else "cpu")
    return parts


def _check_fit(model: Latent, data: Any) -> None:
    """Have the parts meet once: a misfit is found now, not in the first step."""
    model.check_fit(tuple(data.shape), data.range and tuple(data.range))
