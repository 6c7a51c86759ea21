"""`flexgen resume run=…`: go on exactly where a run stopped, in its own directory."""

from omegaconf import DictConfig

from flexgen.cli.app import Command
from flexgen.cli.train import show
from flexgen.runs.compose import plain
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("resume", argv, _resume, on_run=True)


def _resume(cfg: DictConfig) -> None:
    config = plain(cfg)
    with importing():
        from flexgen.runs.train import resume
    from flexgen.runs.trust import rebuilding

    with rebuilding(config["paths"]["run_dir"]):
        resume(config, cfg.checkpoint)
    show(config)
