"""A table of numbers, CSV or parquet, as a data module."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import first_line
from flexgen.data.inspection import REFUSE, some_of
from flexgen.data.rows import RowsData
from flexgen.data.stream import Points, Split

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


@dataclass(frozen=True)
class Table:
    """Columns of a file by their names, each `(n,)` of numbers, or of texts where it has others.

    A cell that is missing is NaN, or an empty text.
    """

    path: Path
    columns: dict[str, np.ndarray]

    def numbers(self, columns: Sequence[str] | None, label: str | None) -> dict[str, np.ndarray]:
        """The columns that are asked for, else all but the label's.

        Raises:
            ValueError: if one is not there, or does not hold numbers.
        """
        names = [n for n in self.columns if n != label] if columns is None else list(columns)
        for name in names:
            self._check(name, "columns")
            column = self.columns[name]
            if column.dtype.kind == "U":
                row = next(i for i, cell in enumerate(column) if _number(cell) is None)
                raise ValueError(
                    f"column {name!r} of {self.path} must hold numbers, got {str(column[row])!r} "
                    f"in row {row}; choose others with data.columns=[…], or if it names classes, "
                    f"set `data.label={name}`"
                )
        if not names:
            raise ValueError(f"{self.path} has no column of numbers; set `data.columns`")
        return {name: self.columns[name] for name in names}

    def labels(self, label: str) -> tuple[Tensor, list[str]]:
        """Class numbers `(n,)` of a column, -1 where it is missing, and their names in order."""
        self._check(label, "label")
        column = self.columns[label]
        end = "" if column.dtype.kind == "U" else ".0"  # of whole numbers
        words = [str(cell).removesuffix(end).lower() for cell in column]
        there = np.array([word not in _MISSING for word in words])
        names, found = np.unique(column[there], return_inverse=True)
        numbers = np.full(len(column), -1)
        numbers[there] = found
        return torch.from_numpy(numbers).long(), [str(n).removesuffix(end) for n in names]

    def _check(self, name: str, key: str) -> None:
        if name not in self.columns:
            raise ValueError(
                f"`{key}` must name columns of {self.path}, {some_of(self.columns, most=20)}, got "
                f"{name!r}; set `data.{key}`"
            )


class TableData(RowsData):
    """Rows of numbers in a CSV or parquet file, each column standardised by the training rows'.

    The first line of a CSV file names the columns, unless it holds numbers alone. Cells are parted
    by commas, semicolons or tabs.

    Args:
        root: the file, .csv, .tsv, .txt or .parquet; parquet needs the package `pyarrow`.
        shape: of an example, the number of columns; found from the file if None.
        range: None: there are no bounds.
        columns: names of those to take; None: all but `label`.
        label: name of a column of classes, numbers or words; None: there are none.
        standardise: (x − mean) / standard deviation, both of the training rows.
        name: of the data set.
        batch_size: rows in a training batch.
        seed: of the order of training batches, and of `augment`.
        num_validation: as :class:`RowsData` takes it, and so are the next.
        num_test: see there.
        augment: see there.
        unusable: see there; a cell that is missing is NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an argument is out of bounds, or the file holds no such table.
    """

    def __init__(
        self,
        root: str | Path,
        shape: Sequence[int] | None = None,
        range: None = None,
        columns: Sequence[str] | None = None,
        label: str | None = None,
        standardise: bool = True,
        name: str = "table",
        batch_size: int = 100,
        seed: int = 0,
        num_validation: int | None = None,
        num_test: int | None = None,
        augment: Sequence[Callable[[Tensor], Tensor]] | None = None,
        unusable: str = REFUSE,
    ) -> None:
        found = table_shape(root, columns, label)
        if shape is not None and tuple(shape) != found:
            raise ValueError(
                f"`shape` must be {found}, the columns of {root}, got {tuple(shape)}; leave out "
                "`data.shape`"
            )
        if range is not None:
            raise ValueError(f"`range` must be null for a table, got {range}; leave it out")
        super().__init__(
            root=root, name=name, shape=found, range=None, batch_size=batch_size, seed=seed,
            num_validation=num_validation, num_test=num_test, augment=augment, unusable=unusable,
        )  # fmt: skip
        self.columns, self.label, self.standardise = columns, label, standardise
        self._loc, self._scale = torch.zeros(found), torch.ones(found)

    def _build(self) -> dict[str, Split]:
        table = read_table(self.root)
        columns = table.numbers(self.columns, self.label)
        x = torch.from_numpy(np.stack([*columns.values()], 1))
        labels = None
        if self.label is not None:
            labels, self.class_names = table.labels(self.label)
        wrong = ~x.float().isfinite().all(1)
        if labels is not None:
            wrong |= labels < 0
        bad = wrong.nonzero().squeeze(1)
        cut = self.cut(self.usable(bad, len(x), "lack a cell or hold infinity"), len(x), labels)
        if self.standardise and len(cut["train"]):
            train = x[cut["train"]]
            std, self._loc = train.std(0, correction=0), train.mean(0)
            if constant := [name for name, s in zip(columns, std, strict=True) if s == 0]:
                self._notes.append(f"constant, only centred: {some_of(constant)}")
            self._scale = torch.where(std > 0, std, 1.0)
            x = (x - self._loc) / self._scale
        return {
            part: Points(x[index].float(), None if labels is None else labels[index])
            for part, index in cut.items()
        }

    def original(self, x: Tensor) -> Tensor:
        self._split("train")
        return (x.cpu() * self._scale + self._loc).float()


def table_shape(
    root: str | Path, columns: Sequence[str] | None = None, label: str | None = None
) -> tuple[int]:
    """The number of columns of numbers in a table, as the shape of an example.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such table.
    """
    return (len(read_table(Path(root)).numbers(columns, label)),)


def read_table(path: Path) -> Table:
    """All columns of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; set path=… to a table's file")
    about = path.stat()
    return _read(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> Table:
    kind = path.suffix.lower()
    if kind == ".parquet":
        columns = _parquet(path)
    elif kind in (".csv", ".tsv", ".txt"):
        columns = _text(path)
    else:
        raise ValueError(
            f"`path` must end in .csv, .tsv, .txt or .parquet with data=table, got {path}; an "
            "array is read with data=array"
        )
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} has no rows; set path=… to a table of numbers")
    return Table(path, columns)


