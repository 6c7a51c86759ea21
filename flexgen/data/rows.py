"""What arrays and tables of one's own share: rows of one file, cut into splits by their numbers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_one_of
from flexgen.data.inspection import LEAVE_OUT, REFUSE, UNUSABLE, some_of
from flexgen.data.module import FINGERPRINT_BYTES, SPLITS, DataModule
from flexgen.data.sampler import Order, cut_by_draws, draws_of_rows
from flexgen.data.sources import printable
from flexgen.data.stream import Chunk, Split, worker_chunks
from flexgen.files import file_sha256

log = logging.getLogger(__name__)

_RESIDENT_BYTES = 2**30


class RowsData(DataModule):
    """Rows of one file, cut into three by their numbers: those added at the end move no others.

    Args:
        root: the file.
        num_validation: rows for validation; None: a fifth, a tenth of 1,000 or more.
        num_test: rows for testing; None: as for validation.
        augment: what each training row goes through, such as transforms of torchvision's v2;
            torch's draws in it are a function of (seed, position).
        unusable: "refuse" to begin where rows hold NaN or infinity, or "leave_out" those.
        **module: as :class:`DataModule` takes them.

    Raises:
        ValueError: if an argument is out of bounds.
    """

    def __init__(
        self, *, root: str | Path, num_validation: int | None, num_test: int | None,
        augment: Sequence[Callable[[Tensor], Tensor]] | None, unusable: str, **module: Any,
    ) -> None:  # fmt: skip
        super().__init__(**module)
        check_one_of("unusable", unusable, UNUSABLE, "set `data.unusable`")
        self.root, self.augment, self.unusable = Path(root), list(augment or ()), unusable
        self.nums = {"test": num_test, "validation": num_validation}
        for part, num in self.nums.items():
            if num is not None:
                check_integer(f"num_{part}", num, 0, f"set `data.num_{part}`")
        self._notes: list[str] = []

    @property
    def num_classes(self) -> int | None:
        """Number of labels over all splits, or None where there are none."""
        labels = [y for y in (self._split(part).labels for part in SPLITS) if y is not None]
        return max(int(y.max()) for y in labels if len(y)) + 1 if labels else None

    def usable(self, bad: Tensor, size: int, what: str) -> Tensor:
        """Numbers of the rows that are not `bad`.

        Raises:
            ValueError: if there are bad ones and they are not to be left out, or there are no
                others.
        """
        if not len(bad):
            return torch.arange(size)
        named = some_of([str(i) for i in bad.tolist()], most=20)
        told = f"{len(bad)} of {size} rows of {printable(str(self.root))} {what} (rows {named})"
        if self.unusable == REFUSE or len(bad) == size:
            raise ValueError(
                f"{told}, counted from 0; repair them, or leave them out: data.unusable={LEAVE_OUT}"
            )
        self._notes.append(f"left out: {told}")
        kept = torch.ones(size, dtype=torch.bool).index_fill(0, bad, False)
        return kept.nonzero().squeeze(1)

    def cut(self, rows: Tensor, size: int, labels: Tensor | None) -> dict[str, Tensor]:
        """The rows of each split, of `size` rows in all, of which some may be left out."""
        cut = cut_by_draws(
            lambda part: draws_of_rows(size, part)[rows],
            None if labels is None else labels[rows],
            self.nums,
        )
        return {part: rows[index] for part, index in cut.items()}

    def record(self) -> dict[str, Any]:
        size = self.root.stat().st_size
        digest = file_sha256(self.root) if size <= FINGERPRINT_BYTES else self.fingerprint
        return {part: self.size(part) for part in SPLITS} | {"bytes": size, "sha256": digest}

    def _chunks(
        self, train: Split, device: torch.device, order: Order, position: int
    ) -> Iterator[Chunk]:
        if order.rank == 0:
            for line in self._notes:
                log.info("%s: %s", printable(str(self.root)), line)
            self._notes = []
        if len(train) * train.read(torch.arange(1)).nbytes <= _RESIDENT_BYTES:
            return super()._chunks(train, device, order, position)
        return worker_chunks(train, order, position, device, 0)
