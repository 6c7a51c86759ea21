"""`metrics.csv`: a row for each generator step at which a run logged something."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from flexgen.files import write_atomically

__all__ = ["COUNTERS", "MetricsTable", "parse_metrics", "read_metrics", "write_metrics"]

COUNTERS = ("batches", "critic_steps", "generator_steps", "images_seen")
"""The columns that every row has, in whole numbers."""


class MetricsTable(NamedTuple):
    """The metrics of a run.

    Args:
        columns: the counters and the metrics' names; none for an empty file.
        rows: each row's values by column; a cell left empty is not in it.
        cut_short: whether a last line without its end, cut by a kill, was left out.
    """

    columns: list[str]
    rows: list[dict[str, float]]
    cut_short: bool


def read_metrics(path: Path) -> MetricsTable:
    """The table of a `metrics.csv`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        return parse_metrics(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}; correct or remove that line") from error


def parse_metrics(text: str) -> MetricsTable:
    """The table of the text of a `metrics.csv`, whoever wrote it.

    Raises:
        ValueError: saying what is wrong, and in which line.
    """
    whole, _, cut = text.rpartition("\n")
    reader = csv.reader(io.StringIO(whole, newline=""))
    try:
        columns = next(reader, [])
        if columns and (missing := [name for name in COUNTERS if name not in columns]):
            raise ValueError(f"line 1 has no column {', '.join(missing)}")
        if len(set(columns)) < len(columns):
            raise ValueError("line 1: a column appears twice")
        rows = [_row(columns, cells, f"line {reader.line_num}") for cells in reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    return MetricsTable(columns, rows, bool(cut))


def write_metrics(path: Path, columns: Sequence[str], rows: Iterable[dict[str, float]]) -> None:
    """Write a `metrics.csv`, whole or not at all, every digit of it.

    Raises:
        OSError: if it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda beside: beside.write_text(text.getvalue(), encoding="utf-8"))


def _row(columns: Sequence[str], cells: Sequence[str], line: str) -> dict[str, float]:
    if len(cells) > len(columns):
        raise ValueError(f"{line} has {len(cells)} cells for {len(columns)} columns")
    row: dict[str, float] = {}
    # A row older than a later column is shorter than the header: the cells are empty.
    for name, cell in zip(columns, cells, strict=False):
        if not cell:
            continue
        try:
            row[name] = int(cell) if name in COUNTERS else float(cell)
        except ValueError:
            raise ValueError(f"{line}, column {name} is not a number: {cell!r:.40}") from None
    for name in COUNTERS:
        if not 0 <= row.get(name, -1) < 2**63:
            raise ValueError(f"{line}, column {name} is empty or out of range")
    return row
