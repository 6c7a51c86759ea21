"""Metrics as one CSV file that a resumed run continues."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from flexgen.metrics_table import COUNTERS, read_metrics, write_metrics

__all__ = ["CSVLogger"]


class CSVLogger(Logger):
    """Writes `metrics.csv`: a row for each generator step at which something was logged.

    The columns are the step counters and then the metrics in the order of their first appearance;
    a cell is empty where a metric was not logged. Lightning's own CSV logger empties the file of
    a run that is resumed; this one drops the rows after the checkpoint and goes on.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._rows: list[dict[str, float]] = []
        self._columns = list(COUNTERS)
        self._saved_at = 0.0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Nothing: the run directory holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        last = self._rows[-1]["generator_steps"] if self._rows else None
        # A callback of Lightning's own does not know the counters: its values join the last row.
        step_known = metrics.get("generator_steps", last)
        if step_known is None:
            return
        if step_known == last:
            self._rows[-1].update(metrics)
        else:
            self._rows.append(dict(metrics))
        self._columns += [name for name in metrics if name not in self._columns]
        if time.monotonic() - self._saved_at > 5:
            self.save()

    @rank_zero_only
    def rewind(self, generator_steps: int) -> None:
        """Read the rows of an earlier start and keep those up to `generator_steps`."""
        if self.path.is_file():
            table = read_metrics(self.path)
            self._columns = table.columns or self._columns
            self._rows = [r for r in table.rows if r["generator_steps"] <= generator_steps]

    @rank_zero_only
    def save(self) -> None:
        write_metrics(self.path, self._columns, self._rows)
        self._saved_at = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
