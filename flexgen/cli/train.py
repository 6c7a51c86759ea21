"""`flexgen train`: compose a configuration and train it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flexgen.runs.cells import keep_to_one_device, run_apart, wants_several
from flexgen.runs.compose import is_sweep, plain, run_hydra, task_overrides
from flexgen.runs.imports import importing

__all__ = ["main", "train_cell"]


def main(argv: list[str]) -> None:
    run_hydra("train", argv, _train)


def train_cell(config: dict[str, Any], overrides: list[str], number: int) -> None:
    """Train a cell of a sweep or a trial of a search.

    Args:
        config: plain; with the folder of the cell.
        overrides: that it came from.
        number: of the cell.
    """
    trainer = config["trainer"]
    if wants_several(trainer):
        run_apart(Path(config["paths"]["run_dir"]), overrides)
        return
    keep_to_one_device(trainer, number)
    _fit(config, overrides)


def _train(cfg: DictConfig) -> None:
    config = plain(cfg)
    if is_sweep():
        train_cell(config, task_overrides(), HydraConfig.get().job.num)
    else:
        _fit(config, task_overrides())


def _fit(config: dict[str, Any], overrides: list[str]) -> None:
    # torch and Lightning take seconds to import: not before the configuration is known to be right.
    with importing():
        from flexgen.runs.fit import fit_with_control

    fit_with_control(config, "train", overrides)
