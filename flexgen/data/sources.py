"""Images by index, wherever they lie: in memory, in files, inside an archive or a database.

A source opens one image at a time, so that a few images out of millions cost a few reads;
`decode` brings them to one shape as one uint8 tensor.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flexgen.checks import first_line

Shape = tuple[int, int, int]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file's name says: Pillow's others start programs (EPS, Ghostscript)."""


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file, its pixels not read yet.

    Raises:
        OSError: if it is not there, or of none of these formats.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        yield _opened(file)


def _opened(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise OSError(f"it is none of {', '.join(FORMATS)}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a pipe that nobody writes to as an empty file."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Source(Protocol):
    """Some images in a fixed order."""

    labels: Tensor | None
    """Classes, `(n,)` long, or None."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> Image.Image:
        """Image `i`; reading may fail in any way, `decode` turns that into one clear line."""

    def name(self, i: int) -> str:
        """What a person would call image `i`, such as its path."""


class Header(NamedTuple):
    """What an image file says of itself before its pixels are read."""

    size: tuple[int, int]
    mode: str
    transparent: bool


class Pixels:
    """Images already in memory.

    Args:
        pixels: uint8, `(n, channels, height, width)`, with 1 or 3 channels.
        labels: classes, `(n,)`, or None.
        title: name of the data set, for messages.

    Raises:
        ValueError: if the type or shape is another, or labels and images differ in number.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None, title: str) -> None:
        if pixels.dtype != torch.uint8:
            raise ValueError(
                f"the images of {title} must be uint8 in [0, 255], got {pixels.dtype}; "
                "scale them to [0, 255], round, and call .to(torch.uint8)"
            )
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"the images of {title} must have shape (n, 1 or 3, height, width), "
                f"got {tuple(pixels.shape)}"
            )
        if labels is not None and len(labels) != len(pixels):
            raise ValueError(
                f"{title} has {len(pixels)} images but {len(labels)} labels; "
                "one of its files is cut short or from another set: fetch it again"
            )
        self.pixels, self.title = pixels, title
        self.labels = None if labels is None else labels.long()

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i].permute(1, 2, 0).squeeze(2).numpy())

    def name(self, i: int) -> str:
        return f"{i} of {self.title}"


class Files:
    """Image files, each opened when it is asked for.

    Args:
        paths: the files.
        labels: classes, `(n,)`, or None.
        invert: turn black on white into white on black.
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: Tensor | None, invert: bool = False
    ) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.labels, self.invert = labels, invert

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image:
        with open_image(self.paths[i]) as image:  # turned upright where its camera says how
            return _inverted(image) if self.invert else ImageOps.exif_transpose(image)

    def header(self, i: int) -> Header:
        """The header of image `i`, which is quick to read.

        Raises:
            ValueError: if it is no image, or not one of 8 bits; the message names it.
        """
        with _naming(self, i), open_image(self.paths[i]) as image:
            _check_depth(image)
            return Header(image.size, image.mode, _is_transparent(image))

    def name(self, i: int) -> str:
        return printable(self.paths[i])


@dataclass(eq=False)
class Encoded:
    """Image files held in memory undecoded: those of an archive small enough to read whole.

    Args:
        blobs: contents of the files.
        names: their paths inside the archive.
        labels: classes, `(n,)`, or None.
        invert: turn black on white into white on black.
    """

    blobs: Sequence[bytes]
    names: Sequence[str]
    labels: Tensor | None
    invert: bool = False

    def __len__(self) -> int:
        return len(self.blobs)

    def open(self, i: int) -> Image.Image:
        image = _opened(io.BytesIO(self.blobs[i]))
        return _inverted(image) if self.invert else image

    def name(self, i: int) -> str:
        return self.names[i]


class Database:
    """The images of an LMDB folder, as LSUN is published; needs the package `lmdb`.

    torchvision's own reader leaves a cache file in the working directory, named by the letters of
    the path alone, so that two folders can be taken for one another; this one keeps no file.

    Args:
        folder: folder with `data.mdb`.
    """

    labels: Tensor | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = os.fspath(folder)
        with _environment(self.folder).begin() as transaction:
            # A fixed-width array holds LSUN's three million keys in a tenth of a list's memory.
            self.keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))

    def __len__(self) -> int:
        return len(self.keys)

    def open(self, i: int) -> Image.Image:
        with _environment(self.folder).begin() as transaction:
            return _opened(io.BytesIO(transaction.get(bytes(self.keys[i]))))

    def name(self, i: int) -> str:
        return f"{bytes(self.keys[i]).decode(errors='replace')} in {self.folder}"


_environments: dict[str, tuple[int, Any]] = {}


def _environment(folder: str) -> Any:
    """A database, opened: LMDB wants one in a process, and none that a fork inherited."""
    import lmdb

    process, environment = _environments.get(folder, (None, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False)
        _environments[folder] = os.getpid(), environment
    return environment


def decode(source: Source, index: Tensor, shape: Shape, crop: int | None = None) -> Tensor:
    """Read some images of a source and bring them to one shape.

    An image is put on white where it is transparent, cut to the shape's aspect about its centre,
    resized with antialiasing, and turned to grey or colour as the shape has 1 or 3 channels.

    Args:
        source: the images.
        index: which of them, `(n,)`.
        shape: (channels, height, width) of the result, uint8 `(n, *shape)`.
        crop: edge in pixels of a square cut out of the centre first.

    Raises:
        ValueError: if an image cannot be read; the message names it.
    """
    if isinstance(source, Pixels) and source.pixels.shape[1:] == shape and crop is None:
        return source.pixels[index]
    x = torch.empty((len(index), *shape), dtype=torch.uint8)
    for row, i in enumerate(index.tolist()):
        with _naming(source, i):
            x[row] = _fit(source.open(i), shape, crop)
    return x


def printable(path: str) -> str:
    r"""A path as text that no terminal obeys; bytes that are no UTF-8 become `\xe9`."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def _naming(source: Source, i: int) -> Iterator[None]:
    """Have what fails name image `i`."""
    try:
        yield
    except Exception as error:  # Pillow raises a dozen kinds on broken files
        raise ValueError(
            f"cannot read the image {source.name(i)} ({first_line(error)}); replace it or remove it"
        ) from error


def _inverted(image: Image.Image) -> Image.Image:
    return ImageOps.invert(image.convert("L"))


def _fit(image: Image.Image, shape: Shape, crop: int | None) -> Tensor:
    channels, height, width = shape
    _check_depth(image)
    if _is_transparent(image):
        # What hides under transparent pixels is not in the picture: editors leave anything there.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if crop is not None:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    # A copy: the array of an image is read-only, which torch warns about.
    return torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)


def _check_depth(image: Image.Image) -> None:
    """Refuse what converting to 8 bits would clip to white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} is not 8 bits a channel: convert it to 8 bits")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode.lower() in ("la", "pa", "rgba") or "transparency" in image.info
