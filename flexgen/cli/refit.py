"""`flexgen refit run=…`: learn the data-induced prior of a run and go on training from it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.checks import check_integer
from flexgen.cli.app import Command
from flexgen.cli.train import show
from flexgen.runs.compose import plain, task_overrides
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("refit", argv, _refit, on_run=True)


def _refit(cfg: DictConfig) -> None:
    more = check_integer("more", cfg.more, 0)
    how: Any = OmegaConf.to_container(cfg.refit, resolve=True)
    config = plain(cfg)
    with importing():
        from flexgen.runs.refit import refit
    words, checkpoint = task_overrides(), cfg.checkpoint
    refit(config, Path(cfg.run), how, more=more, checkpoint=checkpoint, overrides=words)
    show(config)
