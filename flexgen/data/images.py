"""Image data sets of the table, as a data module."""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_one_of
from flexgen.data import catalogue
from flexgen.data.binarised import StaticDraw, check_binarise
from flexgen.data.datasets import Folder, images_in
from flexgen.data.inspection import (
    LEAVE_OUT,
    REFUSE,
    UNUSABLE,
    Inspection,
    common_shape,
    describe_classes,
    describe_images,
    describe_others,
    inspect_images,
    unusable_images,
)
from flexgen.data.module import FINGERPRINT_BYTES, SPLIT_SEED, SPLITS, DataModule
from flexgen.data.sampler import Order, Purpose, cut_by_draws, draws_of_names, stratified, subset
from flexgen.data.sources import Files, Shape, Source, decode, printable
from flexgen.data.stream import Chunk, Split, worker_chunks
from flexgen.files import file_sha256

log = logging.getLogger(__name__)

RESIDENT_BYTES = 2**30
"""`resident="auto"` keeps a training split on the device up to this size as uint8: 1 GiB."""


@dataclass
class _Images:
    """A split that is some images of a source, read when asked for."""

    source: Source
    index: Tensor
    shape: Shape
    crop: int | None

    @property
    def labels(self) -> Tensor | None:
        return None if self.source.labels is None else self.source.labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: Tensor) -> Tensor:
        return decode(self.source, self.index[index], self.shape, self.crop)


