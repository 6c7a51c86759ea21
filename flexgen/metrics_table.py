"""`metrics.csv`: a row for each generator step at which a run logged something."""

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from flexgen.files import open_file

COUNTERS = ("batches", "critic_steps", "generator_steps", "images_seen")
"""The columns that every row has, in whole numbers."""

_BLOCK = 2**19  # bytes that are read at once: what a processor's cache holds
_IS_END = bytes(chr(i) in ",\n" for i in range(256))
_TO_SPACES = bytes.maketrans(b",", b" ")
_Column = tuple[np.ndarray, np.ndarray]  # rows, values


class MetricsTable(NamedTuple):
    """The metrics of a run, row by row.

    Args:
        columns: the counters and the metrics' names; none for an empty file.
        rows: each row's values by column; a cell left empty is not in it.
    """

    columns: list[str]
    rows: list[dict[str, float]]


class MetricsArrays(NamedTuple):
    """The metrics of a run, column by column.

    Args:
        columns: for the counters and each metric with any value, the rows that have one, int, and
            their values, float, `(m,)` both; a cell left empty is in neither.
        num_rows: how many rows there are.
        cut_short: whether a last line without its end, cut by a kill, was left out.
    """

    columns: dict[str, _Column]
    num_rows: int
    cut_short: bool


def read_metrics(path: Path) -> MetricsTable:
    """The table of a `metrics.csv`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    return MetricsTable(read_columns(path)[0], [row for row, _ in read_rows(path)])


def read_arrays(file: IO[bytes]) -> MetricsArrays:
    """The columns of an opened `metrics.csv`, whoever wrote it, in one pass.

    Raises:
        ValueError: saying what is wrong, and in which line.
    """
    names = _header(header := file.readline())
    parts: list[list[_Column]] = [[] for _ in names]
    count, rest = 0, b"" if header.endswith(b"\n") else header
    while block := file.read(_BLOCK):
        whole, end, rest = (rest + block).rpartition(b"\n")
        for part, (row, value) in zip(parts, _parse(whole + end, names, count), strict=True):
            # Half as wide as numpy's own: rows take as much memory as their values.
            part.append((np.add(row, count, dtype=np.int32, casting="unsafe"), value))
        count += whole.count(b"\n") + len(end)
    columns = {}
    for name, part in zip(names, parts, strict=True):
        if any(len(row) for row, _ in part):
            row, value = (np.concatenate(each) for each in zip(*part, strict=True))
            columns[name] = row, value
        part.clear()
    return MetricsArrays(columns, count, bool(rest))


def read_columns(path: Path) -> tuple[list[str], int]:
    """The columns of a `metrics.csv`, and at which byte its rows begin.

    Raises: as :func:`read_metrics`.
    """
    with open_file(path) as file:
        line = file.readline()
    try:
        return _header(line), len(line)
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


def _header(line: bytes) -> list[str]:
    """The columns that the first line names; none where that has no end."""
    if not line.endswith(b"\n"):
        return []
    try:
        columns = next(csv.reader([line.decode()], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"line 1: {error}") from error
    if columns and (missing := [name for name in COUNTERS if name not in columns]):
        raise ValueError(f"line 1 has no column {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise ValueError("line 1: a column appears twice")
    return columns


def _parse(block: bytes, columns: Sequence[str], before: int) -> list[_Column]:
    """The columns of whole lines, which come after so many rows."""
    if b"\r\n" in block:
        block = block.replace(b"\r\n", b"\n")
    value = np.empty(0)
    if not block.translate(None, b"0123456789.+-einfaEINFA,\n"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # at what is no number
            with suppress(DeprecationWarning, ValueError):
                value = np.fromstring(block.translate(_TO_SPACES), sep=" ")
    ends = np.flatnonzero(np.frombuffer(block.translate(_IS_END), bool))
    lines = np.flatnonzero(np.frombuffer(block, np.uint8)[ends] == ord("\n"))
    width = np.diff(lines, prepend=-1)
    first = lines - width + 1
    filled = np.diff(ends, prepend=-1) > 1
    all_filled = bool(filled.all())
    place = None if all_filled else np.cumsum(filled) - 1
    ok = len(value) == (len(filled) if place is None else np.count_nonzero(filled))
    found: list[_Column] = []
    for i, name in enumerate(columns if ok and width.max(initial=0) <= len(columns) else ()):
        row = np.flatnonzero(width > i)
        cell = first[row] + i
        if place is not None:
            row, cell = row[filled[cell]], place[cell[filled[cell]]]
        found.append((row, value.take(cell)))
        if name in COUNTERS:
            counter = found[-1][1]
            # Above, the floats are not all the whole numbers.
            whole = (counter >= 0) & (counter < 2**53) & (counter == np.floor(counter))
            ok = ok and len(counter) == len(lines) and bool(whole.all())
    if ok and len(found) == len(columns):
        return found
    # Something is wrong, or at least unusual.
    rows = [
        _row(columns, line.split(","), f"line {before + i}")
        for i, line in enumerate(block.decode().split("\n")[:-1], 2)
    ]
    held = [[i for i, row in enumerate(rows) if name in row] for name in columns]
    return [
        (np.array(at, int), np.array([rows[i][name] for i in at], float))
        for name, at in zip(columns, held, strict=True)
    ]


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
