"""One array in a file, read some rows at a time; no format that is unpickled."""

import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import first_line


class Rows(Protocol):
    """An array `(n, …)` of which rows are read when asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, index: Tensor) -> Tensor:
        """Rows `(len(index), …)`, in the file's own type."""


class _Npy:
    """A .npy file, mapped into memory: a row is read from disk when it is looked at."""

    def __init__(self, path: Path) -> None:
        self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape = tuple(self._array.shape)
        self.dtype = _dtype(self._array.dtype)

    def read(self, index: Tensor) -> Tensor:
        return _tensor(self._array[index.numpy()])


class _Npz:
    """A member of a .npz file, unpacked as far as it is read.

    Going back means unpacking from the start again, so rows are best read in order.
    """

    def __init__(self, path: Path, key: str | None) -> None:
        self._zip = zipfile.ZipFile(path)
        names = [name for name in self._zip.namelist() if name.endswith(".npy")]
        name = _member([name.removesuffix(".npy") for name in names], key, path)
        self._file = self._zip.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        self.shape, column_major, self._type = read(self._file)
        if column_major and len(self.shape) > 1:
            raise ValueError(f"array {name!r} lies column by column; save it with order C")
        self.dtype = _dtype(self._type)
        self._start = self._file.tell()
        self._row = int(np.prod(self.shape[1:])) * self._type.itemsize

    def read(self, index: Tensor) -> Tensor:
        rows = np.empty((len(index), *self.shape[1:]), self._type)
        for place in index.argsort().tolist():
            self._file.seek(self._start + int(index[place]) * self._row)
            content = self._file.read(self._row)
            if len(content) != self._row:
                raise EOFError(f"row {int(index[place])} is cut short")
            rows[place] = np.frombuffer(content, self._type).reshape(self.shape[1:])
        return _tensor(rows)


class _Safetensors:
    """A tensor of a .safetensors file."""

    def __init__(self, path: Path, key: str | None) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, "pt")
        self._slice = self._file.get_slice(_member(list(self._file.keys()), key, path))
        self.shape = tuple(self._slice.get_shape())
        self.dtype = self._slice[:0].dtype if self.shape else torch.float32

    def read(self, index: Tensor) -> Tensor:
        if len(index) and (index.diff() == 1).all():
            rows: Tensor = self._slice[int(index[0]) : int(index[-1]) + 1]
            return rows
        return torch.cat([self._slice[i : i + 1] for i in index.tolist()])


class _Guarded:
    """Rows whose every failure names the file."""

    def __init__(self, rows: Rows, path: Path) -> None:
        self._rows, self._path = rows, path
        self.shape, self.dtype = rows.shape, rows.dtype

    def read(self, index: Tensor) -> Tensor:
        try:
            return self._rows.read(index)
        except Exception as error:  # zlib, zipfile, numpy and safetensors each have their own
            raise _damaged(self._path, error) from error


def open_array(path: Path, key: str | None = None) -> Rows:
    """The array of a file, not read yet.

    Args:
        path: a .npy, .npz or .safetensors file.
        key: name of the array; needed where a file holds several.

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
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise ValueError(
            f"`path` must end in .npy, .npz or .safetensors with data=array, got {path}; "
            "save the array with numpy.save"
        )
    try:
        if path.suffix == ".npy":
            rows: Rows = _Npy(path)
        else:
            rows = (_Npz if path.suffix == ".npz" else _Safetensors)(path, key)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    except Exception as error:  # as many kinds as there are ways to be damaged
        raise _damaged(path, error) from error
    if len(rows.shape) < 2 or not rows.shape[0]:
        raise ValueError(
            f"the array in {path} must hold at least one example along its first axis, (n, …), "
            f"got shape {tuple(rows.shape)}"
        )
    if rows.dtype != torch.uint8 and not rows.dtype.is_floating_point:
        raise ValueError(
            f"the array in {path} must be uint8 in [0, 255] or floating point, got {rows.dtype}; "
            "convert it"
        )
    return _Guarded(rows, path)


def _member(names: list[str], key: str | None, path: Path) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    found = ", ".join(names) or "none"
    missing = "" if key is None else f", not {key!r}"
    raise KeyError(f"{path} holds the arrays {found}{missing}; say which with key=NAME")


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


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read {path} ({first_line(error)}); it is cut short, damaged or no array: "
        "save it again as an array of numbers"
    )
