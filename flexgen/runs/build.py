"""From plain configuration to objects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from flexgen.callbacks import EarlyStopping, PriorRefit
from flexgen.files import keep_open
from flexgen.training import CheckpointFiles, Loop, isolated_rng

Objects = tuple[Loop, Any, dict[str, pl.Callback]]
"""A model, its data and its callbacks by their names."""


def instantiate(config: dict[str, Any], **given: Any) -> Any:
    """The object that a configuration's `_target_` names, built with its other keys and `given`, or
    an InstantiationException, whose cause is the reason."""
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
    model: Loop = instantiate(config["model"])
    for name, callback in config["callbacks"].items():
        if callback is not None and "_target_" not in callback:
            raise ValueError(
                f"`callbacks.{name}` has keys, and {name} is not among the callbacks; add it to "
                "callbacks=[…], or leave its keys out"
            )
    # A callback with weights, a refit's prior, must not shift what training draws.
    with isolated_rng(config["seed"]):
        callbacks = {n: instantiate(c) for n, c in config["callbacks"].items() if c is not None}
    # Early stopping looks at what the others logged.
    callbacks = dict(sorted(callbacks.items(), key=lambda c: isinstance(c[1], EarlyStopping)))
    for callback in callbacks.values():
        if isinstance(callback, PriorRefit):
            callback.add_stages(model)
    # The parts meet once: a misfit is found now, not in the first step.
    model.check_fit(tuple(data.shape), data.range and tuple(data.range))
    data.prepare_data()
    data.setup("fit")
    model.bind_data(examples(data, config["seed"]))
    return model, data, callbacks


def examples(data: Any, seed: int) -> Callable[[int], Tensor]:
    """A number n to n training data at random, or all if there are fewer; for priors of data."""
    return lambda n: data.split("train", min(n, data.size("train")), seed)[0]


def build_trainer(config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    """The trainer with its loggers."""
    loggers = [instantiate(c) for c in config["logger"].values() if c is not None]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):  # it opens its files by itself
            logger._root_dir = str(keep_open(Path(logger.log_dir)))
            logger._name = logger._version = ""
            logger._sub_dir = None
    given = {"logger": loggers or False, "callbacks": callbacks}
    trainer: pl.Trainer = instantiate(config["trainer"], **given)
    trainer.strategy.checkpoint_io = CheckpointFiles()
    return trainer
