"""Distributions over codes and over pixels, as torch Distributions without its argument checks."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Normal, constraints
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from flexgen.contracts import Ladder

Shape = torch.Size | list[int] | tuple[int, ...]


def covariance(z: Tensor, correction: int = 1) -> Tensor:
    """The covariance `(d, d)` of vectors `(n, d)`, float64; for d = 1 too."""
    d = z.shape[1]
    return torch.cov(z.detach().double().mT, correction=correction).view(d, d)


def drawn(distribution: Distribution, sample_shape: Shape = ()) -> Tensor:
    """Draws, with a gradient where the distribution has one."""
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    return draw(torch.Size(sample_shape))


class Vectors(Distribution):
    """A distribution over vectors `(d,)`.

    Args:
        batch: the batch shape.
        dim: d.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)

    def __init__(self, batch: Sequence[int], dim: int) -> None:
        super().__init__(torch.Size(batch), torch.Size((dim,)), validate_args=False)


class _Located(Vectors):
    """A batch of normals that its means `loc`, `(*batch, d)`, give the shape."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.loc


class DiagonalNormal(_Located):
    """N(loc, diag(scale²)) over vectors.

    `Independent(Normal(…), 1)` says the same, but spends five times as long on a draw in argument
    checks and broadcasting, which a training step on a small network feels.

    Args:
        loc: mean, `(*batch, d)`.
        scale: standard deviation, `(*batch, d)`, above 0.
    """

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return torch.addcmul(self.loc, self.scale, self._noise(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, from the noise itself."""
        eps = self._noise(sample_shape)
        return torch.addcmul(self.loc, self.scale, eps), self._log_prob(eps)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob((value - self.loc) / self.scale)

    def log_prob_of_each(self, value: Tensor) -> Tensor:
        """Of each of n values `(n, d)` under each of K normals, `loc` `(K, d)`, `(n, K)`.

        By two matrix products, in float64: the squares that they add up cancel.
        """
        z, loc = value.double(), self.loc.double()
        precision = self.scale.double().square().reciprocal()
        weighed = loc * precision
        own = (loc * weighed).sum(-1) + 2 * self.scale.double().log().sum(-1)
        own = own + z.shape[-1] * math.log(2 * math.pi)
        squares = z.square() @ precision.mT - 2 * z @ weighed.mT + own
        return (-0.5 * squares).to(value.dtype)

    def rsample_and_kl(
        self, other: "DiagonalNormal", sample_shape: Shape = ()
    ) -> tuple[Tensor, Tensor]:
        """Draws, and KL(self ‖ other) of each dimension, `(*batch, d)`, nats."""
        eps = self._noise(sample_shape)
        z, kl = _DrawAndKL.apply(self.loc, self.scale, eps, other.loc, other.scale)
        return z, kl

    def kl(self, other: "DiagonalNormal") -> Tensor:
        """KL(self ‖ other) of each dimension, `(*batch, d)`, nats; the batches broadcast."""
        ratio, shift = self.scale / other.scale, (self.loc - other.loc) / other.scale
        return 0.5 * (ratio.square() + shift.square() - 1) - ratio.log()

    def _log_prob(self, eps: Tensor) -> Tensor:
        return -(0.5 * (eps.square() + math.log(2 * math.pi)) + self.scale.log()).sum(-1)

    def _noise(self, sample_shape: Shape) -> Tensor:
        loc = self.loc
        return torch.randn(*sample_shape, *loc.shape, device=loc.device, dtype=loc.dtype)


def normal_of(loc: Tensor, log_scale: Tensor) -> DiagonalNormal:
    """The normals of a network's outputs, `(*batch, d)` each, log-scales cut to ±10."""
    # Under autocast a log-density of 50 terms in half precision has a grain of half a nat.
    exact = torch.promote_types(loc.dtype, torch.float32)
    # A scale that overflows, or is 0, makes the first steps of a deep encoder NaN.
    return DiagonalNormal(loc.to(exact), log_scale.to(exact).clamp(-10, 10).exp())


class Point(Vectors):
    """All mass at `loc`, `(*batch, d)`: it is its own draw, and has no density."""

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.loc

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.loc.expand(*sample_shape, *self.loc.shape)


