"""Coverage of a known mixture: which of its modes a model found, and how evenly."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from flexgen.checks import check_positive
from flexgen.metrics.streaming import as_rows

# A sample counts as of high quality within this many standard deviations of its mode.
_HIGH_QUALITY_RADIUS = 3.0


class ModeCoverage(Metric):
    """Modes captured, high-quality share and evenness of samples of a uniform Gaussian mixture.

    Each sample belongs to the nearest centre, and is of high quality if it lies within three
    standard deviations of it. `compute` returns a dictionary of float64 scalars:

    - `captured`: number of modes with at least one high-quality sample, 0 to k;
    - `high_quality`: share of the samples that are of high quality, 0 to 1. Data of the mixture
      themselves have 0.989 in two dimensions (1 - exp(-9/2));
    - `total_variation`: distance ½ Σ |share - 1/k| of the modes' shares of *all* samples to the
      uniform ones, 0 (even) to 1 - 1/k (all in one mode). n even samples have about
      sqrt((k-1) / (2 π n)) by chance.

    Args:
        centres: means of the mixture's components, `(k, d)`.
        std: standard deviation of each component and coordinate, positive.

    Raises:
        ValueError: `centres` is not a finite `(k, d)` with k at least 1, or `std` is not positive.

    Source: the counts of Srivastava et al., VEEGAN, 2017.

    Example:
        >>> coverage = ModeCoverage(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), std=0.1)
        >>> coverage.update(torch.tensor([[-1.0, 0.1], [-1.0, 0.5]]))
        >>> {name: float(value) for name, value in coverage.compute().items()}
        {'captured': 1.0, 'high_quality': 0.5, 'total_variation': 0.5}
    """

    full_state_update = False
    is_differentiable = False

    centres: Tensor
    assigned: Tensor
    high_quality: Tensor

    def __init__(self, centres: Tensor, std: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        centres = torch.as_tensor(centres, dtype=torch.float64)
        if centres.ndim != 2 or len(centres) == 0:
            raise ValueError(
                f"`centres` must have shape (modes, features), got {tuple(centres.shape)}; "
                "give one row a mode"
            )
        check_positive("std", std, "give a component's spread")
        self.std = std
        self.register_buffer("centres", as_rows(centres, "centres"), persistent=False)
        counts = torch.zeros(len(centres), dtype=torch.int64)
        self.add_state("assigned", counts, dist_reduce_fx="sum")
        self.add_state("high_quality", counts, dist_reduce_fx="sum")

    def update(self, x: Tensor) -> None:
        """Add samples.

        Args:
            x: samples, `(n, d)`, in the unit of the centres.

        Raises:
            ValueError: `x` is not `(n, d)` or not finite.
        """
        x = as_rows(x, "x").to(self.device)
        k, d = self.centres.shape
        if x.shape[1] != d:
            raise ValueError(
                f"`x` must have the {d} features of the centres, got {x.shape[1]}; "
                "score samples in the space of the mixture"
            )
        exact = "donot_use_mm_for_euclid_dist"
        distance, mode = torch.cdist(x, self.centres, compute_mode=exact).min(dim=1)
        near = distance <= _HIGH_QUALITY_RADIUS * self.std
        self.assigned = self.assigned + torch.bincount(mode, minlength=k)
        self.high_quality = self.high_quality + torch.bincount(mode[near], minlength=k)

    def compute(self) -> dict[str, Tensor]:
        """`captured`, `high_quality` and `total_variation`, each a float64 scalar.

        Raises:
            ValueError: there were no samples.
        """
        n = self.assigned.sum()
        if n == 0:
            raise ValueError("no samples to score; call `update(x)` with samples (n, d) first")
        shares = self.assigned.double() / n
        return {
            "captured": (self.high_quality > 0).sum().double(),
            "high_quality": self.high_quality.sum().double() / n,
            "total_variation": 0.5 * (shares - 1 / len(shares)).abs().sum(),
        }
