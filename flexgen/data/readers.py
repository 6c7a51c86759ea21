"""Data that somebody points at: a folder of images or a file of one array, read a part at a time.

A reader knows what data are there without holding them. It gives any rows as floats of one shape,
so that a set larger than memory can be gone through.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from flexgen.checks import first_line
from flexgen.data.array_files import Rows, open_array
from flexgen.data.datasets import IMAGE_SUFFIXES, images_in
from flexgen.data.image_stores import Files, decode
from flexgen.data.stream import Range, scale

_CHUNK = 1024


class Reader(Protocol):
    """Some examples in a fixed order."""

    names: list[str] | None
    """What a person calls each example, such as its path; None where a number is all there is."""

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """Examples, float32 `(n, *shape)` on the CPU."""

    def check(self) -> list[str]:
        """Look through the data for what cannot be used; what a person should know, a line each."""

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

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no images in it, or the shape is not that of an image.
    """

    def __init__(
        self, folder: str | Path, shape: Sequence[int], range: Range, *, resize: bool = True
    ) -> None:
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
                f"got one whose output has shape {tuple(shape)}; give its data with data=array"
            )
        self.shape, self.range, self.resize = (shape[0], shape[1], shape[2]), range, resize
        self._names = [str(path) for path in images_in(self.folder)]
        self.names: list[str] | None = self._names
        if not self._names:
            raise ValueError(
                f"no images below {folder} ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "set `path` to a folder that holds some"
            )
        self._files = Files([self.folder / name for name in self._names], None)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: Tensor) -> Tensor:
        """Images scaled to the range.

        Raises:
            ValueError: if one cannot be read; the message names it.
        """
        return scale(decode(self._files, index, self.shape), self.range)

    def check(self) -> list[str]:
        """Read every image's header, which is quick: what is no image is found before the work.

        Raises:
            ValueError: if a file is no image, or has another size while `resize` is off.
        """
        sizes: Counter[tuple[int, int]] = Counter()
        modes: Counter[str] = Counter()
        for name in self._names:
            try:
                with Image.open(self.folder / name) as image:
                    sizes[image.size] += 1
                    modes[image.mode] += 1
                    size = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(
                    f"cannot read the image {self.folder / name} ({first_line(error)}); "
                    "replace it or remove it"
                ) from error
            if not self.resize and size != (self.shape[2], self.shape[1]):
                raise ValueError(
                    f"with resize=false every image must be {_size(self.shape[:0:-1])} pixels as "
                    f"the generator makes them, got {_size(size)} in {self.folder / name}; "
                    "leave out resize=false to have images resized"
                )
        return [*self._resized(sizes), *self._converted(modes), *self._left_out()]

    def stamp(self, index: Tensor) -> str:
        """Digest of the names, sizes and times of change."""
        digest = hashlib.sha256()
        for i in index.tolist():
            about = (self.folder / self._names[i]).stat()
            digest.update(f"{self._names[i]}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def _resized(self, sizes: Counter[tuple[int, int]]) -> list[str]:
        _, height, width = self.shape
        other = {size: n for size, n in sizes.items() if size != (width, height)}
        if not other:
            return []
        return [
            f"resized to {width}×{height} pixels, cut about the centre to that aspect: "
            f"{sum(other.values())} of {len(self)} images ({_some(map(_size, sorted(other)))})"
        ]

    def _converted(self, modes: Counter[str]) -> list[str]:
        wanted, word = ("L", "grey") if self.shape[0] == 1 else ("RGB", "colour")
        other = {mode: n for mode, n in modes.items() if mode != wanted}
        if not other:
            return []
        many = f"{sum(other.values())} of {len(self)} images"
        return [f"turned to {word}: {many} ({_some(sorted(other))})"]

    def _left_out(self) -> list[str]:
        known = set(self._names)
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        other = sorted(
            path.as_posix()
            for path in found
            if path.as_posix() not in known and not any(p.startswith(".") for p in path.parts)
        )
        if not other:
            return []
        return [f"left out, not named as images: {len(other)} ({_some(other)})"]


class ArrayFile:
    """The examples of one array, `(n, …)`, in a file: .npy, .npz or .safetensors.

    Images may come as `(n, height, width)`, `(n, channels, height, width)` or
    `(n, height, width, channels)`. uint8 is scaled from [0, 255] to the range. Floats are taken as
    they are, or moved from `data_range` to the range. No file is unpickled.

    Args:
        path: the file.
        shape: shape of one example in the result.
        range: (low, high) of the result.
        key: name of the array where the file holds several.
        data_range: (low, high) of floats in the file; `range` if None.
        resize: whether images of other sizes are resized, or refused.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged, or its array has no examples of that shape.
    """

    names: list[str] | None = None

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        range: Range,
        *,
        key: str | None = None,
        data_range: Range | None = None,
        resize: bool = True,
    ) -> None:
        self.path, self.shape, self.range = Path(path), tuple(shape), range
        self.data_range = data_range
        self._rows: Rows = open_array(self.path, key)
        self._layout = _layout(self._rows.shape, self.shape, self.path)
        size = self._found()
        if size != self.shape and len(self.shape) != 3:
            raise ValueError(
                f"the examples in {path} must have the shape {self.shape} that the generator makes,"
                f" got {size}; give data of that shape"
            )
        if size[1:] != self.shape[1:] and not resize:
            raise ValueError(
                f"with resize=false the images in {path} must be {_size(self.shape[:0:-1])} pixels "
                f"as the generator makes them, got {_size(size[:0:-1])}; leave out resize=false to "
                "have them resized"
            )

    def __len__(self) -> int:
        return self._rows.shape[0]

    def read(self, index: Tensor) -> Tensor:
        """Examples in the range.

        Raises:
            ValueError: if one holds NaN or infinity, or the file is cut short.
        """
        x = self._rows.read(index)
        if x.is_floating_point():
            bad = ~x.flatten(1).isfinite().all(1)
            if bad.any():
                raise ValueError(
                    f"example {int(index[bad][0])} of {self.path} holds NaN or infinity; "
                    "every value must be finite: repair it or leave it out"
                )
            x = x.float()
            if self.data_range is not None and self.data_range != self.range:
                (low, high), (a, b) = self.data_range, self.range
                x = (x - low) / (high - low) * (b - a) + a
        else:
            x = scale(x, self.range)
        return self._fit(x)

    def check(self) -> list[str]:
        """Go through the values once.

        Raises:
            ValueError: if an example holds NaN or infinity, or floats lie outside the range.
        """
        lines = []
        if self._found()[1:] != self.shape[1:]:
            lines.append(
                f"resized to {_size(self.shape[:0:-1])} pixels, cut about the centre to that "
                f"aspect: all {len(self)} images ({_size(self._found()[:0:-1])})"
            )
        if self._found()[0] != self.shape[0]:
            word = "grey" if self.shape[0] == 1 else "colour"
            lines.append(f"turned to {word}: all {len(self)} images")
        if self._rows.dtype == torch.uint8:
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
        """Digest of the file's size and time of change, the same for all examples."""
        about = self.path.stat()
        return hashlib.sha256(f"{about.st_size}\0{about.st_mtime_ns}".encode()).hexdigest()

    def _found(self) -> tuple[int, ...]:
        """Shape of one example in the file, channels first."""
        rows = self._rows.shape[1:]
        if self._layout == "grey":
            return (1, *rows)
        return (rows[2], *rows[:2]) if self._layout == "last" else rows

    def _fit(self, x: Tensor) -> Tensor:
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
            ).clamp(*self.range)
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


def _size(size: Sequence[int]) -> str:
    return "×".join(str(edge) for edge in size)


def _some(words: Iterable[str]) -> str:
    first = list(islice(words, 4))
    return ", ".join(first[:3]) + (", …" if len(first) > 3 else "")
