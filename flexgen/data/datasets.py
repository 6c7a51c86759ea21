"""How each data set is found on disk and read into its official parts."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flexgen.data.sources import Database, Encoded, Files, Pixels, Source

Parts = dict[str, Source]

_VALIDATION = ("validation", "valid", "val")

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Origin(ABC):
    """A place to read a data set from.

    Attributes:
        has_fetch: whether it can be downloaded.
    """

    has_fetch: ClassVar[bool] = False

    def fetch(self, root: Path) -> None:
        """Download what is not there yet."""
        raise NotImplementedError

    @abstractmethod
    def read(self, root: Path) -> Parts:
        """The parts kept apart by the authors, "train", "test", maybe "validation"; or "all".

        `root` is known to hold the files that the table lists.
        """


@dataclass(frozen=True)
class Digits(Origin):
    """scikit-learn's digits, inside its package: 17 grey levels, spread over [0, 255]."""

    def read(self, root: Path) -> Parts:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))
        return {"all": Pixels(pixels.unsqueeze(1), torch.from_numpy(digits.target), "digits")}


@dataclass(frozen=True)
class Torchvision(Origin):
    """A data set of `torchvision.datasets`.

    Args:
        dataset: name of the class.
        parts: for each official part, what else that class takes to build it.
        folder: folder inside `root` that the class is given as its root.
    """

    has_fetch = True

    dataset: str
    parts: dict[str, dict[str, Any]]
    folder: str = ""

    def _build(self, root: Path, part: str, download: bool) -> Any:
        from torchvision import datasets

        build = getattr(datasets, self.dataset)
        return build(root / self.folder, download=download, **self.parts[part])

    def fetch(self, root: Path) -> None:
        for part in self.parts:
            self._build(root, part, download=True)

    def read(self, root: Path) -> Parts:
        return {part: self._source(self._build(root, part, download=False)) for part in self.parts}

    def _source(self, dataset: Any) -> Source:
        if not hasattr(dataset, "data"):
            folder = Path(dataset.root) / dataset.base_folder / "img_align_celeba"
            return Files([folder / name for name in dataset.filename], None)
        pixels = torch.as_tensor(dataset.data)
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[-1] == 3:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
        return Pixels(pixels, torch.as_tensor(labels), self.dataset)


@dataclass(frozen=True)
class Omniglot(Origin):
    """Omniglot as torchvision unpacks it; classes are characters of one alphabet.

    The characters of the test part (the evaluation set) are numbered on from the training part's.
    """

    has_fetch = True

    def fetch(self, root: Path) -> None:
        from torchvision.datasets import Omniglot as Set

        for background in (True, False):
            Set(os.fspath(root), background=background, download=True)

    def read(self, root: Path) -> Parts:
        parts = {"train": "images_background", "test": "images_evaluation"}
        folders = {part: root / "omniglot-py" / name for part, name in parts.items()}
        listed = {part: images_in(folder) for part, folder in folders.items()}
        labels = _characters(listed)
        return {
            part: Files([folders[part] / path for path in paths], labels[part], invert=True)
            for part, paths in listed.items()
        }


@dataclass(frozen=True)
class OmniglotSmall(Origin):
    """The two small background sets of Omniglot, read straight from their zip files.

    Set 1 is the training part. The test part is what set 2 has in alphabets that set 1 lacks
    (katakana, Sanskrit, Tagalog): characters, and scripts, never seen in training.

    Args:
        archives: zip files of set 1 and set 2, inside `root`.
    """

    archives: tuple[str, str]

    def read(self, root: Path) -> Parts:
        zips = [_unzipped(root / archive) for archive in self.archives]
        seen = {path.parts[1] for path in zips[0]}
        blobs = {
            "train": zips[0],
            "test": {path: b for path, b in zips[1].items() if path.parts[1] not in seen},
        }
        labels = _characters({part: list(files) for part, files in blobs.items()})
        return {
            part: Encoded([*files.values()], [*map(str, files)], labels[part], invert=True)
            for part, files in blobs.items()
        }


