"""The fixed priors: normal and uniform."""

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_positive
from flexgen.contracts import Prior
from flexgen.distributions import BoxUniform, DiagonalNormal


class Normal(Prior):
    """The usual prior N(0, σ²I).

    Args:
        latent_dim: d, at least 1.
        scale: σ, above 0.

    Raises:
        ValueError: for a `latent_dim` under 1 or a `scale` not above 0.

    Example:
        >>> Normal(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    loc: Tensor
    sigma: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        check_positive("scale", scale, "set `prior.scale=1`")
        self.latent_dim, self.scale = latent_dim, float(scale)
        self.normal_scale = self.scale
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("sigma", torch.full((latent_dim,), self.scale), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        return DiagonalNormal(self.loc, self.sigma)


class Uniform(Prior):
    """U([low, high]^d), as Creswell & Bharath and Goerttler & Kloft use it.

    Args:
        latent_dim: d, at least 1.
        low: lower end of each coordinate.
        high: upper end of each coordinate, above `low`.

    Raises:
        ValueError: for a `latent_dim` under 1 or `high` not above `low`.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, latent_dim: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        if not high > low:
            raise ValueError(f"`high` must be above `low` {low}, got {high}; set `prior.high=1`")
        self.latent_dim, self.support = latent_dim, (float(low), float(high))
        self.register_buffer("lower", torch.full((latent_dim,), float(low)), persistent=False)
        self.register_buffer("upper", torch.full((latent_dim,), float(high)), persistent=False)

    def forward(self, context: Tensor | None = None) -> BoxUniform:
        return BoxUniform(self.lower, self.upper)
