"""`flexgen evaluate run=…`: every measurement of a run once more, on its last checkpoint."""

from omegaconf import DictConfig

from flexgen.cli.app import Command
from flexgen.runs.compose import plain
from flexgen.runs.errors import MeasurementFailed
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("evaluate", argv, _evaluate, on_run=True)


def _evaluate(cfg: DictConfig) -> None:
    config = plain(cfg)
    with importing():
        from flexgen.report import print_values
        from flexgen.runs.run import Run

    run, failed = Run(config, cfg.checkpoint), None
    try:
        values = run.evaluate()
    except MeasurementFailed as error:
        values, failed = error.values, error
    print_values(values, f"{run.checkpoint}")
    print(f"values: {run.folder / 'evaluation.json'}")
    if failed is not None:
        raise failed
