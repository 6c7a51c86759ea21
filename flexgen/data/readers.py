"""Data that somebody points at: a folder of images or a file of one array, read a part at a time.

A reader knows what data are there without holding them. It gives any rows as floats of one shape,
so that a set larger than memory can be gone through.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from flexgen.checks import check_one_of
from flexgen.data.array_files import OF_TYPE, Rows, not_finite, open_array
from flexgen.data.datasets import IMAGE_SUFFIXES, images_in
from flexgen.data.inspection import (
    LEAVE_OUT,
    REFUSE,
    UNUSABLE,
    Inspection,
    describe_images,
    describe_others,
    inspect_images,
    size_text,
    unusable_images,
)
from flexgen.data.sources import Files, decode, printable
from flexgen.data.stream import Range, scale

_CHUNK = 1024


class Reader(Protocol):
    """Some examples in a fixed order."""

    names: list[str] | None
    """What a person calls each example, such as its path; None where a number is all there is."""

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """Examples in the range, float32 `(n, *shape)` on the CPU.

        Raises:
            ValueError: if one cannot be read, or holds NaN or infinity.
        """

    def check(self) -> list[str]:
        """Look through the data for what cannot be used; what a person should know, a line each.

        Raises:
            ValueError: if an example is not what it must be, or floats lie outside the range.
        """

    def stamp(self, index: Tensor) -> str:
        """Hexadecimal digest that changes when the files of these examples do."""


class ImageFolder:
    """All images below a folder, in the order of their paths.

    Args:
        folder: searched with its subfolders; hidden files and files of other types are left out.
        shape: (channels, height, width) of the result, with 1 or 3 channels. An image of another
            size is cut to this aspect about its centre and resized.
        range: (low, high) that black and white map to.
        resize: whether images of other sizes are resized, or refused.
        unusable: "refuse" images that cannot be read, in `check`, or "leave_out" those.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no images in it, or the shape is not that of an image.
    """

    def __init__(
        self, folder: str | Path, shape: Sequence[int], range: Range, *, resize: bool = True,
        unusable: str = REFUSE,
    ) -> None:  # fmt: skip
        check_one_of("unusable", unusable, UNUSABLE)
        self.folder = Path(folder)
        if self.folder.is_file():
            raise ValueError(
                f"`path` must be a folder of images, got the file {folder}; "
                "an array in a file is read with data=array"
            )
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; set `path` to one of images")
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                "a folder of images needs a generator of images, (1 or 3 channels, height, width), "
                f"got one whose output has shape {tuple(shape)}; "
                + (
                    "it makes channels last: permute what it returns, x.permute(0, 3, 1, 2)"
                    if len(shape) == 3 and shape[2] in (1, 3)
                    else "give its data with data=array"
                )
            )
        self.shape, self.range, self.resize = (shape[0], shape[1], shape[2]), range, resize
        paths = [self.folder / path for path in images_in(self.folder)]
        if not paths:
            raise ValueError(
                f"no images below {folder} ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "set `path` to a folder that holds some"
            )
        self._listed, self._paths = Files(paths, None), paths
        if unusable == LEAVE_OUT:
            self._paths = [paths[i] for i in self._inspection.headers]
            if not self._paths:
                raise unusable_images(self.folder, self._listed, self._inspection, "unusable")
        self._files = Files(self._paths, None)
        self.names: list[str] | None = [
            printable(path.relative_to(self.folder).as_posix()) for path in self._paths
        ]

    @cached_property
    def _inspection(self) -> Inspection:
        return inspect_images(self._listed)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: Tensor) -> Tensor:
        return scale(decode(self._files, index, self.shape), self.range)

    def check(self) -> list[str]:
        found = self._inspection
        if found.unusable and len(self) == len(self._listed):
            raise unusable_images(self.folder, self._listed, found, "unusable")
        lines = describe_images(self.folder, self._listed, found, self.shape, resize=self.resize)
        return [*lines, *describe_others(self.folder)]

    def stamp(self, index: Tensor) -> str:
        digest = hashlib.sha256()
        for path in (self._paths[i] for i in index.tolist()):
            about = path.stat()
            digest.update(os.fsencode(path.relative_to(self.folder)))
            digest.update(f"\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        return digest.hexdigest()


class ArrayFile:
    """The examples of one array, `(n, …)`, in a file: .npy, .npz, .pt or .safetensors.

    Images may come as `(n, height, width)`, `(n, channels, height, width)` or
    `(n, height, width, channels)`. Those of uint8, uint16 and bool are scaled from [0, 255],
    [0, 65535] and [0, 1] to the range. Other numbers are taken as they are, or moved from
    `data_range` to the range. Nothing in a file is run.

    Args:
        path: the file.
        shape: shape of one example in the result.
        range: (low, high) of the result.
        key: name of the array where the file holds several.
        data_range: (low, high) of the file's numbers; None: as their type says, else `usual`.
        usual: (low, high) of numbers whose type does not say; None: `range`.
        resize: whether images of other sizes are resized, or refused.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged, or its array has no examples of that shape.
    """

    names: list[str] | None = None

    def __init__(
        self, path: str | Path, shape: Sequence[int], range: Range, *, key: str | None = None,
        data_range: Range | None = None, usual: Range | None = None, resize: bool = True,
    ) -> None:  # fmt: skip
        self.path, self.shape, self.range = Path(path), tuple(shape), range
        self._rows: Rows = open_array(self.path, key)
        if data_range is None and (len(self.shape) == 3 or self._rows.dtype == torch.uint8):
            data_range = OF_TYPE.get(self._rows.dtype)
        self.data_range = data_range or usual
        self._layout = _layout(self._rows.shape, self.shape, self.path)
        size = self._found()
        if size != self.shape and len(self.shape) != 3:
            raise ValueError(
                f"the examples in {path} must have the shape {self.shape} that the generator makes,"
                f" got {size}; give data of that shape"
            )
        if size[1:] != self.shape[1:] and not resize:
            raise ValueError(
                f"with resize=false the images in {path} must be {size_text(self.shape[:0:-1])} "
                f"pixels as the generator makes them, got {size_text(size[:0:-1])}; leave out "
                "resize=false to have them resized"
            )

    def __len__(self) -> int:
        return self._rows.shape[0]

    def read(self, index: Tensor) -> Tensor:
        return scale(self.pixels(index), self.range)

    def pixels(self, index: Tensor) -> Tensor:
        """Examples `(n, *shape)`: uint8 in [0, 255], where the file holds such; else as `read`."""
        x = self._rows.read(index)
        if x.dtype == torch.uint8 and self.data_range == OF_TYPE[torch.uint8]:
            return self._fit(x.float(), (0, 255)).round().to(torch.uint8)
        if len(bad := not_finite(x)):
            raise ValueError(
                f"example {int(index[bad[0]])} of {self.path} holds NaN or infinity; "
                "every value must be finite: repair it or leave it out"
            )
        x = x.double()
        if self.data_range is not None and self.data_range != self.range:
            (low, high), (a, b) = self.data_range, self.range
            x = (x - low) / (high - low) * (b - a) + a
        return self._fit(x.float(), self.range)

    def describe(self) -> list[str]:
        """What is done to the images, a line each."""
        lines = []
        found = self._found()
        if found[1:] != self.shape[1:]:
            lines.append(
                f"resized to {size_text(self.shape[:0:-1])} pixels, cut about the centre to that "
                f"aspect: all {len(self)} images ({size_text(found[:0:-1])})"
            )
        if found[0] != self.shape[0]:
            word = "grey" if self.shape[0] == 1 else "colour"
            lines.append(f"turned to {word}: all {len(self)} images")
        return lines

    def check(self) -> list[str]:
        lines = self.describe()
        if self._rows.dtype in OF_TYPE and self.data_range == OF_TYPE[self._rows.dtype]:
            return lines
        low, high = torch.inf, -torch.inf
        for index in torch.arange(len(self)).split(_CHUNK):
            x = self.read(index)
            low, high = min(low, float(x.min())), max(high, float(x.max()))
        least, most = self.range
        margin = 1e-3 * (most - least)
        if len(self.shape) == 3 and (low < least - margin or high > most + margin):
            raise ValueError(
                f"the values in {self.path} must lie in range=[{least:g},{most:g}], got {low:.4g} "
                f"to {high:.4g}; say what range they have with data_range=[low,high]"
            )
        if len(self.shape) == 3 and least < 0 <= low and self.data_range is None:
            lines.append(
                f"no value in {self.path} is below 0, though range=[{least:g},{most:g}]; if white "
                f"is {most:g} and black 0 there, say so: data_range=[0,{most:g}]"
            )
        return lines

    def stamp(self, index: Tensor) -> str:
        about = self.path.stat()
        return hashlib.sha256(f"{about.st_size}\0{about.st_mtime_ns}".encode()).hexdigest()

    def _found(self) -> tuple[int, ...]:
        """Shape of one example in the file, channels first."""
        rows = self._rows.shape[1:]
        if self._layout == "grey":
            return (1, *rows)
        return (rows[2], *rows[:2]) if self._layout == "last" else rows

    def _fit(self, x: Tensor, range: Range) -> Tensor:
        if self._layout == "grey":
            x = x.unsqueeze(1)
        elif self._layout == "last":
            x = x.movedim(-1, 1)
        if x.shape[1:] == self.shape:
            return x.contiguous()
        channels, height, width = self.shape
        if x.shape[1] != channels:
            luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            x = (x * luma).sum(1, keepdim=True) if channels == 1 else x.expand(-1, 3, -1, -1)
        if x.shape[2:] != (height, width):
            x = _cut(x, height / width)
            x = torch.nn.functional.interpolate(
                x, (height, width), mode="bilinear", antialias=True, align_corners=False
            ).clamp(*range)
        return x.contiguous()


def _cut(x: Tensor, aspect: float) -> Tensor:
    """The middle of images, of the given height over width."""
    height, width = x.shape[2:]
    rows = min(height, max(1, round(width * aspect)))
    columns = min(width, max(1, round(height / aspect)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return x[:, :, top : top + rows, left : left + columns]


def _layout(found: tuple[int, ...], wanted: tuple[int, ...], path: Path) -> str:
    """How examples lie in an array: "as made", "grey" without channels, or channels "last"."""
    example = found[1:]
    if example == wanted or len(wanted) != 3:
        return "as made"
    if wanted[2] in (1, 3) and wanted[0] not in (1, 3):
        raise ValueError(
            f"the array in {path} must hold images as the generator makes them, channels last, "
            f"{wanted}, got {example}; permute them, x.permute(0, 2, 3, 1), at that size, or let "
            "the generator return x.permute(0, 3, 1, 2)"
        )
    if len(example) == 2 and wanted[0] in (1, 3):
        return "grey"
    if len(example) == 3:
        known = {wanted[0]} | ({1, 3} if wanted[0] in (1, 3) else set())
        if example[0] in known:
            return "as made"
        if example[2] in known:
            return "last"
    raise ValueError(
        f"the array in {path} must hold images to bring to the generator's {wanted}, (n, height, "
        f"width), (n, channels, height, width) or (n, height, width, channels), got {found}"
    )
