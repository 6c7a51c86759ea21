"""From plain configuration to objects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import nn

from flexgen.callbacks import Measurement, PriorRefit
from flexgen.models import Generative
from flexgen.runs.trust import rebuilding
from flexgen.training import isolated_rng, latest_checkpoint, load_checkpoint

__all__ = ["Parts", "build", "build_trainer", "find_checkpoint", "load_trained", "start_prior"]


@dataclass
class Parts:
    """The objects of a run, and the checkpoint that the model holds, if any."""

    model: Generative
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
    model: Generative = instantiate(config["model"])
    # A callback with weights, a refit's prior, must not shift what training draws.
    with isolated_rng(config["seed"]):
        callbacks = {n: instantiate(c) for n, c in config["callbacks"].items() if c is not None}
    for callback in callbacks.values():
        if isinstance(callback, PriorRefit):
            callback.add_stages(model)
    _check_fit(model, data)
    data.prepare_data()
    data.setup("fit")
    start_prior(model.prior, data, config["seed"])
    return Parts(model, data, callbacks)


def start_prior(prior: nn.Module, data: Any, seed: int) -> None:
    """Put every part of a prior that starts from training data at a random few of them.

    Raises:
        ValueError: if it wants more than there are.
    """
    for module in prior.modules():
        if hasattr(module, "start"):
            wanted: int = module.num_components  # type: ignore[assignment]
            x, _ = data.split("train", min(wanted, data.size("train")), seed)
            module.start(x)  # type: ignore[operator]


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


def _check_fit(model: Generative, data: Any) -> None:
    """Have the parts meet once: a misfit is found now, not in the first step."""
    shape, data_range = tuple(data.shape), data.range and tuple(data.range)
    with model.evaluating(), torch.random.fork_rng(devices=[]):
        model.check_fit(shape, data_range)