def _text(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"cannot read {path} as a table of text ({first_line(error)}); save it as CSV in UTF-8"
        ) from error
    if not rows:
        return {}
    named = any(_number(cell) is None for cell in rows[0])
    names = [cell.strip() for cell in rows[0]] if named else [str(i) for i in range(len(rows[0]))]
    rows = rows[named:]
    if len({*names}) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} names a column {twice!r} twice; rename one in its first line")
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"row {i} of {path} must have {len(names)} cells as the first line has, got "
                f"{len(row)}; repair it"
            )
    return {name: _column([row[i] for row in rows]) for i, name in enumerate(names)}


def _column(cells: list[str]) -> np.ndarray:
    numbers = [_number(cell) for cell in cells]
    known = [n for n in numbers if n is not None]
    if len(known) < len(numbers):
        return np.array([cell.strip() for cell in cells])
    return np.array(known, np.float64)


def _number(cell: str) -> float | None:
    """A cell's number, NaN if it is missing; None if it is none."""
    if cell.strip().lower() in _MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return None


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is read with the package pyarrow, which is not installed; install it: pip "
            "install pyarrow, or save the table as CSV"
        ) from error
    try:
        table = parquet.read_table(os.fspath(path)).to_pydict()
    except Exception as error:  # pyarrow has a dozen kinds
        raise ValueError(f"cannot read {path} ({first_line(error)}); save it again") from error
    return {
        str(name): _column(["" if cell is None else str(cell) for cell in cells])
        for name, cells in table.items()
    }
