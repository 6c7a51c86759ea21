"""One array in a file, read some rows at a time; no format that is unpickled."""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import first_line


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have what fails name the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    except Exception as error:  # zlib, zipfile, numpy and safetensors each have their own
        raise ValueError(
            f"cannot read {path} ({first_line(error)}); it is cut short, damaged or no array: "
            "save it again as an array of numbers"
        ) from error


class Rows(ABC):
    """An array `(n, …)` in a file, of which rows are read when asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __init__(self, path: Path, key: str | None) -> None:
        self.path, self.key = path, key
        with _naming(path):
            self._open()

    def read(self, index: Tensor) -> Tensor:
        """Rows `(len(index), …)`, in the file's own type."""
        with _naming(self.path):
            return self._read(index)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _read(self, index: Tensor) -> Tensor: ...

    def _member(self, names: list[str]) -> str:
        if self.key is not None and self.key in names:
            return self.key
        if self.key is None and len(names) == 1:
            return names[0]
        found = ", ".join(names) or "none"
        missing = "" if self.key is None else f", not {self.key!r}"
        raise KeyError(
            f"{self.path} holds the arrays {found}{missing}; say which with data_key=NAME"
        )


class _Npy(Rows):
    """A .npy file, mapped into memory: a row is read from disk when it is looked at."""

    def _open(self) -> None:
        self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self.shape = tuple(self._array.shape)
        self.dtype = _dtype(self._array.dtype)

    def _read(self, index: Tensor) -> Tensor:
        return _tensor(self._array[index.numpy()])


class _Npz(Rows):
    """A member of a .npz file, unpacked as far as it is read.

    Going back means unpacking from the start again, so rows are best read in order.
    """

    def _open(self) -> None:
        self._zip = zipfile.ZipFile(self.path)
        names = [name for name in self._zip.namelist() if name.endswith(".npy")]
        name = self._member([name.removesuffix(".npy") for name in names])
        self._file = self._zip.open(f"{name}.npy")
        first = np.lib.format.read_magic(self._file) == (1, 0)
        header = np.lib.format
        read = header.read_array_header_1_0 if first else header.read_array_header_2_0
        self.shape, column_major, self._type = read(self._file)
        if column_major and len(self.shape) > 1:
            raise ValueError(f"array {name!r} lies column by column; save it with order C")
        self.dtype = _dtype(self._type)
        self._start = self._file.tell()
        self._row = int(np.prod(self.shape[1:])) * self._type.itemsize

    def _read(self, index: Tensor) -> Tensor:
        rows = np.empty((len(index), *self.shape[1:]), self._type)
        for place in index.argsort().tolist():
            self._file.seek(self._start + int(index[place]) * self._row)
            content = self._file.read(self._row)
            if len(content) != self._row:
                raise EOFError(f"row {int(index[place])} is cut short")
            rows[place] = np.frombuffer(content, self._type).reshape(self.shape[1:])
        return _tensor(rows)


class _Safetensors(Rows):
    """A tensor of a .safetensors file."""

    def _open(self) -> None:
        from safetensors import safe_open

        self._file = safe_open(self.path, "pt")
        self._slice = self._file.get_slice(self._member(list(self._file.keys())))
        self.shape = tuple(self._slice.get_shape())
        self.dtype = self._slice[:0].dtype if self.shape else torch.float32

    def _read(self, index: Tensor) -> Tensor:
        if len(index) and (index.diff() == 1).all():
            rows: Tensor = self._slice[int(index[0]) : int(index[-1]) + 1]
            return rows
        return torch.cat([self._slice[i : i + 1] for i in index.tolist()])


_KINDS: dict[str, type[Rows]] = {".npy": _Npy, ".npz": _Npz, ".safetensors": _Safetensors}


def open_array(path: Path, key: str | None = None, *, numbers: bool = False) -> Rows:
    """The array of a file, not read yet.

    Args:
        path: a .npy, .npz or .safetensors file.
        key: name of the array; needed where a file holds several.
        numbers: whether an example may be a number of any type, as a label is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another type or damaged, holds no or several arrays, or its array is
            no batch of numbers.
    """
    if path.is_dir():
        raise ValueError(
            f"`path` must be one file with data=array, got the folder {path}; "
            "a folder of images is read with data=folder"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; set `path` to an array's file")
    if path.suffix not in _KINDS:
        raise ValueError(
            f"`path` must end in .npy, .npz or .safetensors with data=array, got {path}; "
            "save the array with numpy.save"
        )
    rows = _KINDS[path.suffix](path, key)
    if len(rows.shape) < (1 if numbers else 2) or not rows.shape[0]:
        raise ValueError(
            f"the array in {path} must hold at least one example along its first axis, (n, …), "
            f"got shape {tuple(rows.shape)}"
        )
    if not numbers and rows.dtype != torch.uint8 and not rows.dtype.is_floating_point:
        raise ValueError(
            f"the array in {path} must be uint8 in [0, 255] or floating point, got {rows.dtype}; "
            "convert it"
        )
    return rows


def _dtype(dtype: Any) -> torch.dtype:
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled")
    try:
        return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
    except TypeError as error:
        raise ValueError(f"its type {dtype} is not one of numbers that torch knows") from error


def _tensor(rows: Any) -> Tensor:
    # A copy in this machine's byte order: a mapped file is read-only, which torch warns about.
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=True))
