"""`metrics.csv`: a row for each generator step at which a run logged something."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flexgen.files import open_file

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


def read_columns(path: Path) -> tuple[list[str], int]:
    """The columns of a `metrics.csv`, and at which byte its rows begin.

    Raises: as :func:`read_metrics`.
    """
    with open_file(path) as file:
        line = file.readline()
    try:
        return parse_metrics(line.decode()).columns, len(line)
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}; correct that line") from error


def read_rows(path: Path) -> Iterator[tuple[dict[str, float], int]]:
    """Each row of a `metrics.csv` and its length in bytes; a last one that was cut is left out.

    Raises: as :func:`read_metrics`.
    """
    columns, start = read_columns(path)
    with open_file(path) as file:
        file.seek(start)
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                return
            try:
                cells = line.decode().rstrip("\r\n").split(",")
                yield _row(columns, cells, f"line {number}"), len(line)
            except ValueError as error:
                raise ValueError(f"{path} is corrupt: {error}; remove that line") from error


def format_line(cells: Sequence[object]) -> bytes:
    """A line of a `metrics.csv`, with every digit, up to its last cell that is not empty."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().rstrip(",\n").encode() + b"\n"


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
