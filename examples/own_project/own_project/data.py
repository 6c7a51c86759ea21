"""Data of one's own: three splits, from wherever they come."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flexgen.data import DataModule


class Examples:
    """A split in memory.

    Args:
        x: uint8 in [0, 255], which the data module scales to its range; floats are left alone.
        labels: `(n,)` long, or None.
    """

    def __init__(self, x: Tensor, labels: Tensor | None) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def read(self, index: Tensor) -> Tensor:
        return self.x[index]


class FewDigits(DataModule):
    """Some of the classes of scikit-learn's digits, 8 × 8 grey images.

    Args:
        digits: which; their labels are 0, 1, … in this order.
        num_validation: examples held out to measure on.
        num_test: examples held out for the end.
        **options: see :class:`flexgen.data.DataModule`.
    """

    def __init__(
        self, digits: Sequence[int], *, num_validation: int, num_test: int, **options
    ) -> None:
        super().__init__(**options)
        self.digits, self.num_validation, self.num_test = digits, num_validation, num_test

    @property
    def num_classes(self) -> int:
        return len(self.digits)

    def _build(self) -> dict[str, Examples]:
        scans = load_digits()
        labels = np.array([self.digits.index(t) if t in self.digits else -1 for t in scans.target])
        # The same split for every seed of a run: seeds are compared on the same data.
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
        cuts = [self.num_validation, self.num_validation + self.num_test]
        parts = np.split(chosen, cuts)
        pixels = (scans.images * (255 / 16)).round().astype(np.uint8)[:, None]
        return {
            name: Examples(torch.from_numpy(pixels[part]), torch.from_numpy(labels[part]))
            for name, part in zip(("validation", "test", "train"), parts, strict=True)
        }
