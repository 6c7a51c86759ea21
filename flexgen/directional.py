"""Distributions over directions: densities on the unit sphere, nats against its area."""

import math

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import normalize

from flexgen.distributions import Shape, Vectors

_SMALLEST = 1e-6  # of 1 + μᵀz: its logarithm opposite to the mean direction


def log_area(dim: int) -> float:
    """log of the area of the unit sphere in d dimensions, log 2 + (d/2) log π − log Γ(d/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class UniformSphere(Vectors):
    """All directions alike.

    Args:
        like: of d numbers, on the device and of the type that draws are to have.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        super().__init__((), len(like))

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.like)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = *sample_shape, *self._event_shape
        return normalize(torch.randn(shape, device=self.like.device, dtype=self.like.dtype), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_full(value.shape[:-1], -log_area(value.shape[-1]))


class PowerSpherical(Vectors):
    r"""$p(z) ∝ (1 + μ^T z)^κ$ for |z| = 1: directions around μ, a batch of them.

    .. math:: \log p(z) = κ \log(1 + μ^T z) - (α + β) \log 2 - β \log π - \log Γ(α) + \log Γ(α + β),
        \quad α = β + κ, \quad β = \tfrac{d - 1}{2}

    It serves where the von Mises-Fisher distribution does, without its rejections and its Bessel
    functions: a draw is a Beta number and a reflection, with gradient; entropy is in closed form.

    Args:
        loc: μ, `(*batch, d)`, of length 1.
        concentration: κ, `(*batch,)`, at least 0.

    Source: De Cao & Aziz, "The power spherical distribution", 2020, Algorithm 1 (draws).
    """

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(loc.shape[:-1], loc.shape[-1])
        self.beta = (loc.shape[-1] - 1) / 2
        self.alpha = self.beta + concentration

    @property
    def mean(self) -> Tensor:
        return self.loc * ((self.alpha - self.beta) / (self.alpha + self.beta))[..., None]

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        t = (
            2
            * Beta(self.alpha, torch.full_like(self.alpha, self.beta)).rsample(
                torch.Size(sample_shape)
            )[..., None]
            - 1
        )
        shape = *t.shape[:-1], self._event_shape[0] - 1
        around = normalize(torch.randn(shape, device=t.device, dtype=t.dtype), dim=-1)
        y = torch.cat([t, (1 - t.square()).clamp_min(0).sqrt() * around], -1)
        # The reflection that takes the first axis to μ.
        axis = torch.zeros_like(self.loc)
        axis[..., 0] = 1
        normal = normalize(axis - self.loc, dim=-1)
        return y - 2 * (y * normal).sum(-1, keepdim=True) * normal

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities."""
        z = self.rsample(sample_shape)
        return z, self.log_prob(z)

    def log_prob(self, value: Tensor) -> Tensor:
        along = (self.loc * value).sum(-1)
        return self.concentration * (1 + along).clamp_min(_SMALLEST).log() - self._log_normaliser()

    def entropy(self) -> Tensor:
        """Nats, `(*batch,)`."""
        log_along = math.log(2) + self.alpha.digamma() - (self.alpha + self.beta).digamma()
        return self._log_normaliser() - self.concentration * log_along

    def kl_to_uniform(self) -> Tensor:
        """KL(self ‖ uniform), nats, `(*batch,)`."""
        return log_area(self._event_shape[0]) - self.entropy()

    def _log_normaliser(self) -> Tensor:
        both = self.alpha + self.beta
        constant = both * math.log(2) + self.beta * math.log(math.pi)
        return constant + self.alpha.lgamma() - both.lgamma()
