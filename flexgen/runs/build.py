"""From plain configuration to objects."""

from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from torch import nn

from flexgen.callbacks import PriorRefit
from flexgen.models import Generative
from flexgen.training import isolated_rng

__all__ = ["Objects", "build", "build_trainer", "instantiate", "start_prior"]

Objects = tuple[Generative, Any, dict[str, pl.Callback]]
"""A model, its data and its callbacks by their names."""


def instantiate(config: dict[str, Any], **given: Any) -> Any:
    """The object that a configuration's `_target_` names, built with its other keys and `given`.

    Raises:
        InstantiationException: if it cannot be built; its cause is the reason.
    """
    return hydra.utils.instantiate(config, **given)


def build(config: dict[str, Any]) -> Objects:
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
    return model, data, callbacks


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


def _check_fit(model: Generative, data: Any) -> None:
    """Have the parts meet once: a misfit is found now, not in the first step."""
    shape, data_range = tuple(data.shape), data.range and tuple(data.range)
    with model.evaluating(), torch.random.fork_rng(devices=[]):
        model.check_fit(shape, data_range)
