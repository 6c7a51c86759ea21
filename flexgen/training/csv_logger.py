"""Metrics as one CSV file that a resumed run continues."""

import os
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from flexgen.files import open_file, write_atomically
from flexgen.metrics_table import COUNTERS, format_line, read_columns, read_rows


class CSVLogger(Logger):
    """Writes `metrics.csv`: a row for each generator step at which something was logged.

    The columns are the step counters and then the metrics in the order of their first appearance;
    a cell is empty where a metric was not logged, and a row ends with its last value. Lightning's
    own CSV logger empties the file of a run that is resumed; this one drops the rows after the
    checkpoint and goes on.

    Rows are appended, and so cost the same however many there are. A new column has the file copied
    below a longer header.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns = list(COUNTERS)
        self._in_file = 0  # how many of them its header has; none: there is no file of ours
        self._start = self._end = 0  # of the rows in the file that get no more values
        self._rows: list[dict[str, float]] = []  # those after them, of which the last may
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
        """Go on after the rows of an earlier start up to `generator_steps`.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.path.is_file():
            return
        columns, self._start = read_columns(self.path)
        self._columns = columns or list(COUNTERS)
        before, self._end, self._rows = 0, self._start, []
        for row, length in read_rows(self.path):
            if row["generator_steps"] > generator_steps:
                break
            before, self._rows = self._end, [row]
            self._end += length
        self._end = before or self._end
        self._copy()

    @rank_zero_only
    def save(self) -> None:
        if len(self._columns) > self._in_file:
            self._copy()
        lines = [format_line([row.get(name, "") for name in self._columns]) for row in self._rows]
        try:
            with open_file(self.path, os.O_RDWR) as file:
                file.seek(self._end)
                file.write(b"".join(lines))
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            why = f"could not write {self.path}: {error.strerror}; free some disk space"
            raise OSError(why) from error
        self._end += sum(map(len, lines[:-1]))
        self._rows = self._rows[-1:]
        self._saved_at = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _copy(self) -> None:
        """Have a file of our own, with all columns, and the rows that get no more values."""
        header, length = format_line(self._columns), self._end - self._start

        def write(beside: Path) -> None:
            with open(beside, "wb") as new:
                new.write(header)
                if length:
                    with open_file(self.path) as old:
                        old.seek(self._start)
                        shutil.copyfileobj(old, new)
                new.truncate(len(header) + length)

        write_atomically(self.path, write)
        self._in_file, self._start = len(self._columns), len(header)
        self._end = self._start + length
