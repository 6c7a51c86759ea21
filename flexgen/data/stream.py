"""The endless stream of training batches, and its two sources: a resident tensor and workers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexgen.contracts import Batch, BatchStream
from flexgen.data.sampler import Order, Purpose, generator, thresholds

Range = tuple[float, float]

Chunk = tuple[Tensor, Tensor | None]
"""Examples of one or several batches, `(n, *shape)`, and their labels, `(n,)`."""

CHUNK_BATCHES = 32
CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


class Split(Protocol):
    """The examples of one split, read by index."""

    @property
    def labels(self) -> Tensor | None:
        """Classes, `(n,)` long, or None."""

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """Examples, `(n, *shape)`: uint8 in [0, 255], or float as they are meant to be."""


class Stream(BatchStream):
    """Batches without end; `next(stream)` gives x `(batch_size, *shape)` on the device, and its
    labels `(batch_size,)` as the context, where there are any.

    A batch may share memory with its neighbours, never with the data set: writing into one is safe.

    Args:
        order: which examples each batch holds.
        chunks: whole batches, one or several at a time, with their labels, from `position` on.
        position: batches that this rank has taken already.
        range: what uint8 is scaled to; None if the data are float already.
        flip: mirror each image with probability ½, as a function of (seed, number of the batch).
        binarise: draw x ~ B(v / 255) of each grey value v, as a function of the same; uint8 alone.
        augment: what each example goes through by itself, its draws a function of the same.
    """

    def __init__(
        self, order: Order, chunks: Iterator[Chunk], position: int = 0, *,
        range: Range | None = None, flip: bool = False, binarise: bool = False,
        augment: Sequence[Callable[[Tensor], Tensor]] = (),
    ) -> None:  # fmt: skip
        self._order, self._chunks, self._position = order, chunks, position
        self._range, self._flip, self._binarise = range, flip, binarise
        self._augment = augment
        self._ready: list[Batch] = []

    @property
    def position(self) -> int:
        """Batches that this rank has taken; a new stream from here goes on with the next one."""
        return self._position

    def __next__(self) -> Batch:
        if not self._ready:
            self._refill()
        self._position += 1
        return self._ready.pop()

    def _refill(self) -> None:
        # A chunk outlives the block in which it was gathered: made under inference mode, its later
        # batches could not take part in training.
        with torch.inference_mode(False), torch.no_grad():
            x, labels = next(self._chunks)
            if self._flip:
                x = self._mirrored(x)
            if self._augment:
                x = self._augmented(x)
            if self._binarise:
                x = self._drawn(x)
            x = scale(x, self._range)
        parts = x.split(self._order.batch_size)
        contexts = [None] * len(parts) if labels is None else labels.split(self._order.batch_size)
        self._ready = [Batch(*pair) for pair in zip(parts, contexts, strict=True)][::-1]

    def _keys(self, x: Tensor) -> list[tuple[int, int]]:
        """(seed, number) of each batch in a chunk: what its random numbers depend on."""
        first, num = self._position, len(x) // self._order.batch_size
        return [(self._order.seed, self._order.number(first + i)) for i in range(num)]

    def _mirrored(self, x: Tensor) -> Tensor:
        coins = [
            torch.rand(self._order.batch_size, generator=generator(Purpose.FLIP, *key))
            for key in self._keys(x)
        ]
        heads = (torch.cat(coins) < 0.5).nonzero().squeeze(1).to(x.device)
        # In place, as `x` is a copy of the data already; torch.where costs twice as much on uint8.
        x[heads] = x[heads].flip(-1)
        return x

    def _augmented(self, x: Tensor) -> Tensor:
        parts = x.split(self._order.batch_size)
        return torch.cat(
            [augmented(b, self._augment, *k) for b, k in zip(parts, self._keys(x), strict=True)]
        )

    def _drawn(self, x: Tensor) -> Tensor:
        for batch, key in zip(x.split(self._order.batch_size), self._keys(x), strict=True):
            batch.gt_(thresholds(batch.shape, Purpose.DYNAMIC, *key).to(x.device))
        return x.to(torch.float32)


def scale(x: Tensor, range: Range | None) -> Tensor:
    """Map uint8 from [0, 255] to `range`, x/255 · (high − low) + low; leave floats alone."""
    if x.dtype != torch.uint8 or range is None:
        return x
    low, high = range
    return x.to(torch.float32).mul_((high - low) / 255).add_(low)


def augmented(x: Tensor, augment: Sequence[Callable[[Tensor], Tensor]], *key: int) -> Tensor:
    """Examples `(n, *shape)`, each through `augment` by itself, by draws that are a function of
    `key` alone; torch's generators are left as they were."""
    on_gpu = [x.device] if x.device.type == "cuda" else []
    seed = generator(Purpose.AUGMENT, *key).initial_seed()
    with torch.random.fork_rng(on_gpu):
        torch.default_generator.manual_seed(seed)
        for device in on_gpu:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        changed = []
        for example in x:
            for transform in augment:
                example = transform(example)
            changed.append(example)
    return torch.stack(changed)


@dataclass
class Points:
    """A split that is a tensor of floats.

    Args:
        x: the examples, `(n, *shape)`.
        labels: their classes, `(n,)`, or None.
    """

    x: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def read(self, index: Tensor) -> Tensor:
        return self.x[index]


def resident_chunks(
    data: Tensor, labels: Tensor | None, order: Order, position: int
) -> Iterator[Chunk]:
    """Batches gathered from a tensor on its own device, as many at a time as the cache holds.

    Gathering several at once spreads the cost of a call (10 µs for 500 points in the plane, 2 µs
    when 32 are taken together). Past the second-level cache it turns dearer again: hence a limit
    in bytes, counted in float32.
    """
    batch_bytes = order.batch_size * data[0].numel() * 4
    limit = CHUNK_BYTES.get(data.device.type, CHUNK_BYTES["cuda"])
    most = max(1, min(CHUNK_BATCHES, limit // batch_bytes))
    while True:
        rows = order.rest_of_epoch(position).to(data.device)
        for chunk in rows.split(most):
            index = chunk.reshape(-1)
            yield data.index_select(0, index), None if labels is None else labels[index]
        position += len(rows)


def worker_chunks(
    split: Split, order: Order, position: int, device: torch.device, num_workers: int
) -> Iterator[Chunk]:
    """Batches read by worker processes, started at the first one asked for."""
    loader: DataLoader[Any] = DataLoader(
        _Reader(split),
        sampler=_Batches(order, position),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # Otherwise a loader takes its base seed from the global generator, and a run that was
        # stopped and resumed would draw other numbers from there on than one never stopped.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        yield tuple(None if part is None else part.to(device, non_blocking=True) for part in batch)  # type: ignore[misc]


@dataclass
class _Batches:
    """The examples of each batch from a position on, without end: a sampler for a loader."""

    order: Order
    position: int

    def __iter__(self) -> Iterator[list[int]]:
        position = self.position
        while True:
            rows = self.order.rest_of_epoch(position).tolist()
            yield from rows
            position += len(rows)


class _Reader(Dataset[Any]):
    """Reads a batch in a worker; an error comes back as its message.

    Raised there, it would reach the user as a page of two processes' tracebacks.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: list[int]) -> Chunk | str:
        rows, labels = torch.tensor(index), self.split.labels
        try:
            return self.split.read(rows), None if labels is None else labels[rows]
        except ValueError as error:
            return str(error)
