"""Affine maps that learn: a scale and shift that start from codes, and an invertible matrix."""

import torch
from torch import Tensor, nn

from flexgen.flows.transform import Mapped, Transform

# Of a coordinate in which all codes agree.
_SMALLEST = 1e-6


class ActNorm(Transform):
    r"""z = μ + eˢ ε with learned μ and s; log |det J| = Σᵢ sᵢ.

    It is the identity until :meth:`start` sets it by codes, whose images towards the base then have
    mean 0 and standard deviation 1.

    Source: Kingma & Dhariwal, "Glow", 2018, section 3.1.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.loc = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        self.loc.copy_(z.mean(0))
        self.log_scale.copy_(z.std(0, correction=0).clamp_min(_SMALLEST).log())

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return torch.addcmul(self.loc, self.log_scale.exp(), eps), self.log_scale.sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        return (z - self.loc) * (-self.log_scale).exp(), -self.log_scale.sum()


class LULinear(Transform):
    r"""ε = P L U z: a learned matrix with a determinant for nothing; it starts as a permutation.

    .. math:: \log |\det ∂z/∂ε| = -\sum_i s_i, \quad U_{ii} = e^{s_i}

    P is a permutation, drawn at construction and fixed; L is unit lower, U upper triangular, both
    the identity at the start. A density takes one product, a draw two triangular systems: both
    exact. (From a random rotation, coordinates with nothing to learn would be mixed with the
    others.)

    Source: Kingma & Dhariwal, "Glow", 2018, eq. 10 and 11; Durkan et al., "Neural spline flows",
    2019, section 3.2 (a fixed permutation and L U from the identity).
    """

    order: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.register_buffer("order", torch.randperm(features))

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        lower, upper = self._factors()
        permuted = eps.index_select(-1, self.order.argsort())
        half = _solved(lower.mT, permuted, upper=True, unitriangular=True)
        return _solved(upper.mT, half, upper=False), -self.log_diagonal.sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        lower, upper = self._factors()
        return z @ (lower @ upper).index_select(0, self.order).mT, self.log_diagonal.sum()

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.features, device=self.lower.device, dtype=self.lower.dtype)
        diagonal = self.log_diagonal.exp().diag()
        return self.lower.tril(-1) + eye, self.upper.triu(1) + diagonal


def _solved(matrix: Tensor, rows: Tensor, **how: bool) -> Tensor:
    """X of X A = B, rows B `(*batch, d)`."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.linalg.solve_triangular(matrix, flat, left=False, **how).view(rows.shape)
