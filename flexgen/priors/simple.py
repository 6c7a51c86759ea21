"""The fixed priors: normal and uniform."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints

__all__ = ["BoxUniform", "DiagonalNormal", "Normal", "Uniform"]


class DiagonalNormal(Distribution):
    """N(loc, diag(scale²)) over vectors.

    `Independent(Normal(…), 1)` says the same, but spends five times as long on a draw in argument
    checks and broadcasting, which a training step on a small network feels.

    Args:
        loc: mean, `(*batch, d)`.
        scale: standard deviation, `(*batch, d)`, above 0.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return torch.addcmul(self.loc, self.scale, self._noise(sample_shape))

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, from the noise itself."""
        eps = self._noise(sample_shape)
        log_prob = -(0.5 * (eps.square() + math.log(2 * math.pi)) + self.scale.log()).sum(-1)
        return torch.addcmul(self.loc, self.scale, eps), log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        whitened = (value - self.loc) / self.scale
        return -(0.5 * (whitened.square() + math.log(2 * math.pi)) + self.scale.log()).sum(-1)

    def rsample_and_kl(
        self, other: "DiagonalNormal", sample_shape: torch.Size | list[int] | tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Draws, and KL(self ‖ other) of each dimension, `(*batch, d)`, nats."""
        eps = self._noise(sample_shape)
        z, kl = _DrawAndKL.apply(self.loc, self.scale, eps, other.loc, other.scale)
        return z, kl

    def _noise(self, sample_shape: torch.Size | list[int] | tuple[int, ...]) -> Tensor:
        return torch.randn(
            *sample_shape, *self.loc.shape, device=self.loc.device, dtype=self.loc.dtype
        )


class _DrawAndKL(Function):
    """z = loc + scale · eps and ½(r² + s² − 1) − log r of r = scale / scale', s = (loc − loc') /
    scale', as one node: fifteen small ones take as long as a layer of the networks around them."""

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, scale: Tensor, eps: Tensor, other_loc: Tensor, other_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio, shift = scale / other_scale, (loc - other_loc) / other_scale
        ctx.save_for_backward(scale, eps, ratio, shift, other_loc, other_scale)
        kl = torch.addcmul(ratio.square(), shift, shift).sub_(1).mul_(0.5).sub_(ratio.log())
        return torch.addcmul(loc, scale, eps), kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        scale, eps, ratio, shift, other_loc, other_scale = ctx.saved_tensors
        per_unit = grad_kl / other_scale
        of_loc = shift * per_unit
        grad_loc = grad_z.sum_to_size(scale.shape) + of_loc
        of_scale = (grad_z * eps).sum_to_size(scale.shape)
        grad_scale = of_scale.addcmul_(ratio - ratio.reciprocal(), per_unit)
        grad_others: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[3]:
            grad_others[0] = -of_loc.sum_to_size(other_loc.shape)
        if ctx.needs_input_grad[4]:
            further = 1 - ratio.square() - shift.square()
            grad_others[1] = (further * per_unit).sum_to_size(other_scale.shape)
        return grad_loc, grad_scale, None, *grad_others


class BoxUniform(Distribution):
    """U([low, high]^d) over vectors; `log_prob` is −inf outside the box.

    Args:
        low: lower corner, `(d,)`.
        high: upper corner, `(d,)`, above `low`.
    """

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        super().__init__(event_shape=low.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mean(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low).square() / 12

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        u = torch.rand(
            *sample_shape, *self._event_shape, device=self.low.device, dtype=self.low.dtype
        )
        return torch.lerp(self.low, self.high, u)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = ((value >= self.low) & (value <= self.high)).all(-1)
        volume = (self.high - self.low).log().sum()
        return torch.where(inside, -volume, -math.inf)


class Normal(nn.Module):
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

    has_log_prob = True
    support: tuple[float, float] | None = None

    loc: Tensor
    sigma: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        if not scale > 0:
            raise ValueError(f"`scale` must be above 0, got {scale}; set `prior.scale=1`")
        self.latent_dim, self.scale = latent_dim, float(scale)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("sigma", torch.full((latent_dim,), self.scale), persistent=False)

    def forward(self) -> DiagonalNormal:
        return DiagonalNormal(self.loc, self.sigma)


class Uniform(nn.Module):
    """U([low, high]^d), as Creswell & Bharath and Goerttler & Kloft use it.

    Args:
        latent_dim: d, at least 1.
        low: lower end of each coordinate.
        high: upper end of each coordinate, above `low`.

    Raises:
        ValueError: for a `latent_dim` under 1 or `high` not above `low`.
    """

    has_log_prob = True

    lower: Tensor
    upper: Tensor

    def __init__(self, latent_dim: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        if not high > low:
            raise ValueError(f"`high` must be above `low` {low}, got {high}; set `prior.high=1`")
        self.latent_dim, self.support = latent_dim, (float(low), float(high))
        self.register_buffer("lower", torch.full((latent_dim,), float(low)), persistent=False)
        self.register_buffer("upper", torch.full((latent_dim,), float(high)), persistent=False)

    def forward(self) -> BoxUniform:
        return BoxUniform(self.lower, self.upper)


def check_latent_dim(latent_dim: int) -> None:
    """Refuse a latent dimension under 1."""
    if latent_dim < 1:
        raise ValueError(f"`latent_dim` must be at least 1, got {latent_dim}; set `latent_dim=20`")
