"""The order in which a run sees its data, as a pure function of (seed, position)."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a generator is for: the first part of its key, so that no two uses share a stream."""

    ORDER, FLIP, SUBSET, SPLIT, TOY, STATIC, DYNAMIC, AUGMENT = range(8)


def generator(purpose: Purpose, *key: int) -> torch.Generator:
    """A CPU generator that is a function of `purpose` and every number in `key`.

    The numbers are mixed, not added: (seed 0, epoch 1) and (seed 1, epoch 0) are unrelated, and
    the same key gives the same stream whatever the device of the data.
    """
    state = np.random.SeedSequence([int(purpose), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def thresholds(shape: Sequence[int], purpose: Purpose, *key: int) -> Tensor:
    """Uniform on {0, …, 254}, uint8 of a shape: v > u with probability v / 255, exactly.

    Random bytes come eight at a time, and eight are drawn again where one of them is 255: torch's
    uniform floats, or numpy's whole numbers below 255, cost about three times as much.
    """
    bits = np.random.SFC64(np.random.SeedSequence([int(purpose), *key]))
    size = math.prod(shape)
    words = bits.random_raw(-(-size // 8))
    again = np.flatnonzero(_has_255(words))
    while len(again):
        words[again] = bits.random_raw(len(again))
        again = again[_has_255(words[again])]
    return torch.from_numpy(words.view(np.uint8)[:size]).view(*shape)


def _has_255(words: Any) -> Any:
    return (words.view(np.uint8) == 255).view(np.uint64) != 0


def subset(purpose: Purpose, size: int, n: int, *key: int) -> Tensor:
    """`n` of `range(size)` without replacement, `(n,)`, in random order."""
    return torch.randperm(size, generator=generator(purpose, *key))[:n]


def stratified(purpose: Purpose, labels: Tensor, *key: int) -> Tensor:
    """A permutation of `range(len(labels))` any stretch of which has each class in proportion.

    Within its class each example gets a random rank; examples are then sorted by the rank's
    quantile, ties at random, so that a cut from either end is stratified.

    Args:
        purpose: what the permutation is for.
        labels: classes, `(n,)`.
        key: the rest of the generator's key.
    """
    shuffled = subset(purpose, len(labels), len(labels), *key)
    quantile = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels[shuffled] == label).nonzero().squeeze(1)
        quantile[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[quantile.argsort(stable=True)]


_FEW = 1000
"""Below this number of examples a fifth is held out, else a tenth."""


def draws_of_names(names: Sequence[bytes], salt: str) -> Tensor:
    """Uniform in [0, 1), a function of each name alone, `(n,)` float64."""
    digests = [hashlib.sha256(salt.encode() + b"\0" + name).digest() for name in names]
    return torch.tensor([int.from_bytes(d[:6], "big") / 2**48 for d in digests]).double()


def draws_of_rows(n: int, salt: str) -> Tensor:
    """Uniform in [0, 1), a function of each row's number alone, `(n,)` float64."""
    words = np.frombuffer(salt.encode(), np.uint8).tolist()
    return torch.from_numpy(np.random.default_rng([int(Purpose.SPLIT), *words]).random(n))


def cut_by_draws(
    draws: Callable[[str], Tensor], labels: Tensor | None, nums: Mapping[str, int | None]
) -> dict[str, Tensor]:
    """Examples held out for each part, and "train", the rest, by their numbers, in order.

    An example is held out if its draw lies below a fifth, a tenth of 1,000 examples or more: where
    others are added it stays where it is. Data that grow past 1,000 set some free. Of three and
    more of a class at least one is held out.

    Args:
        draws: a part's name to a uniform number in [0, 1) of each example, `(n,)`.
        labels: classes, `(n,)`, or None.
        nums: of each part exactly how many, each class in proportion, if not None; examples that
            are added may then move others.

    Raises:
        ValueError: if there are not as many; `num_` and the part are named.
    """
    rest = torch.arange(len(draws("")))
    share, left, parts = 0.2 if len(rest) < _FEW else 0.1, 1.0, {}
    for part, num in nums.items():
        if num is not None and num >= len(rest):
            raise ValueError(
                f"`num_{part}` must be less than the {len(rest)} examples that it is cut from, got "
                f"{num}; set `data.num_{part}`"
            )
        out = _held_out(
            draws(part)[rest], None if labels is None else labels[rest], num, share / left
        )
        parts[part], rest, left = rest[out], rest[~out], left - share
    return parts | {"train": rest}


def _held_out(draws: Tensor, labels: Tensor | None, num: int | None, share: float) -> Tensor:
    classes = torch.zeros(len(draws)) if labels is None else labels
    place = torch.empty(len(draws), dtype=torch.long)  # within its class, by draw
    size = torch.empty(len(draws), dtype=torch.long)
    for label in classes.unique():
        members = (classes == label).nonzero().squeeze(1)
        place[members[draws[members].argsort()]] = torch.arange(len(members))
        size[members] = len(members)
    if num is not None:
        order = ((place + 0.5) / size).argsort(stable=True)
        return torch.zeros(len(draws), dtype=torch.bool).index_fill(0, order[:num], True)
    return ((draws < share) & (place < size // 2)) | ((place == 0) & (size >= 3))


class Order:
    """Which examples the batch at each position holds.

    Epoch e is a permutation drawn from a generator seeded by (seed, e), cut into whole batches;
    what is left over is dropped. Batches are numbered through all epochs, and rank r of W takes
    numbers `position * W + r`, so that the ranks together see exactly what one process would.

    Args:
        size: number of examples.
        batch_size: examples in a batch, at most `size`.
        seed: seed of the run.
        rank: this process, in [0, world_size).
        world_size: number of processes.

    Raises:
        ValueError: if there are fewer examples than a batch, or the rank is out of range.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size > size:
            raise ValueError(
                f"`batch_size` must be at most the {size} training examples, got {batch_size}; "
                f"set `data.batch_size={size}` or less"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be in [0, {world_size}), got {rank}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._epoch = -1
        self._rows = torch.empty(0)

    def number(self, position: int) -> int:
        """The number, through all epochs and ranks, of this rank's batch at `position`."""
        return position * self.world_size + self.rank

    def rest_of_epoch(self, position: int) -> Tensor:
        """The examples of this rank's batches from `position` to the end of that epoch.

        They are int32 indices `(batches, batch_size)`, at least one batch: half the traffic of
        int64, and the permutation of an epoch is the dearest part of a toy's order.
        """
        epoch, first = divmod(self.number(position), self.size // self.batch_size)
        if epoch != self._epoch:
            whole = self.size // self.batch_size * self.batch_size
            drawn_by = generator(Purpose.ORDER, self.seed, epoch)
            shuffled = torch.randperm(self.size, generator=drawn_by, dtype=torch.int32)
            self._rows = shuffled[:whole].view(-1, self.batch_size)
            self._epoch = epoch
        return self._rows[first :: self.world_size]
