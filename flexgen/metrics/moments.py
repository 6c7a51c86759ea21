"""Moments of codes, the state of the scores that compare them with a Gaussian."""

from typing import Any

import torch
from torch import Tensor

from flexgen.metrics.streaming import StreamingMetric, as_rows


class CodeMoments(StreamingMetric):
    """First and second moments of codes, in float64: the state of the Gaussian scores, O(d²)."""

    higher_is_better = False

    num_codes: Tensor
    sum_z: Tensor
    sum_zz: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("num_codes", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("sum_z", "sum_zz"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        shapes = {"sum_z": (width,), "sum_zz": (width, width)}
        return {name: self.sum_z.new_zeros(shape) for name, shape in shapes.items()}

    def update(self, z: Tensor) -> None:
        """Add codes.

        Args:
            z: codes, `(n, d)`, of any floating type and on any device.

        Raises:
            ValueError: `z` is not `(n, d)`, has another `d` than before, or is not finite.
        """
        check_codes(z)
        z = as_rows(z, "z", width=self.width).to(self.device)
        self.num_codes = self.num_codes + len(z)
        self.sum_z = self.sum_z + z.sum(0)
        self.sum_zz = self.sum_zz + z.T @ z

    def seen(self) -> tuple[int, int]:
        """Number and dimension of the codes, checked."""
        n = int(self.num_codes)
        if n == 0:
            raise ValueError("no codes to score; call `update(z)` with codes (n, d) first")
        return n, self.width


def divergence(eigenvalues: Tensor, largest: Tensor) -> Tensor:
    """½ Σ (λ - log λ - 1) over the last dimension, infinite where a λ is lost in rounding.

    Args:
        eigenvalues: of a covariance, in the units of the reference, `(..., d)`.
        largest: scale of the matrix they were computed from, broadcasting to `eigenvalues`.
    """
    # Rounding leaves ±1e-16 of the largest where the exact eigenvalue is 0: its log would be a
    # NaN or a harmless-looking -37, by chance.
    lost = eigenvalues <= largest * eigenvalues.shape[-1] * torch.finfo(torch.float64).eps
    kept = eigenvalues.masked_fill(lost, 0.0)
    return 0.5 * (kept - kept.log() - 1).sum(-1)


def check_codes(z: Tensor) -> None:
    """Refuse what is not `(n, d)`."""
    if z.ndim != 2:
        raise ValueError(
            f"`z` must be codes of shape (n, d), got {tuple(z.shape)}; flatten them with "
            "`z.flatten(1)` if a code has several dimensions"
        )


def check_rank(n: int, d: int, *, centred: bool = False) -> None:
    """Refuse `n` codes that cannot span `d` dimensions (`n` one less if their mean is taken)."""
    if n < d:
        least, got = (d + 1, n + 1) if centred else (d, n)
        raise ValueError(
            f"the divergence of {got} codes in {d} dimensions is infinite, their covariance being "
            f"singular; give at least {least} codes, 3 a dimension for a score of use"
        )
