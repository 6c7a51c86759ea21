"""The images of a folder, all looked at before work begins: what is done to which."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import track

from flexgen.checks import first_line
from flexgen.data.datasets import IMAGE_SUFFIXES, files_in, images_in
from flexgen.data.sources import Files, Header, Shape, printable

UNUSABLE = REFUSE, LEAVE_OUT = "refuse", "leave_out"
"""What becomes of data that cannot be used: all are named and nothing is begun, or they are left
out and counted."""

_MOST_NAMED = 100
_QUIET = 2000  # images, which take a second or two


@dataclass(frozen=True)
class Inspection:
    """What is known of image files by opening each.

    Args:
        headers: of those that can be read, by their numbers.
        unusable: of the others, why not.
    """

    headers: dict[int, Header]
    unusable: dict[int, str]


def inspect_images(files: Files) -> Inspection:
    """Read every image whole, once: a file that is cut short has a sound header."""
    console = Console(stderr=True)
    quiet = len(files) < _QUIET or not console.is_terminal

    def look(i: int) -> Header | str:
        try:
            return files.header(i, whole=True)
        except Exception as error:  # Pillow raises a dozen kinds on broken files
            return first_line(error)

    # Pillow decodes outside of Python's lock.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(
            track(
                pool.map(look, range(len(files))), "looking at images", len(files),
                console=console, transient=True, disable=quiet,
            )
        )  # fmt: skip
    return Inspection(
        {i: header for i, header in enumerate(found) if isinstance(header, Header)},
        {i: reason for i, reason in enumerate(found) if isinstance(reason, str)},
    )


def unusable_images(root: Path, files: Files, found: Inspection, key: str) -> ValueError:
    """The error that names images that cannot be read, and the `key` by which they are left out."""
    told = _told(root, files, found)
    more = f"; and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return ValueError(
        f"cannot read {len(told)} of {len(files)} images below {printable(str(root))}: "
        f"{'; '.join(told[:_MOST_NAMED])}{more}; replace or remove them, or leave them out: "
        f"{key}={LEAVE_OUT}"
    )


def describe_images(
    root: Path, files: Files, found: Inspection, shape: Shape, *, resize: bool = True
) -> list[str]:
    """What is done to the images that can be read, and what is left out, a line each with counts.

    Args:
        root: the folder that they lie in.
        files: the images.
        found: what they are.
        shape: (channels, height, width) that they are brought to.
        resize: whether images of other sizes are resized, or refused.

    Raises:
        ValueError: if one has another size while `resize` is off.
    """
    channels, height, width = shape
    headers, lines = found.headers, []
    of_all = f"of {len(headers)} images"
    if found.unusable:
        told = "; ".join(_told(root, files, found)[:_MOST_NAMED])
        lines.append(f"left out, cannot be read: {len(found.unusable)} of {len(files)}: {told}")
    if other := [i for i, header in headers.items() if header.size != (width, height)]:
        if not resize:
            raise ValueError(
                f"with resize=false every image must be {size_text((width, height))} pixels as the "
                f"generator makes them, got {size_text(headers[other[0]].size)} in "
                f"{files.name(other[0])}; leave out resize=false to have images resized"
            )
        sizes = some_of(map(size_text, sorted({headers[i].size for i in other})))
        lines.append(
            f"resized to {size_text((width, height))} pixels, cut about the centre to that aspect: "
            f"{len(other)} {of_all} ({sizes})"
        )
    wanted, word = ("L", "grey") if channels == 1 else ("RGB", "colour")
    # One bit and 16 are grey already.
    same = {wanted, "1", "I", "I;16", "I;16B", "I;16L"} if channels == 1 else {wanted}
    if modes := Counter(header.mode for header in headers.values() if header.mode not in same):
        lines.append(f"turned to {word}: {modes.total()} {of_all} ({some_of(sorted(modes))})")
    for fact, what in (
        ("transparent", "transparent, put on white"),
        ("deep", "of 16 bits, scaled to 8"),
        ("turned", "turned upright, as the camera says"),
        ("animated", "of several pictures, the first taken"),
    ):
        if num := sum(getattr(header, fact) for header in headers.values()):
            lines.append(f"{what}: {num} {of_all}")
    return lines


def describe_others(folder: Path) -> list[str]:
    """Files in a folder that are no images: a line with their count, or none."""
    other = [path for path in files_in(folder) if path.suffix.lower() not in IMAGE_SUFFIXES]
    some = some_of(printable(str(path)) for path in other)
    return [f"left out, not named as images: {len(other)} ({some})"] if other else []


def describe_classes(folder: Path) -> list[str]:
    """Why subfolders are no classes, where they are not, a line each with counts."""
    images, lines = images_in(folder), []
    inside = {path.parts[0] for path in images if len(path.parts) > 1}
    with os.scandir(folder) as entries:
        empty = sorted(
            printable(entry.name)
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir() and entry.name not in inside
        )
    if empty:
        lines.append(f"no class, for there is no image in it: {len(empty)} ({some_of(empty)})")
    if inside and (beside := [path for path in images if len(path.parts) == 1]):
        some = some_of(printable(str(path)) for path in beside)
        lines.append(
            f"subfolders are no classes, for images lie beside them: {len(beside)} ({some})"
        )
    return lines


def common_shape(paths: Sequence[PurePosixPath], folder: Path) -> Shape:
    """(channels, height, width) in which images fit, by up to 1,000 of them.

    That of all, if they share one; else a square as high as the least edge, 64 at most. There is
    one channel where no image has colour.
    """
    few = paths[:: -(-len(paths) // 1000)]
    files = Files([folder / path for path in few], None)
    headers = []
    for i in range(len(files)):
        try:
            headers.append(files.header(i))
        except Exception:  # told of when all are looked at
            continue
    if not headers:
        raise unusable_images(folder, files, inspect_images(files), "data.unusable")
    grey = all(h.mode in ("1", "L", "LA", "La") or h.mode.startswith("I") for h in headers)
    sizes = {header.size for header in headers}
    width, height = sizes.pop()
    if sizes:
        width = height = min(64, width, height, *(min(size) for size in sizes))
    return (1 if grey else 3, height, width)


def _told(root: Path, files: Files, found: Inspection) -> list[str]:
    """Names of images that cannot be read, and why."""
    names = {i: printable(os.path.relpath(files.paths[i], root)) for i in found.unusable}
    return [f"{names[i]} ({reason})" for i, reason in found.unusable.items()]


def size_text(size: Sequence[int]) -> str:
    """A size as a person writes it."""
    return "×".join(str(edge) for edge in size)


def some_of(words: Iterable[str], most: int = 3) -> str:
    """The first few words, and whether there are more."""
    first = list(islice(words, most + 1))
    return ", ".join(first[:most]) + (", …" if len(first) > most else "")
