"""The data module: what a run, a callback and a report ask of a data set."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from rich.console import Console
from rich.progress import track
from torch import Tensor

from flexgen.checks import check_integer, check_one_of, first_line
from flexgen.contracts import StreamSource
from flexgen.data.binarised import StaticDraw
from flexgen.data.sampler import Order, Purpose, subset
from flexgen.data.stream import Chunk, Range, Split, Stream, augmented, resident_chunks, scale

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

SPLIT_SEED = 0
"""Seed of every split, toy sample and static binarisation: never the run's, so that all seeds of a
study share data."""

SCALED_BYTES = 8 * 2**20
"""A resident split up to this size as float32 is scaled once; above it, uint8 is faster, as a
quarter of the bytes is gathered from memory for each batch."""

READ_EXAMPLES = 2048
"""Examples read into a resident tensor between two steps of the progress bar."""

FINGERPRINT_BYTES = 64 * 2**20

QUIET_EXAMPLES = 10_000
"""Below this number, reading takes a second or two and shows no bar."""


class DataModule(LightningDataModule, StreamSource):
    """Three splits of examples, and an endless, restorable stream of training batches.

    Subclasses say where the splits come from (`_build`).

    Args:
        name: name of the data set.
        shape: shape of an example.
        range: (low, high) that uint8 is scaled to, or None for float data left as they are.
        batch_size: examples in a training batch.
        seed: seed of the order of training batches, ≥ 0. Splits do not depend on it.

    Attributes:
        position: training batches that this rank has taken before; `train_dataloader` starts there.
        centres: means of the modes, `(modes, dim)`, where the data are a known mixture, else None.
        std: standard deviation of the noise about the modes, or None.
        class_names: what a person calls each label, in order; None where numbers are all there is.

    Raises:
        ValueError: if an argument is out of bounds.
    """

    centres: Tensor | None = None
    std: float | None = None
    class_names: Sequence[str] | None = None
    flip: bool = False
    dynamic: bool = False
    augment: Sequence[Callable[[Tensor], Tensor]] = ()

    def __init__(
        self, *, name: str, shape: Sequence[int], range: Sequence[float] | None, batch_size: int,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("batch_size", batch_size, 1, "set `data.batch_size`")
        check_integer("seed", seed, 0, "set `data.seed`")
        self.name: str = name
        self.shape = tuple(shape)
        self.range = None if range is None else check_range("range", range)
        self.batch_size, self.seed = batch_size, seed
        self.position = 0
        self._splits: dict[str, Split] | None = None
        self._on_device: dict[torch.device, Tensor] = {}

    @property
    def num_classes(self) -> int | None:
        """Number of labels over all splits, or None where there are none."""
        raise NotImplementedError

    def _build(self) -> dict[str, Split]:
        """The splits by name; called once."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Find the splits and check that they can be trained on; a second call does nothing.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: if files are corrupt, or there are fewer examples than a batch.
        """
        if self._splits is not None:
            return
        splits = self._build()
        if (size := len(splits["train"])) < self.batch_size:
            raise ValueError(
                f"`batch_size` must be at most the {size} training examples of {self.name}, "
                f"got {self.batch_size}; set `data.batch_size={max(size, 1)}` or bring more data"
            )
        if self.augment:
            example = splits["train"].read(torch.arange(1))
            try:
                changed = augmented(example, self.augment, 0)
            except Exception as error:  # whatever a transform may raise
                raise ValueError(
                    f"`augment` cannot be applied to an example of {self.name} "
                    f"({first_line(error)}); set `data.augment`"
                ) from error
            if (changed.shape, changed.dtype) != (example.shape, example.dtype):
                raise ValueError(
                    f"`augment` must keep an example's shape and type, {tuple(example.shape[1:])} "
                    f"{example.dtype}, got {tuple(changed.shape[1:])} {changed.dtype}; set "
                    "`data.augment`"
                )
        self._splits = splits

    def _split(self, name: str) -> Split:
        check_one_of("name", name, SPLITS)
        if self._splits is None:
            self.prepare_data()
            self.setup()
        assert self._splits is not None
        return self._splits[name]

    def size(self, name: SplitName) -> int:
        """Number of examples in a split."""
        return len(self._split(name))

    def indices(self, name: SplitName, n: int | None = None, seed: int = 0) -> Tensor:
        """Which examples of a split `split` gives for the same arguments, `(n,)` long.

        Raises:
            ValueError: if the split has fewer than `n` examples, or none.
        """
        size = len(self._split(name))
        if size == 0:
            raise ValueError(
                f"the {name} split of {self.name} is empty; set `data.num_{name}` above 0"
            )
        if n is None:
            return torch.arange(size)
        if not 1 <= n <= size:
            raise ValueError(
                f"`n` must be in [1, {size}], the {name} examples of {self.name}, got {n}"
            )
        return subset(Purpose.SUBSET, size, n, seed)

    def split(
        self, name: SplitName, n: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Examples of a split, drawn without replacement; only these are read.

        Args:
            name: "train", "validation" or "test".
            n: how many; the whole split, in its own order, if None.
            seed: which ones; the run's seed plays no part.

        Returns:
            x, float `(n, *shape)` scaled to the range, and labels `(n,)` long or None; on the CPU.

        Raises:
            ValueError: if the split has fewer than `n` examples, or none, or one cannot be read.
        """
        split, index = self._split(name), self.indices(name, n, seed)
        y = None if split.labels is None else split.labels[index]
        return scale(split.read(index), self.range), y

    def stream(
        self, device: torch.device | str = "cpu", position: int = 0, rank: int = 0,
        world_size: int = 1,
    ) -> Stream:  # fmt: skip
        """Training batches without end, from `position` on.

        The order is a function of (seed, position) alone; see `Order`.

        Args:
            device: where the batches are wanted.
            position: batches that this rank has taken before.
            rank: this process.
            world_size: number of processes, each of which takes its own batches.
        """
        check_integer("position", position, 0)
        train, device = self._split("train"), torch.device(device)
        if self.dynamic:  # drawn anew for each batch
            assert isinstance(train, StaticDraw)
            train = train.grey
        order = Order(len(train), self.batch_size, self.seed, rank, world_size)
        chunks = self._chunks(train, device, order, position)
        return Stream(
            order, chunks, position, range=self.range, flip=self.flip, binarise=self.dynamic,
            augment=self.augment,
        )  # fmt: skip

    def _chunks(
        self, train: Split, device: torch.device, order: Order, position: int
    ) -> Iterator[Chunk]:
        labels = None if train.labels is None else train.labels.to(device)
        return resident_chunks(self._resident(train, device), labels, order, position)

    def _resident(self, train: Split, device: torch.device) -> Tensor:
        """The training split on the device, read at the first call."""
        if device in self._on_device:
            return self._on_device[device]
        console = Console(stderr=True)
        quiet = len(train) < QUIET_EXAMPLES or not console.is_terminal
        first = train.read(torch.arange(1))
        x = torch.empty((len(train), *first.shape[1:]), dtype=first.dtype)
        parts, told = torch.arange(len(train)).split(READ_EXAMPLES), f"reading {self.name}"
        for index in track(parts, told, console=console, transient=True, disable=quiet):
            x[index[0] : index[-1] + 1] = train.read(index)
        x = x.to(device)
        as_read = self.dynamic or self.augment or x.numel() * 4 > SCALED_BYTES
        self._on_device[device] = x if as_read else scale(x, self.range)
        return self._on_device[device]

    @cached_property  # every checkpoint holds it
    def fingerprint(self) -> str:
        """SHA-256 of the training split: of every example if they are small (64 MiB as they are
        read), else of 1,000 at equal distances; of their number, and of the labels."""
        train = self._split("train")
        first = train.read(torch.arange(1))
        whole = len(train) * first.nbytes <= FINGERPRINT_BYTES
        index = torch.arange(0, len(train), 1 if whole else -(-len(train) // 1000))
        digest = hashlib.sha256(f"{len(train)} {first.dtype}".encode())
        for part in index.split(READ_EXAMPLES):
            digest.update(train.read(part).numpy().tobytes())
        if train.labels is not None:
            digest.update(train.labels.numpy().tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """How many examples each split has, and a digest, by which a run knows its data again."""
        return {**{name: self.size(name) for name in SPLITS}, "sha256": self.fingerprint}

    def original(self, x: Tensor) -> Tensor:
        """Examples, or samples like them, `(n, *shape)`, in the units of the files they came from;
        images stay as they are."""
        return x

    def train_dataloader(self) -> Iterable[Stream]:
        """The stream itself, again and again, for Lightning to hand to `training_step`.

        Device and rank are the trainer's, if there is one; the first batch is at `position`.
        """
        if (trainer := self.trainer) is None:
            return itertools.repeat(self.stream(position=self.position))
        where = trainer.strategy.root_device
        stream = self.stream(where, self.position, trainer.global_rank, trainer.world_size)
        return itertools.repeat(stream)


def check_range(name: str, range: Sequence[float]) -> Range:
    """(low, high) as floats; a ValueError unless they are finite and low is less."""
    bounds = tuple(float(bound) for bound in range)
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[1]:
        raise ValueError(
            f"`{name}` must be (low, high) with low < high, got {bounds}; "
            f"set `data.{name}=[-1,1]` or [0,1]"
        )
    return bounds[0], bounds[1]
