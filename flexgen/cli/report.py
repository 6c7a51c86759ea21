"""`flexgen report runs/…`: one self-contained HTML page a run."""

from omegaconf import DictConfig

from flexgen.cli.app import Command
from flexgen.runs.imports import importing
from flexgen.untrusted import printable


def command(argv: list[str]) -> Command:
    return Command("report", argv, _report, on_folders=True, groups=False)


def _report(cfg: DictConfig) -> None:
    with importing():
        from flexgen.report import write_reports

    for page in write_reports(list(cfg.runs)):
        print(f"report: {printable(str(page))}")
