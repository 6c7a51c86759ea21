"""One array in a file, read some rows at a time; no format that is unpickled."""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
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
            f"{self.path} holds the arrays {found}{missing}; say which with data.key=NAME "
            "(data_key=NAME of `flexgen reverse`)"
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

    _whole: Any = None

    def _open(self) -> None:
        self._zip = zipfile.ZipFile(self.path)
        names = [name for name in self._zip.namelist() if name.endswith(".npy")]
        name = self._member([name.removesuffix(".npy") for name in names])
        self._file = self._zip.open(f"{name}.npy")
        first = np.lib.format.read_magic(self._file) == (1, 0)
        header = np.lib.format
        read = header.read_array_header_1_0 if first else header.read_array_header_2_0
        self.shape, column_major, self._type = read(self._file)
        if column_major and len(self.shape) > 1:  # its rows lie all over the member
            self._whole = np.load(self.path, allow_pickle=False)[name]
        self.dtype = _dtype(self._type)
        self._start = self._file.tell()
        self._row = int(np.prod(self.shape[1:])) * self._type.itemsize

    def _read(self, index: Tensor) -> Tensor:
        if self._whole is not None:
            return _tensor(self._whole[index.numpy()])
        rows = np.empty((len(index), *self.shape[1:]), self._type)
        for place in index.argsort().tolist():
            self._file.seek(self._start + int(index[place]) * self._row)
            content = self._file.read(self._row)
            if len(content) != self._row:
                raise EOFError(f"row {int(index[place])} is cut short")
            rows[place] = np.frombuffer(content, self._type).reshape(self.shape[1:])
        return _tensor(rows)


class _Torch(Rows):
    """A tensor that torch.save has written, alone or in a dictionary."""

    def _open(self) -> None:
        try:
            try:
                content = torch.load(self.path, "cpu", weights_only=True, mmap=True)
            except RuntimeError:  # written in the old format, which cannot be mapped
                content = torch.load(self.path, "cpu", weights_only=True)
        except UnpicklingError as error:
            raise ValueError("it holds more than tensors, which would have to be run") from error
        found = content if isinstance(content, dict) else {"": content}
        tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        self._x = content if isinstance(content, Tensor) else tensors[self._member([*tensors])]
        self._x = self._x.detach()
        self.shape, self.dtype = tuple(self._x.shape), self._x.dtype

    def _read(self, index: Tensor) -> Tensor:
        return self._x[index]


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


class _Column(Rows):
    """Rows of one number each, which lie in a file without an axis of their own."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        super().__init__(rows.path, rows.key)

    def _open(self) -> None:
        self.shape, self.dtype = (*self._rows.shape, 1), self._rows.dtype

    def _read(self, index: Tensor) -> Tensor:
        return self._rows.read(index).unsqueeze(1)


_KINDS: dict[str, type[Rows]] = {
    ".npy": _Npy, ".npz": _Npz, ".pt": _Torch, ".pth": _Torch, ".safetensors": _Safetensors,
}  # fmt: skip

OF_TYPE = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0), torch.bool: (0.0, 1.0)}
"""Black and white of images, where the type of their numbers says what they are."""


def open_array(path: Path, key: str | None = None, *, numbers: bool = False) -> Rows:
    """The array of a file, not read yet.

    Args:
        path: a .npy, .npz, .pt or .safetensors file.
        key: name of the array; needed where a file holds several.
        numbers: whether an example may be a single number, as a label is.

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
    if path.suffix.lower() not in _KINDS:
        raise ValueError(
            f"`path` must end in .npy, .npz, .pt or .safetensors with data=array, got {path}; "
            "save the array with numpy.save, or read columns of text with data=table"
        )
    rows = _KINDS[path.suffix.lower()](path, key)
    if len(rows.shape) == 1 and not numbers:
        rows = _Column(rows)
    if not rows.shape or 0 in rows.shape:
        raise ValueError(
            f"the array in {path} must hold at least one example along its first axis, (n, …), "
            f"got shape {tuple(rows.shape)}"
        )
    if rows.dtype.is_complex:
        raise ValueError(
            f"the array in {path} must hold real numbers, got {rows.dtype}; give real and "
            "imaginary parts as channels"
        )
    return rows


def not_finite(x: Tensor) -> Tensor:
    """Numbers of the rows that hold NaN, or what is infinite as float32, `(m,)`."""
    return (~x.float().flatten(1).isfinite().all(1)).nonzero().squeeze(1)


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
