"""What a decoder's output says of the data: p(x|z) as a distribution over x.

A likelihood is a module that, called with codes `(*batch, latent_dim)`, returns a distribution
with `batch_shape = batch` and `event_shape = shape` of one datum. The models ask it for `log_prob`
and `mean` alone, so one that unrolls over pixels fits as well.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

__all__ = ["Bernoulli", "DiscretisedLogistic", "Gaussian"]


class _OfPixels(Distribution):
    """Independent pixels: `log_prob` sums over the event."""

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, parameter: Tensor, event_dims: int) -> None:
        cut = parameter.ndim - event_dims
        super().__init__(parameter.shape[:cut], parameter.shape[cut:], validate_args=False)

    def _sum(self, log_prob: Tensor) -> Tensor:
        return log_prob.flatten(-len(self._event_shape)).sum(-1)

    def _shape(self, sample_shape: Sequence[int]) -> tuple[int, ...]:
        return (*sample_shape, *self._batch_shape, *self._event_shape)


class BernoulliPixels(_OfPixels):
    """Pixels x in {0, 1} (or in between, as an expectation of them) with the given logits."""

    def __init__(self, logits: Tensor, event_dims: int) -> None:
        self.logits = logits
        super().__init__(logits, event_dims)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        dtype = torch.promote_types(self.logits.dtype, value.dtype)
        logits, value = torch.broadcast_tensors(self.logits.to(dtype), value.to(dtype))
        return -self._sum(binary_cross_entropy_with_logits(logits, value, reduction="none"))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.bernoulli(self.mean.detach().expand(self._shape(sample_shape)))


class GaussianPixels(_OfPixels):
    """Pixels with means and one standard deviation each, or one for all."""

    def __init__(self, loc: Tensor, scale: Tensor, event_dims: int) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc, event_dims)

    @property
    def mean(self) -> Tensor:
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        whitened = (value - self.loc) / self.scale
        return self._sum(-0.5 * (whitened.square() + math.log(2 * math.pi)) - self.scale.log())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(self._shape(sample_shape))
            return loc + self.scale * torch.randn_like(loc)


class LogisticPixels(_OfPixels):
    """Pixels on a grid of `levels` values from `low` to `high`: a logistic's mass in each cell."""

    def __init__(
        self, loc: Tensor, scale: Tensor, low: float, high: float, levels: int, event_dims: int
    ) -> None:
        self.loc, self.scale, self.low, self.high, self.levels = loc, scale, low, high, levels
        super().__init__(loc, event_dims)

    @property
    def mean(self) -> Tensor:
        """The logistic's mean within the range; its mass beyond the ends belongs to them."""
        return self.loc.clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        half = (self.high - self.low) / (self.levels - 1) / 2
        upper = (value + half - self.loc) / self.scale
        lower = (value - half - self.loc) / self.scale
        # log(σ(u) − σ(l)) = log σ(u) + log σ(−l) + log(1 − exp(l − u)): no difference of sigmoids,
        # which is 0 far from the mean.
        width = torch.log(-torch.expm1(-2 * half / self.scale))
        inside = logsigmoid(upper) + logsigmoid(-lower) + width
        log_prob = torch.where(
            value <= self.low + half / 2,
            logsigmoid(upper),
            torch.where(value >= self.high - half / 2, logsigmoid(-lower), inside),
        )
        return self._sum(log_prob)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            u = torch.rand(self._shape(sample_shape), device=self.loc.device).clamp(1e-6, 1 - 1e-6)
            x = (self.loc + self.scale * u.logit()).clamp(self.low, self.high)
            step = (self.high - self.low) / (self.levels - 1)
            return self.low + ((x - self.low) / step).round() * step


class _Likelihood(nn.Module):
    """A decoder and what its output means.

    Args:
        decoder: codes `(n, latent_dim)` to `(n, *shape)`, unbounded.

    Attributes:
        data_range: the range that data must have; None: any.
        has_mass: whether pixels have probabilities; else a density.
    """

    data_range: tuple[float, float] | None = None
    has_mass = False

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def decode(self, z: Tensor) -> tuple[Tensor, int]:
        """The decoder's output `(*batch, *shape)` for codes `(*batch, latent_dim)`; len(shape)."""
        out: Tensor = self.decoder(z.reshape(-1, z.shape[-1]))
        return out.view(*z.shape[:-1], *out.shape[1:]), out.ndim - 1


class Bernoulli(_Likelihood):
    r"""Binary pixels, $\log p(x|z) = \sum_i x_i l_i − \log(1 + e^{l_i})$ with logits l of z, nats.

    Args:
        decoder: codes `(n, latent_dim)` to logits `(n, *shape)`.
    """

    data_range = (0.0, 1.0)
    has_mass = True

    def forward(self, z: Tensor) -> BernoulliPixels:
        return BernoulliPixels(*self.decode(z))


class Gaussian(_Likelihood):
    r"""Pixels N(loc(z), σ²), a density: nats against the Lebesgue measure of the data's unit.

    Args:
        decoder: codes `(n, latent_dim)` to means `(n, *shape)`.
        scale: σ, above 0; where it starts if it is learned.
        learn_scale: whether σ, one for all pixels, learns.

    Raises:
        ValueError: if `scale` is not above 0.
    """

    def __init__(self, decoder: nn.Module, scale: float = 1.0, learn_scale: bool = True) -> None:
        super().__init__(decoder)
        if not 0 < scale < math.inf:
            raise ValueError(
                f"`scale` must be above 0 and finite, got {scale}; set `likelihood.scale=1`"
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)

    def forward(self, z: Tensor) -> GaussianPixels:
        loc, event_dims = self.decode(z)
        return GaussianPixels(loc, self.log_scale.exp(), event_dims)


class DiscretisedLogistic(_Likelihood):
    r"""Pixels of `levels` values: the mass of a logistic between the edges of a value's cell.

    .. math:: P(x_i|z) = σ((x_i + δ − m_i)/s) − σ((x_i − δ − m_i)/s)

    with δ half a level; the lowest value has all mass below its upper edge, the highest all above
    its lower one, so the masses of all values add up to 1.

    Args:
        decoder: codes `(n, latent_dim)` to means m `(n, *shape)`, in the data's range.
        range: (low, high), the data's range.
        levels: how many values a pixel has.
        scale: s, above 0, where it starts; one for all pixels learns.

    Raises:
        ValueError: for a range that is not rising, under two levels, or a scale not above 0.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    appendix (CIFAR-10). Departure: the end cells are open, so that the masses add up to 1.
    """

    has_mass = True

    def __init__(
        self,
        decoder: nn.Module,
        range: Sequence[float] = (-1.0, 1.0),
        levels: int = 256,
        scale: float = 0.1,
    ) -> None:
        super().__init__(decoder)
        low, high = (float(end) for end in range)
        if not low < high:
            raise ValueError(f"`range` must rise, got {(low, high)}; set `data.range=[-1,1]`")
        if levels < 2:
            raise ValueError(f"`levels` must be at least 2, got {levels}; 256 are usual")
        if not 0 < scale < math.inf:
            raise ValueError(
                f"`scale` must be above 0 and finite, got {scale}; set `likelihood.scale=0.1`"
            )
        self.low, self.high, self.data_range = low, high, (low, high)
        self.levels = levels
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, z: Tensor) -> LogisticPixels:
        loc, event_dims = self.decode(z)
        return LogisticPixels(
            loc, self.log_scale.exp(), self.low, self.high, self.levels, event_dims
        )