class ImageData(DataModule):
    """A data set of `flexgen.data.SPECS`: images of one shape, with labels where there are any.

    Official parts are kept apart. Validation is cut from the end of a fixed permutation of the
    training part, unless it has an official part. A set without a test part (digits) is cut into
    three along a fixed permutation in which every stretch has each class in proportion. Of a folder
    a digest of each file's name says which split it is in: files that are added move no others.
    No split depends on the run's seed.

    Binarised, a grey value v becomes x ~ B(v / 255). What `split` gives is one fixed draw, whatever
    the run's seed, so that evaluations are comparable and repeatable. "static" trains on it too;
    "dynamic" draws each training batch afresh, as a function of (seed, position) like its order.
    "static" takes a published binarisation instead (Larochelle's of MNIST) where its files are
    there, with its own splits and without labels. The data's name says which it was:
    `mnist_static`, `mnist_dynamic` or `mnist_larochelle`.

    Args:
        name: a data set of the table.
        shape: (channels, height, width) with 1 or 3 channels; the table's if None. Images are cut
            to this aspect about their centre and resized.
        range: (low, high) that black and white map to.
        batch_size: images in a training batch.
        seed: seed of the order of training batches, and of flips.
        root: folder of the data; FLEXGEN_DATA, else `data`, if None. For `folder` the images' own,
            and its `shape`, if None, is found from them.
        download: fetch what is missing into `root`.
        num_validation: images for validation; the table's number if None.
        num_test: images for testing, where there is no official part; the table's number if None.
        flip: mirror each training image left to right with probability ½.
        augment: what each training image goes through, uint8 `(channels, height, width)`, such as
            transforms of torchvision's v2; torch's draws in it are a function of (seed, position).
        unusable: "refuse" to begin where files of a folder cannot be read, or "leave_out" those.
        binarise: null, "static" or "dynamic"; needs 1 channel and the range (0, 1).
        resident: keep the training split on the device as one tensor: True, False, or "auto", up
            to 1 GiB as uint8. The batches are the same either way.
        num_workers: processes that read images where they are not resident; 0 reads in this one.

    Raises:
        ValueError: if an argument is out of bounds.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        range: Sequence[float] = (-1.0, 1.0),
        batch_size: int = 100,
        seed: int = 0,
        root: str | Path | None = None,
        download: bool = False,
        num_validation: int | None = None,
        num_test: int | None = None,
        flip: bool = False,
        augment: Sequence[Callable[[Tensor], Tensor]] | None = None,
        unusable: str = REFUSE,
        binarise: Literal["static", "dynamic"] | None = None,
        resident: bool | Literal["auto"] = "auto",
        num_workers: int = 2,
    ) -> None:
        self.spec = catalogue.find(name)
        own = isinstance(self.spec.origin, Folder)
        if own and root is None:
            raise ValueError(f"`root` must be the folder of the images, got {root}; give path=…")
        self.root = Path(os.environ.get("FLEXGEN_DATA", "data") if root is None else root)
        if shape is None:
            shape = folder_shape(self.root) if own else self.spec.shape
        shape = None if shape is None else tuple(shape)
        if shape is None or len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(
                f"`shape` must be (1 or 3 channels, height, width), got {shape}; "
                "set for example `data.shape=[3,64,64]`"
            )
        if range is None:
            raise ValueError("`range` must be a pair for images, got None; set `data.range=[-1,1]`")
        check_one_of("resident", resident, ("auto", True, False))
        check_one_of("unusable", unusable, UNUSABLE, "set `data.unusable`")
        if unusable == LEAVE_OUT and not own:
            raise ValueError(
                f"`unusable` must be {REFUSE} for {name}, whose files are known; it is for "
                "data=folder"
            )
        check_integer("num_workers", num_workers, 0, "set `data.num_workers`")
        if download and not self.spec.origin.has_fetch:
            raise ValueError(f"{name} cannot be downloaded; set `data.download=false`")
        self.entry, self.download = name, download
        check_binarise(binarise, shape, range)
        if binarise is not None:
            name = self._binarised(binarise, shape)
        self.dynamic, self._binary = binarise == "dynamic", binarise is not None
        super().__init__(name=name, shape=shape, range=range, batch_size=batch_size, seed=seed)
        self._image_shape: Shape = (shape[0], shape[1], shape[2])
        self.num_validation, self.num_test = num_validation, num_test
        self.flip, self.resident, self.num_workers = flip, resident, num_workers
        self.augment, self.unusable = list(augment or ()), unusable
        self._found: dict[str, tuple[Files, Inspection]] = {}
        self._inspected = False
        for option, num in (("num_validation", num_validation), ("num_test", num_test)):
            if num is not None:
                check_integer(option, num, 0, f"set `data.{option}`")

    def _binarised(self, binarise: str, shape: tuple[int, ...]) -> str:
        """Name of the binarised data; turns to the entry of a published draw that is there."""
        if binarise == "static" and self.spec.binarised is not None:
            published = catalogue.find(self.spec.binarised)
            if shape == published.shape and any((self.root / f).exists() for f in published.files):
                log.info("%s, static: read from the files of %s", self.entry, self.spec.binarised)
                self.entry, self.spec, self.download = self.spec.binarised, published, False
                return self.entry
        return f"{self.entry}_{binarise}"

    @property
    def num_classes(self) -> int | None:
        """Number of labels over all splits, or None where there are none."""
        if self.spec.num_classes is not None:
            return self.spec.num_classes
        labels = [y for y in (self._split(part).labels for part in SPLITS) if y is not None]
        return max(int(y.max()) for y in labels if len(y)) + 1 if labels else None

    def prepare_data(self) -> None:
        """Download the data set if that was asked for."""
        if self.download:
            catalogue.fetch(self.entry, self.root)

    def _build(self) -> dict[str, Split]:
        sources = catalogue.read(self.entry, self.root)
        for part, source in sources.items():
            if len(source) == 0:
                raise ValueError(
                    f"{self.name} has no {part} images below {self.root}; bring some there"
                )
        for part, num in (("test", self.num_test), ("validation", self.num_validation)):
            if part in sources and num is not None:
                raise ValueError(
                    f"`num_{part}` must be null for {self.name}, which has an official {part} "
                    f"part, got {num}"
                )
        self._files = {p: s for p, s in sources.items() if isinstance(s, Files)}
        self.class_names = next((f.classes for f in self._files.values()), None)
        index = {part: torch.arange(len(source)) for part, source in sources.items()}
        if isinstance(self.spec.origin, Folder):
            index = self._usable(index)
            return self._views(*self._cut_by_name(sources, index))
        if "all" in sources:
            sources = dict.fromkeys(("train", "test"), sources["all"])
            labels = sources["train"].labels
            classes = torch.zeros(len(index["all"])) if labels is None else labels
            order = stratified(Purpose.SPLIT, classes, SPLIT_SEED)
            index["train"], index["test"] = self._cut(order, "num_test")
        else:
            size = len(sources["train"])
            index["train"] = subset(Purpose.SPLIT, size, size, SPLIT_SEED)
        if "validation" not in sources:
            sources["validation"] = sources["train"]
            index["train"], index["validation"] = self._cut(index["train"], "num_validation")
        return self._views(sources, index)

    def _usable(self, index: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without what cannot be read, where that is to be left out."""
        if self.unusable == REFUSE:
            return index
        self._inspect()
        for files, found in self._found.values():
            if not found.headers:
                raise unusable_images(self.root, files, found, "data.unusable")
        return {p: torch.tensor(list(found.headers)) for p, (_, found) in self._found.items()}

    def _inspect(self) -> None:
        for part, files in self._files.items():
            if part not in self._found:
                self._found[part] = files, inspect_images(files)

    def _cut_by_name(
        self, sources: dict[str, Source], index: dict[str, Tensor]
    ) -> tuple[dict[str, Source], dict[str, Tensor]]:
        """Three parts of what a folder has in one or two."""
        whole = "all" if "all" in sources else "train"
        files, of_whole = self._files[whole], index.pop(whole)
        names = [os.fsencode(os.path.relpath(files.paths[i], self.root)) for i in of_whole.tolist()]
        nums = {"test": self.num_test, "validation": self.num_validation}
        cut = cut_by_draws(
            lambda part: draws_of_names(names, part),
            None if files.labels is None else files.labels[of_whole],
            {part: num for part, num in nums.items() if part not in sources},
        )
        cut = {part: of_whole[rows] for part, rows in cut.items()}
        return {**dict.fromkeys(SPLITS, sources[whole]), **sources}, {**index, **cut}

    def _views(self, sources: dict[str, Source], index: dict[str, Tensor]) -> dict[str, Split]:
        splits: dict[str, Split] = {}
        for part in SPLITS:
            numbers = index[part].sort().values
            splits[part] = _Images(sources[part], numbers, self._image_shape, self.spec.crop)
            if self._binary:
                # Splits cut from one part share a key: an image keeps its draw wherever cuts fall.
                key = next(i for i, p in enumerate(SPLITS) if sources[p] is sources[part])
                splits[part] = StaticDraw(splits[part], numbers, SPLIT_SEED, key)
        return splits

    def _cut(self, order: Tensor, option: str) -> tuple[Tensor, Tensor]:
        """What is left of an order, and the part that `option` cuts from its end."""
        num, default = getattr(self, option), getattr(self.spec, option)
        num = default if num is None else num
        if num >= len(order):
            raise ValueError(
                f"`{option}` must be less than the {len(order)} images of {self.name} that it is "
                f"cut from, got {num}; set `data.{option}`"
            )
        return order[: len(order) - num], order[len(order) - num :]

    def record(self) -> dict[str, Any]:
        if not isinstance(self.spec.origin, Folder):
            return super().record()
        about: dict[str, Any] = {name: self.size(name) for name in SPLITS}
        paths = [path for files in self._files.values() for path in files.paths]
        # What cannot be read is told of in one list, with all that is like it.
        sizes = [os.stat(path).st_size if os.path.exists(path) else 0 for path in paths]
        names = hashlib.sha256()
        for path, size in zip(paths, sizes, strict=True):
            names.update(os.fsencode(os.path.relpath(path, self.root)) + f"\0{size}\0".encode())
        few = 1 if sum(sizes) <= FINGERPRINT_BYTES else -(-len(paths) // 1000)
        contents = hashlib.sha256()
        for path in filter(os.path.exists, paths[::few]):
            contents.update(file_sha256(Path(path)).encode())
        return {**about, "sha256": names.hexdigest(), "contents": contents.hexdigest()}

    def _chunks(
        self, train: Split, device: torch.device, order: Order, position: int
    ) -> Iterator[Chunk]:
        if isinstance(self.spec.origin, Folder) and order.rank == 0:
            self._tell()
        fits = len(train) * math.prod(self.shape) <= RESIDENT_BYTES
        if fits if self.resident == "auto" else self.resident:
            return super()._chunks(train, device, order, position)
        return worker_chunks(train, order, position, device, self.num_workers)

    def _tell(self) -> None:
        """Refuse what cannot be read, and say what is done to the rest, once."""
        told, self._inspected = self._inspected, True
        if told:
            return
        self._inspect()
        where = printable(str(self.root))
        for part, (files, found) in self._found.items():
            if found.unusable and self.unusable == REFUSE:
                raise unusable_images(self.root, files, found, "data.unusable")
            for line in describe_images(self.root, files, found, self._image_shape):
                log.info("%s, %s images: %s", where, part, line)
        folders = [self.root] if "all" in self._found else []
        for line in [
            *describe_others(self.root),
            *(x for f in folders for x in describe_classes(f)),
        ]:
            log.info("%s: %s", where, line)


def folder_shape(root: str | Path) -> Shape:
    """(channels, height, width) for the images below a folder: that of all of them, if they share
    one; else a square as high as the least edge, 64 at most. One channel if all are grey.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no images in it, or none can be read.
    """
    Folder().read(Path(root))
    return common_shape(images_in(Path(root)), Path(root))
