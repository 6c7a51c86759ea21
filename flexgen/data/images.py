"""Image data sets of the table, as a data module."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_one_of
from flexgen.data import catalogue
from flexgen.data.binarised import StaticDraw
from flexgen.data.datasets import Folder
from flexgen.data.module import SPLIT_SEED, SPLITS, DataModule
from flexgen.data.readers import check_images
from flexgen.data.sampler import Order, Purpose, stratified, subset
from flexgen.data.sources import Files, Shape, Source, decode, printable
from flexgen.data.stream import Chunk, Split, worker_chunks

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
    training part, unless it has an official part. A set without a test part (digits, a folder) is
    cut into three along a fixed permutation in which every stretch has each class in proportion.
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
        root: folder of the data; FLEXGEN_DATA, else `data`, if None. For `folder` the images' own.
        download: fetch what is missing into `root`.
        num_validation: images for validation; the table's number if None.
        num_test: images for testing, where there is no official part; the table's number if None.
        flip: mirror each training image left to right with probability ½.
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
        binarise: Literal["static", "dynamic"] | None = None,
        resident: bool | Literal["auto"] = "auto",
        num_workers: int = 2,
    ) -> None:
        self.spec = catalogue.find(name)
        shape = self.spec.shape if shape is None else tuple(shape)
        if shape is None or len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(
                f"`shape` must be (1 or 3 channels, height, width), got {shape}; "
                "set for example `data.shape=[3,64,64]`"
            )
        if range is None:
            raise ValueError("`range` must be a pair for images, got None; set `data.range=[-1,1]`")
        check_one_of("resident", resident, ("auto", True, False))
        check_integer("num_workers", num_workers, 0, "set `data.num_workers`")
        if download and not self.spec.origin.has_fetch:
            raise ValueError(f"{name} cannot be downloaded; set `data.download=false`")
        self.root = Path(os.environ.get("FLEXGEN_DATA", "data") if root is None else root)
        self.entry, self.download = name, download
        if binarise is not None:
            name = self._binarised(binarise, shape, range)
        self.dynamic, self._binary = binarise == "dynamic", binarise is not None
        super().__init__(name=name, shape=shape, range=range, batch_size=batch_size, seed=seed)
        self._image_shape: Shape = (shape[0], shape[1], shape[2])
        self.num_validation, self.num_test = num_validation, num_test
        self.flip, self.resident, self.num_workers = flip, resident, num_workers
        for option, num in (("num_validation", num_validation), ("num_test", num_test)):
            if num is not None:
                check_integer(option, num, 0, f"set `data.{option}`")

    def _binarised(self, binarise: str, shape: tuple[int, ...], range: Sequence[float]) -> str:
        """Name of the binarised data; turns to the entry of a published draw that is there."""
        if binarise not in ("static", "dynamic"):
            raise ValueError(f"`binarise` must be null, static or dynamic, got {binarise!r}")
        if shape[0] != 1:
            raise ValueError(
                f"`shape` must have 1 channel with `binarise`, got {shape}; "
                f"set `data.shape=[1,{shape[1]},{shape[2]}]` or `data.binarise=null`"
            )
        if tuple(range) != (0, 1):
            raise ValueError(
                f"`range` must be [0, 1] with `binarise`, got {list(range)}; set `data.range=[0,1]`"
            )
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
        index = {part: torch.arange(len(source)) for part, source in sources.items()}
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
        if num is None:
            # A tenth; of few, too few to measure anything by, a fifth, up to 100.
            share = max(len(order) // 10, min((len(order) + 2) // 5, 100))
            num = share if default is None else default
        if num >= len(order):
            raise ValueError(
                f"`{option}` must be less than the {len(order)} images of {self.name} that it is "
                f"cut from, got {num}; set `data.{option}`"
            )
        return order[: len(order) - num], order[len(order) - num :]

    def _chunks(
        self, train: Split, device: torch.device, order: Order, position: int
    ) -> Iterator[Chunk]:
        if self.dynamic:
            assert isinstance(train, StaticDraw)
            train = train.grey
        if isinstance(self.spec.origin, Folder):
            for part, files in self._files.items():
                for line in check_images(files, self._image_shape) if order.rank == 0 else ():
                    log.info("%s, %s images: %s", printable(str(self.root)), part, line)
        fits = len(train) * math.prod(self.shape) <= RESIDENT_BYTES
        if fits if self.resident == "auto" else self.resident:
            return super()._chunks(train, device, order, position)
        return worker_chunks(train, order, position, device, self.num_workers)