@dataclass(frozen=True)
class Lsun(Origin):
    """One category of LSUN: its training database, and its validation database as test part."""

    category: str

    def read(self, root: Path) -> Parts:
        try:
            import lmdb  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "LSUN is read with the package lmdb, which is not installed; "
                "install it: pip install lmdb"
            ) from error
        parts = {"train": "train", "test": "val"}
        return {p: Database(root / "lsun" / f"{self.category}_{n}_lmdb") for p, n in parts.items()}


@dataclass(frozen=True)
class Folder(Origin):
    """All images below a folder, and below the folders linked there.

    With a subfolder `train` and others called `test`, `validation`, `valid` or `val`, or `train`
    alone, these are the parts; otherwise all is one part. If each image of a part lies in a
    subfolder, the first subfolders are its classes, in alphabetical order over all parts; else
    there are no labels.
    """

    def read(self, root: Path) -> Parts:
        if root.is_file():
            raise ValueError(
                f"`path` must be a folder of images with data=folder, got the file {root}; an "
                "array is read with data=array, a table of numbers with data=table"
            )
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; set path=… to a folder of images")
        folders = _parts(root)
        listed = {part: images_in(folder) for part, folder in folders.items()}
        if not any(listed.values()):
            raise ValueError(
                f"no images below {root} ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "set path=… to a folder that holds some"
            )
        grouped = all(len(path.parts) > 1 for paths in listed.values() for path in paths)
        classes = {part: [path.parts[0] for path in paths] for part, paths in listed.items()}
        labels = _numbered(classes) if grouped else dict.fromkeys(listed)
        names = sorted({name for part in classes.values() for name in part}) if grouped else None
        return {
            part: Files([folders[part] / path for path in paths], labels[part], names)
            for part, paths in listed.items()
        }


def _parts(root: Path) -> dict[str, Path]:
    """Folders of a folder's official parts; all of it, if it has none."""
    words = {"train": "train", "test": "test"} | dict.fromkeys(_VALIDATION, "validation")
    found = {part: root / name for name, part in words.items() if (root / name).is_dir()}
    with os.scandir(root) as entries:
        inside = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    whole = "train" in found and (len(found) > 1 or inside == ["train"])
    return found if whole else {"all": root}


def images_in(folder: Path) -> list[PurePosixPath]:
    """Image files below a folder, relative to it, in the same order on every machine."""
    return [path for path in files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def files_in(folder: Path) -> list[PurePosixPath]:
    """Files below a folder and the folders linked there, relative to it; hidden ones left out."""

    def walk(where: str, here: PurePosixPath, above: tuple[str, ...]) -> Iterator[PurePosixPath]:
        with os.scandir(where) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield here / entry.name
                # A link to a folder that it lies in would lead round and round.
                elif (real := os.path.realpath(entry.path)) not in above:
                    yield from walk(entry.path, here / entry.name, (*above, real))

    return sorted(walk(os.fspath(folder), PurePosixPath(), (os.path.realpath(folder),)))


def _unzipped(archive: Path) -> dict[PurePosixPath, bytes]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name for name in opened.namelist() if name.endswith(".png"))
            return {PurePosixPath(name): opened.read(name) for name in names}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(
            f"{archive} is cut short or corrupt ({error}); replace it with a whole copy"
        ) from error


def _characters(paths: dict[str, list[PurePosixPath]]) -> dict[str, Tensor]:
    """Labels of drawings `…/alphabet/character/drawing.png`, numbered part after part."""
    labels, start = {}, 0
    for part, drawings in paths.items():
        labels[part] = _numbered({part: [path.parts[-3:-1] for path in drawings]})[part] + start
        start = int(labels[part].max()) + 1 if drawings else start
    return labels


def _numbered(names: dict[str, list[Any]]) -> dict[str, Tensor]:
    """Class numbers of class names, in alphabetical order over all parts."""
    every: Iterable[Any] = sorted({name for part in names.values() for name in part})
    number = {name: i for i, name in enumerate(every)}
    return {
        part: torch.tensor([number[name] for name in mine], dtype=torch.long)
        for part, mine in names.items()
    }
