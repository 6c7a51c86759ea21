"""One array of one's own as a data module."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flexgen.data.array_files import OF_TYPE, not_finite, open_array
from flexgen.data.binarised import StaticDraw, check_binarise
from flexgen.data.inspection import REFUSE
from flexgen.data.module import SPLIT_SEED, check_range
from flexgen.data.readers import ArrayFile
from flexgen.data.rows import RowsData
from flexgen.data.stream import Range, Split

_CHUNK = 1024
_RANGES: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


@dataclass
class _Rows:
    """A split that is some rows of an array; `levels` makes [0, 1] the 256 levels of uint8."""

    reader: ArrayFile
    index: Tensor
    labels: Tensor | None
    levels: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: Tensor) -> Tensor:
        x = self.reader.pixels(self.index[index])
        if self.levels and x.dtype != torch.uint8:
            return (x * 255).round().to(torch.uint8)
        return x


class ArrayData(RowsData):
    """The examples of one array, `(n, …)`, in a .npy, .npz, .pt or .safetensors file.

    Images are `(n, height, width)`, `(n, channels, height, width)` or `(n, height, width,
    channels)`; see :class:`~flexgen.data.readers.ArrayFile`. `(n, d)` are vectors, which stay as
    they are; `(n,)` are n numbers.

    Args:
        root: the file.
        shape: of an example; found from the array if None. Images are cut and resized to it.
        range: (low, high) that black and white of images map to; if None, [0, 1] for bool and for
            floats in it, else [-1, 1]. Of vectors, if None, there are no bounds.
        key: name of the array, where the file holds several.
        labels: name of another array in the file, whole numbers `(n,)`: the classes.
        data_range: (low, high) of black and white in the file; if None, as its type says, else the
            first of [0, 1], [-1, 1] and [0, 255] that holds all values.
        name: of the data set.
        batch_size: examples in a training batch.
        seed: of the order of training batches, and of `augment`.
        num_validation: as :class:`RowsData` takes it, and so are the next.
        num_test: see there.
        augment: see there; an example is uint8 if the file holds that, or is binarised, else a
            float in the range.
        unusable: see there.
        binarise: as :class:`~flexgen.data.ImageData` takes it; of 256 levels of grey, to which
            other numbers are rounded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an argument is out of bounds, or the file holds no such array.
    """

    def __init__(
        self,
        root: str | Path,
        shape: Sequence[int] | None = None,
        range: Sequence[float] | None = None,
        key: str | None = None,
        labels: str | None = None,
        data_range: Sequence[float] | None = None,
        name: str = "array",
        batch_size: int = 100,
        seed: int = 0,
        num_validation: int | None = None,
        num_test: int | None = None,
        augment: Sequence[Callable[[Tensor], Tensor]] | None = None,
        unusable: str = REFUSE,
        binarise: Literal["static", "dynamic"] | None = None,
    ) -> None:
        shape = array_shape(root, key) if shape is None else tuple(shape)
        range = array_range(root, key, data_range) if range is None else range
        check_binarise(binarise, shape, range)
        name = name if binarise is None else f"{name}_{binarise}"
        super().__init__(
            root=root, name=name, shape=shape, range=range, batch_size=batch_size, seed=seed,
            num_validation=num_validation, num_test=num_test, augment=augment, unusable=unusable,
        )  # fmt: skip
        self.key, self.labels = key, labels
        self.dynamic, self._binary = binarise == "dynamic", binarise is not None
        self.data_range = None if data_range is None else check_range("data_range", data_range)

    def _build(self) -> dict[str, Split]:
        given, bounds = self.data_range, self.range or (0.0, 1.0)
        if self.range is None:
            given = bounds  # nothing is moved
        elif len(self.shape) == 3 and given is None:
            given = _black_and_white(self.root, self.key)
        reader = ArrayFile(self.root, self.shape, bounds, key=self.key, data_range=given)
        size, extent = len(reader), _extent(self.root, self.key)
        if self.range is not None:
            low, high = given or self.range
            if extent.low < low or extent.high > high:
                raise ValueError(
                    f"the values in {self.root} must lie in [{low:g}, {high:g}], got "
                    f"{extent.low:.4g} to {extent.high:.4g}; set `data.data_range` to what black "
                    "and white are there"
                )
        self._notes += reader.describe()
        if given and given != bounds and OF_TYPE.get(extent.dtype) != given:
            self._notes.append(
                f"moved from [{given[0]:g}, {given[1]:g}] to [{bounds[0]:g}, {bounds[1]:g}]"
            )
        labels = self._read_labels(size)
        rows = self.usable(torch.tensor(extent.bad, dtype=torch.long), size, "hold NaN or infinity")
        splits: dict[str, Split] = {}
        for part, index in self.cut(rows, size, labels).items():
            of_rows = None if labels is None else labels[index]
            splits[part] = _Rows(reader, index, of_rows, levels=self._binary)
            if self._binary:
                splits[part] = StaticDraw(splits[part], index, SPLIT_SEED, 0)
        if self._binary and extent.dtype not in (torch.uint8, torch.bool):
            self._notes.append("rounded to 256 levels of grey, each the chance of a 1")
        return splits

    def _read_labels(self, size: int) -> Tensor | None:
        if self.labels is None:
            return None
        rows = open_array(self.root, self.labels)
        found = rows.read(torch.arange(rows.shape[0])).double()
        if found.shape != (size, 1) or not (found == found.round()).all() or found.min() < 0:
            raise ValueError(
                f"`labels` must name whole numbers from 0 up, one for each of {size} examples, got "
                f"{self.labels!r} of shape {rows.shape} from {float(found.min()):g} to "
                f"{float(found.max()):g}; set `data.labels`"
            )
        return found.squeeze(1).long()


def array_shape(root: str | Path, key: str | None = None) -> tuple[int, ...]:
    """Shape of an example of an array, channels first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such array, or images with an alpha channel.
    """
    shape = open_array(Path(root), key).shape[1:]
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) != 3 or shape[0] in (1, 3):
        return shape
    if shape[2] in (1, 3):
        return (shape[2], *shape[:2])
    if 4 in (shape[0], shape[2]) and min(shape) == 4:
        raise ValueError(
            f"the images in {root} have 4 channels, {shape}: lay colour on a background, x[..., "
            ":3], or set `data.shape` if they are no RGBA"
        )
    return shape


def array_range(
    root: str | Path, key: str | None = None, data_range: Sequence[float] | None = None
) -> Range | None:
    """What black and white of an array's images are to map to; None for vectors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such array, or it is not known what black and white are.
    """
    if len(array_shape(root, key)) != 3:
        return None
    if data_range is None:
        data_range = _black_and_white(Path(root), key)
    return (0.0, 1.0) if tuple(data_range) == (0, 1) else (-1.0, 1.0)


class _Extent(NamedTuple):
    """The least and the greatest finite value of an array, its type, and rows with others."""

    low: float
    high: float
    dtype: torch.dtype
    bad: tuple[int, ...]


def _extent(path: Path, key: str | None) -> _Extent:
    # Opened first: it says best what is amiss with a file.
    open_array(path, key)
    about = os.stat(path)
    return _look_through(path, key, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=8)  # asked for once for each key that is found
def _look_through(path: Path, key: str | None, size: int, changed: int) -> _Extent:
    rows = open_array(path, key)
    if rows.dtype in OF_TYPE:
        return _Extent(*OF_TYPE[rows.dtype], rows.dtype, ())
    low, high, bad = torch.inf, -torch.inf, []
    for index in torch.arange(rows.shape[0]).split(_CHUNK):
        x = rows.read(index)
        bad += index[not_finite(x)].tolist()
        x = x[x.isfinite()]
        if len(x):
            low, high = min(low, float(x.min())), max(high, float(x.max()))
    return _Extent(low, high, rows.dtype, tuple(bad))


def _black_and_white(path: Path, key: str | None) -> Range:
    extent = _extent(path, key)
    if (known := OF_TYPE.get(extent.dtype)) is not None:
        return known
    for low, high in _RANGES:
        if low <= extent.low and extent.high <= high:
            return low, high
    raise ValueError(
        f"the values in {path} lie in [{extent.low:.4g}, {extent.high:.4g}]: what are black and "
        "white there? set `data.data_range=[low,high]`"
    )