class _DrawAndKL(Function):
    """z = loc + scale · eps and ½(r² + s² − 1) − log r of r = scale / scale', s = (loc − loc') /
    scale', as one node: fifteen small ones take as long as a layer of the networks around them."""

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, scale: Tensor, eps: Tensor, other_loc: Tensor, other_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio, shift = scale / other_scale, (loc - other_loc) / other_scale
        ctx.save_for_backward(loc, scale, eps, ratio, shift, other_loc, other_scale)
        kl = torch.addcmul(ratio.square(), shift, shift).sub_(1).mul_(0.5).sub_(ratio.log())
        return torch.addcmul(loc, scale, eps), kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, eps, ratio, shift, other_loc, other_scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, so of the inputs
            ratio, shift = scale / other_scale, (loc - other_loc) / other_scale
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


class HierarchicalNormal(Vectors):
    r"""Levels of a vector, each but the highest a diagonal normal given those above it, mostly.

    .. math:: p(z) = p(z_L) \prod_{l<L} N(z_l; m_l(z_{>l}), s_l^2(z_{>l}))

    with z the levels side by side, the lowest first. A ladder that is not `is_normal` has other
    distributions in the normals' place, and its draws then have no gradient.

    Args:
        ladder: the levels, from the top down.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder, self.levels = ladder, list(ladder.levels)
        self.has_rsample = ladder.is_normal
        super().__init__((), sum(self.levels))

    @functools.cached_property
    def is_normal(self) -> bool:
        """Whether all levels are diagonal normals."""
        if not self.ladder.is_normal:
            return False
        highest = self.ladder.rung(len(self.levels) - 1, self.ladder.start(1))
        return isinstance(highest.prior, DiagonalNormal)

    def given(self, z: Tensor) -> DiagonalNormal:
        """Of each level its normal given what z has above it, `(*batch, d)`; at z it is p(z).

        Only where it `is_normal`.
        """
        loc: list[Tensor] = []
        scale: list[Tensor] = []

        def keep(level: int, p: Any) -> Tensor:
            value = parts[level]
            loc.insert(0, p.loc.expand(value.shape))
            scale.insert(0, p.scale.expand(value.shape))
            return value

        parts = self._parts(z)
        self._descend(len(parts[0]), keep)
        return DiagonalNormal(torch.cat(loc, -1).view(z.shape), torch.cat(scale, -1).view(z.shape))

    def of_noise(self, eps: Tensor, top: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """z of ε from N(0, I), `(*batch, d)`, from the highest level down.

        Args:
            eps: the noise.
            top: makes the highest level of its own; None: it is a normal as the others.
        """
        parts = self._parts(eps)

        def move(level: int, p: Any) -> Tensor:
            if level == len(parts) - 1 and top is not None:
                return top(parts[level])
            return torch.addcmul(p.loc, p.scale, parts[level])

        return torch.cat(self._descend(len(parts[0]), move), -1).view(eps.shape)

    def noise_of(self, z: Tensor, top: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The other way round."""
        parts, noise = self._parts(z), list[Tensor]()

        def move(level: int, p: Any) -> Tensor:
            value = parts[level]
            if level == len(parts) - 1 and top is not None:
                noise.insert(0, top(value))
            else:
                noise.insert(0, (value - p.loc) / p.scale)
            return value

        self._descend(len(parts[0]), move)
        return torch.cat(noise, -1).view(z.shape)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        n = math.prod(sample_shape)
        z = self._descend(n, lambda _, p: drawn(p, () if p.batch_shape else (n,)))
        return torch.cat(z, -1).view(*sample_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_of_levels(value).sum(-1)

    def log_prob_of_levels(self, value: Tensor) -> Tensor:
        """log p(z_l | z_{>l}) of each level, `(*batch, L)`, nats."""
        parts, log_prob = self._parts(value), list[Tensor]()

        def keep(level: int, p: Distribution) -> Tensor:
            log_prob.insert(0, p.log_prob(parts[level]))
            return parts[level]

        self._descend(len(parts[0]), keep)
        return torch.stack(log_prob, -1).view(*value.shape[:-1], -1)

    def estimated_kl(self, q: DiagonalNormal, z: Tensor) -> Tensor:
        """log q(z_l) − log p(z_l | z_{>l}) of each level, `(*batch, L)`, nats.

        Args:
            q: the distribution that z was drawn from.
            z: the draws, `(*batch, d)`.
        """
        parts = Normal(q.loc, q.scale, validate_args=False).log_prob(z).split(self.levels, -1)
        return torch.stack([part.sum(-1) for part in parts], -1) - self.log_prob_of_levels(z)

    def _parts(self, z: Tensor) -> Sequence[Tensor]:
        return z.reshape(-1, *self._event_shape).split(self.levels, -1)

    def _descend(self, n: int, choose: Callable[[int, Distribution], Tensor]) -> list[Tensor]:
        """Each level of n vectors as `choose` has it of its distribution, the lowest first."""
        state, z = self.ladder.start(n), list[Tensor]()
        for level in reversed(range(len(self.levels))):
            rung = self.ladder.rung(level, state)
            z.insert(0, choose(level, rung.prior))
            if level:
                state = self.ladder.below(level, rung.state, z[0])
        return z


class BoxUniform(Vectors):
    """U([low, high]^d) over vectors; `log_prob` is −inf outside the box.

    Args:
        low: lower corner, `(d,)`.
        high: upper corner, `(d,)`, above `low`.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        super().__init__((), len(low))

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mean(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low).square() / 12

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        low = self.low
        u = torch.rand(*sample_shape, *low.shape, device=low.device, dtype=low.dtype)
        return torch.lerp(low, self.high, u)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = ((value >= self.low) & (value <= self.high)).all(-1)
        volume = (self.high - self.low).log().sum()
        return torch.where(inside, -volume, -math.inf)


class TruncatedNormal(Vectors):
    """N(0, diag(scale²)) over vectors, each coordinate within `bound` of 0; −inf outside.

    Args:
        scale: standard deviations before the cut, `(d,)`, above 0.
        bound: above 0.
    """

    def __init__(self, scale: Tensor, bound: float) -> None:
        self.scale, self.bound = scale, bound
        super().__init__((), len(scale))

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.scale)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        u = torch.empty(*sample_shape, len(self.scale), device=self.scale.device).uniform_(-1, 1)
        z = math.sqrt(2) * self.scale * (u * self._mass()).erfinv()
        return z.clamp(-self.bound, self.bound)  # rounding may pass a wall

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value.abs() <= self.bound).all(-1)
        normal = DiagonalNormal(self.mean, self.scale).log_prob(value)
        return torch.where(inside, normal - self._mass().log().sum(), -math.inf)

    def _mass(self) -> Tensor:
        """Of the normal, within the bound, of each coordinate."""
        return (self.bound / (math.sqrt(2) * self.scale)).erf()


class LowerNormal(_Located):
    """N(loc, (LS)(LS)ᵀ) with L unit lower triangular and S = diag(scale), a batch of them."""

    def __init__(self, loc: Tensor, scale: Tensor, lower: Tensor) -> None:
        super().__init__(loc, scale)
        self.lower = lower

    @property
    def variance(self) -> Tensor:
        return (self.lower * self.scale[..., None, :]).square().sum(-1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, from the noise itself."""
        base = DiagonalNormal(torch.zeros_like(self.loc), self.scale)
        y, log_prob = base.rsample_and_log_prob(sample_shape)
        return self.loc + (self.lower @ y[..., None]).squeeze(-1), log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        offset = value - self.loc
        # The columns of one system for each x: broadcast, its factor would be copied a code.
        columns = offset.reshape(-1, *self.loc.shape).movedim(0, -1)
        y = torch.linalg.solve_triangular(self.lower, columns, upper=False, unitriangular=True)
        y = y.movedim(-1, 0).reshape(offset.shape)
        return DiagonalNormal(torch.zeros_like(self.loc), self.scale).log_prob(y)


class Pixels(Distribution):
    """Independent pixels: `log_prob` sums over the event."""

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, parameter: Tensor, event_dims: int) -> None:
        cut = parameter.ndim - event_dims
        super().__init__(parameter.shape[:cut], parameter.shape[cut:], validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._draw((*sample_shape, *self._batch_shape, *self._event_shape))

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def _sum(self, log_prob: Tensor) -> Tensor:
        return log_prob.flatten(-len(self._event_shape)).sum(-1)


class BernoulliPixels(Pixels):
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

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.bernoulli(self.mean.expand(shape))


class GaussianPixels(Pixels):
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

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        loc = self.loc.expand(shape)
        return loc + self.scale * torch.randn_like(loc)


class LogisticPixels(Pixels):
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

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        u = torch.rand(shape, device=self.loc.device).clamp(1e-6, 1 - 1e-6)
        x = (self.loc + self.scale * u.logit()).clamp(self.low, self.high)
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + ((x - self.low) / step).round() * step
