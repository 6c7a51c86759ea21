"""The fixed priors: normal, truncated normal, uniform in a box and on a sphere."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flexgen.checks import check_integer, check_positive
from flexgen.contracts import BaseSpace, Prior
from flexgen.directional import UniformSphere
from flexgen.distributions import BoxUniform, DiagonalNormal, TruncatedNormal


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


class Truncation(Prior):
    """N(0, I) with each coordinate in [−τ, τ], and its density: the truncation trick.

    For a generator that was trained under N(0, I): a lower τ gives better samples that vary less.

    Args:
        latent_dim: d, at least 1.
        threshold: τ, above 0.

    Raises:
        ValueError: for a `latent_dim` under 1 or a `threshold` not above 0.

    Source: Brock, Donahue & Simonyan, "Large scale GAN training for high fidelity natural image
    synthesis", 2019, section 3.1, who draw anew what lies outside. The ψ of Karras et al., "A
    style-based generator architecture", 2019, scales codes of W around their mean; for a generator
    without a mapping network it is `prior=normal prior.scale=ψ`.
    """

    sigma: Tensor

    def __init__(self, latent_dim: int, threshold: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        self.threshold = check_positive("threshold", threshold, "set `prior.threshold=1`")
        self.support = (-self.threshold, self.threshold)
        self.register_buffer("sigma", torch.ones(latent_dim), persistent=False)

    def forward(self, context: Tensor | None = None) -> TruncatedNormal:
        return TruncatedNormal(self.sigma, self.threshold)


class Hyperspherical(Prior):
    """All directions alike: codes of length 1, in d dimensions.

    Of a VAE, for `posterior=power_spherical` or `von_mises_fisher`. A game takes it too; codes of
    data are then found in the space of ε from N(0, I), with z = ε/|ε|.

    Args:
        latent_dim: d, at least 2.

    Raises:
        ValueError: for a `latent_dim` under 2.

    Source: Davidson et al., "Hyperspherical variational auto-encoders", 2018, section 3.
    """

    spherical = True
    centre: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        self.register_buffer("centre", torch.zeros(latent_dim), persistent=False)

    def forward(self, context: Tensor | None = None) -> UniformSphere:
        return UniformSphere(self.centre)

    def base_space(self) -> BaseSpace:
        """The space of ε, in which a direction has no one point."""
        base = Normal(self.latent_dim).to(self.centre)
        return BaseSpace(base, lambda eps: normalize(eps, dim=-1), None)


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
