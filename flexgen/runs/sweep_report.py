"""How a sweep ends: the table of its runs, and their page."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

__all__ = ["SweepReport"]


class SweepReport(Callback):
    """Prints the table of a sweep's runs when the last cell has ended, and writes the sweep's page.

    Hydra calls it in the process that was started, whatever launcher ran the cells.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from flexgen.report import RunError, write_reports, write_table

        folder = Path(config.hydra.sweep.dir)
        try:
            write_table(folder)
            if config.get("report"):
                print(f"report: {write_reports(folder)[0]}")
        except RunError as error:
            print(f"no table of the sweep: {error}", file=sys.stderr)
