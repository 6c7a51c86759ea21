"""`flexgen train`: compose a configuration and train it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flexgen.cli.app import Command
from flexgen.run_notes import read_notes
from flexgen.runs.cells import train_cell
from flexgen.runs.compose import is_sweep, plain, task_overrides
from flexgen.runs.errors import MeasurementFailed
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("train", argv, _train)


def _train(cfg: DictConfig) -> None:
    config = plain(cfg)
    if is_sweep():
        if train_cell(config, task_overrides(), HydraConfig.get().job.num):
            show(config)
        return
    # torch and Lightning take seconds to import: not before the configuration is known to be right.
    with importing():
        from flexgen.runs.train import train
    train(config, overrides=task_overrides())
    show(config)


def show(config: dict[str, Any]) -> None:
    """Print how a finished run compares, and where it lies; MeasurementFailed if not all was."""
    from flexgen.report import print_comparison
    from flexgen.training import rank

    if rank() > 0:
        return
    run_dir = Path(config["paths"]["run_dir"])
    if config.get("report"):
        print_comparison(run_dir)
        print(f"report: {run_dir / 'report.html'}")
    print(f"run: {run_dir}")
    MeasurementFailed.check(read_notes(run_dir))
