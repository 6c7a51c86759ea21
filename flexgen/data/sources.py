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
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from flexgen.checks import first_line

Shape = tuple[int, int, int]

_ORIENTATION = 0x0112  # of EXIF
_DEEPEST = 2**16 - 1

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file's name says: Pillow's others start programs (EPS, Ghostscript)."""


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """An image file, its pixels not read yet.

    Raises:
        OSError: if it is not there, or of none of these formats.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        yield _opened(file)


def _opened(file: IO[bytes]) -> ImageFile.ImageFile:
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
    """What an image file says of itself.

    Args:
        size: (width, height) of the picture as it is seen, upright.
        mode: Pillow's word for its channels.
        transparent: whether some of it may be.
        deep: whether its channels have 16 bits.
        turned: whether the camera says that it lies on its side.
        animated: whether it holds several pictures.
    """

    size: tuple[int, int]
    mode: str
    transparent: bool
    deep: bool
    turned: bool
    animated: bool


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
        classes: names of the classes, in the order of their numbers, or None.
        invert: turn black on white into white on black.
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: Tensor | None,
        classes: Sequence[str] | None = None, *, invert: bool = False,
    ) -> None:  # fmt: skip
        self.paths = [os.fspath(path) for path in paths]
        self.labels, self.classes, self.invert = labels, classes, invert

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image:
        with open_image(self.paths[i]) as image:  # turned upright where its camera says how
            return _inverted(image) if self.invert else ImageOps.exif_transpose(image)

    def header(self, i: int, *, whole: bool = False) -> Header:
        """What file `i` says of its image; `whole` reads the pixels too, which finds all damage.

        Raises:
            OSError: or another error of Pillow's, if it cannot be read.
            ValueError: if its values have no known white.
        """
        with open_image(self.paths[i]) as image:
            _check_depth(image)
            deep = image.mode.startswith("I") or any(";16" in str(t[3]) for t in image.tile)
            orientation = image.getexif().get(_ORIENTATION, 1)
            size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
            animated = getattr(image, "is_animated", False)
            found = Header(
                size, image.mode, _is_transparent(image), deep, orientation not in (0, 1), animated
            )
            if whole:
                _eight_bits(image).load()
            return found

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

    An image of 16 bits is scaled to 8, v / 257. It is put on white where it is transparent, cut to
    the shape's aspect about its centre, resized with antialiasing, and turned to grey or colour as
    the shape has 1 or 3 channels. Of several pictures in a file the first is taken.

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
    image = _eight_bits(image)
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
    if image.mode.startswith("F"):
        raise ValueError(
            "its values are floats, of which nobody knows what white is: save it with 8 or 16 "
            "bits, or give floats as data=array"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale what Pillow would clip to white: 16 bits, which it holds as whole numbers."""
    _check_depth(image)
    if not image.mode.startswith("I"):
        return image
    values = np.array(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= _DEEPEST:
        raise ValueError(
            f"its values, {values.min()} to {values.max()}, are not of 16 bits: save it with 8 or "
            "16"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode.lower() in ("la", "pa", "rgba") or "transparency" in image.info
