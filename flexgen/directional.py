"""Distributions over directions: densities on the unit sphere, nats against its area."""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Beta
from torch.nn.functional import normalize

from flexgen.distributions import Shape, Vectors

_SMALLEST = 1e-6  # of 1 + μᵀz: its logarithm opposite to the mean direction
_TINY = 1e-12
_NODES = 64  # of a rule of Gauss and Legendre


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


class Directions(Vectors):
    r"""Directions around a mean direction μ, alike in all directions around it; a batch of them.

    The density is a function of the height t = μᵀz alone. A draw is a height and a uniform
    direction around the first axis, which a reflection takes to μ.

    Args:
        loc: μ, `(*batch, d)`, of length 1.
        concentration: κ, `(*batch,)`, at least 0, where it is uniform.

    Source: Ulrich, "Computer generation of distributions on the m-sphere", 1984.
    """

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(loc.shape[:-1], loc.shape[-1])

    @property
    def mean_height(self) -> Tensor:
        """E t, `(*batch,)`."""
        raise NotImplementedError

    def draw_heights(self, sample_shape: Shape) -> Tensor:
        """Draws of t with a gradient, `(*sample_shape, *batch)`."""
        raise NotImplementedError

    def log_prob_at(self, height: Tensor) -> Tensor:
        """The log-density of directions at a height, `(*batch,)`."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Nats, `(*batch,)`."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        return self.loc * self.mean_height[..., None]

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        t = self.draw_heights(sample_shape)[..., None]
        shape = *t.shape[:-1], self._event_shape[0] - 1
        around = normalize(torch.randn(shape, device=t.device, dtype=t.dtype), dim=-1)
        # Above 0: at 0 a root has no slope.
        y = torch.cat([t, (1 - t.square()).clamp_min(_TINY).sqrt() * around], -1)
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
        return self.log_prob_at((self.loc * value).sum(-1))

    def kl_to_uniform(self) -> Tensor:
        """KL(self ‖ uniform), nats, `(*batch,)`."""
        return log_area(self._event_shape[0]) - self.entropy()


class PowerSpherical(Directions):
    r"""$p(z) ∝ (1 + μ^T z)^κ$ for |z| = 1.

    .. math:: \log p(z) = κ \log(1 + μ^T z) - (α + β) \log 2 - β \log π - \log Γ(α) + \log Γ(α + β),
        \quad α = β + κ, \quad β = \tfrac{d - 1}{2}

    It serves where the von Mises-Fisher distribution does, without its rejections and its Bessel
    functions: a height is a Beta number, with gradient; entropy is in closed form.

    Args:
        loc, concentration: as :class:`Directions` has them.

    Source: De Cao & Aziz, "The power spherical distribution", 2020, Algorithm 1 (draws).
    """

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        super().__init__(loc, concentration)
        self.beta = (loc.shape[-1] - 1) / 2
        self.alpha = self.beta + concentration

    @property
    def mean_height(self) -> Tensor:
        return (self.alpha - self.beta) / (self.alpha + self.beta)

    def draw_heights(self, sample_shape: Shape) -> Tensor:
        beta = torch.full_like(self.alpha, self.beta)
        return 2 * Beta(self.alpha, beta).rsample(torch.Size(sample_shape)) - 1

    def log_prob_at(self, height: Tensor) -> Tensor:
        return self.concentration * (1 + height).clamp_min(_SMALLEST).log() - self._log_normaliser()

    def entropy(self) -> Tensor:
        log_along = math.log(2) + self.alpha.digamma() - (self.alpha + self.beta).digamma()
        return self._log_normaliser() - self.concentration * log_along

    def _log_normaliser(self) -> Tensor:
        both = self.alpha + self.beta
        constant = both * math.log(2) + self.beta * math.log(math.pi)
        return constant + self.alpha.lgamma() - both.lgamma()


class VonMisesFisher(Directions):
    r"""$p(z) ∝ e^{κ μ^T z}$ for |z| = 1: a normal's density on the sphere.

    .. math:: \log p(z) = κ μ^T z - \log \int_0^π e^{κ \cos θ} \sin^{d-2} θ \, dθ - \log A_{d-1},

    with $A_{d-1}$ the area of the sphere of d − 1 dimensions. The integral, which is
    $\sqrtπ\, Γ(\tfrac{d-1}{2}) (2/κ)^{d/2-1} I_{d/2-1}(κ)$, is a sum over 64 nodes, right to
    1e-8 for d up to 500 and κ up to 10,000; its derivative in κ, E t, is that sum's. Heights
    are by rejection, with the gradient of the inverse of their distribution function,
    dt/dκ = −(∂F/∂κ) / p(t).

    Args:
        loc, concentration: as :class:`Directions` has them.

    Source: Wood, "Simulation of the von Mises Fisher distribution", 1994, algorithm VM* (draws);
    Figurnov, Mohamed & Mnih, "Implicit reparameterization gradients", 2018, section 3. Departure
    from Davidson et al., "Hyperspherical variational auto-encoders", 2018, section 3: the gradient
    is exact for each draw, where theirs adds a correction for the rejections.
    """

    @property
    def mean_height(self) -> Tensor:
        return 1 - self._mean_depth().to(self.concentration)

    def draw_heights(self, sample_shape: Shape) -> Tensor:
        t = self._accepted(sample_shape)
        if not self.concentration.requires_grad:
            return t
        drawn: Tensor = _ByInverse.apply(
            self.concentration, t, self.mean_height.detach(), self._event_shape[0]
        )
        return drawn

    def log_prob_at(self, height: Tensor) -> Tensor:
        return self.concentration * (height - 1) - self._log_normaliser()

    def entropy(self) -> Tensor:
        depth = self._mean_depth().to(self.concentration)
        return self._log_normaliser() + self.concentration * depth

    def _log_normaliser(self) -> Tensor:
        """Less κ, beside which its digits would get lost."""
        total = self._rule[1].logsumexp(-1).to(self.concentration)
        return total + log_area(self._event_shape[0] - 1)

    def _mean_depth(self) -> Tensor:
        depth, log_measure = self._rule
        return (depth * log_measure.softmax(-1)).sum(-1)

    @functools.cached_property
    def _rule(self) -> tuple[Tensor, Tensor]:
        """1 − t of each node and the logarithm of its share of the integral, `(*batch, nodes)`."""
        concentration, rest = self.concentration.double(), self._event_shape[0] - 2
        kappa = concentration.detach().clamp_min(1e-9)
        cosine = 2 * kappa / (rest + (rest**2 + 4 * kappa.square()).sqrt())
        bend = kappa * cosine + rest / (1 - cosine.square()).clamp_min(_TINY)
        end = (cosine.clamp_max(1).acos() + 12 / bend.sqrt()).clamp_max(math.pi)
        angle, log_weight = _gauss_legendre(end)
        depth = 1 - angle.cos()
        return depth, rest * angle.sin().log() + log_weight - concentration[..., None] * depth

    @torch.no_grad()
    def _accepted(self, sample_shape: Shape) -> Tensor:
        """Heights by rejection, in float64: for d = 2 most are within 1e-7 of 1."""
        shape, rest = (*sample_shape, *self._batch_shape), self._event_shape[0] - 1
        kappa = self.concentration.double().expand(shape).reshape(-1)
        b = rest / (2 * kappa + (4 * kappa.square() + rest**2).sqrt())
        x = (1 - b) / (1 + b)
        # 1 − x² as a product: at a high κ its digits cancel.
        peak = kappa * x + rest * (4 * b / (1 + b).square()).log()
        height, left = torch.empty_like(kappa), torch.arange(len(kappa), device=kappa.device)
        half = kappa.new_tensor(rest / 2)
        while len(left):
            beta = Beta(half, half).sample(left.shape)
            t = (1 - (1 + b[left]) * beta) / (1 - (1 - b[left]) * beta)
            log_ratio = kappa[left] * t + rest * (1 - x[left] * t).log() - peak[left]
            kept = log_ratio >= torch.rand_like(beta).log()
            height[left[kept]] = t[kept]
            left = left[~kept]
        return height.view(shape).to(self.concentration)


class DirectionMixture(Vectors):
    r"""Σₖ wₖ pₖ(z) of directions around K mean directions.

    Args:
        weights: w, `(K,)`, at least 0, with sum 1.
        components: pₖ, of batch shape `(K,)`.
    """

    def __init__(self, weights: Tensor, components: Directions) -> None:
        self.weights, self.components = weights, components
        super().__init__((), components.loc.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.components.mean

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        k = torch.multinomial(self.weights, math.prod(sample_shape), replacement=True)
        of = self.components
        z = type(of)(of.loc[k], of.concentration[k]).rsample()
        return z.view(*sample_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.joint(value).logsumexp(-1)

    def joint(self, value: Tensor) -> Tensor:
        """log wₖ pₖ(z) of each component, `(*batch, K)`."""
        heights = value @ self.components.loc.mT
        return self.components.log_prob_at(heights) + self.weights.log()


def _gauss_legendre(end: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes on [0, end] and the logarithms of their weights, `(*batch, nodes)` each."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = end[..., None] / 2
    return half * (1 + half.new_tensor(nodes)), half.log() + half.new_tensor(weights).log()


class _ByInverse(Function):
    """Heights t with dt/dκ = −(∂F/∂κ) / p(t) = ∫ₜ¹ (s − E s) p(s)/p(t) ds, over the angle of s."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, t: Tensor, mean: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(concentration, t, mean)
        ctx.dim = dim
        return t.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        concentration, t, mean = (part.double()[..., None] for part in ctx.saved_tensors)
        end = t[..., 0].clamp(-1, 1).acos().clamp_min(_TINY)
        angle, log_weight = _gauss_legendre(end)
        height, end = angle.cos(), end[..., None]
        log_ratio = (ctx.dim - 2) * (angle.sin() / end.sin()).log() + concentration * (height - t)
        slope = ((height - mean) * (log_ratio + log_weight).exp() * end.sin()).sum(-1)
        return (grad * slope.to(grad)).sum_to_size(ctx.saved_tensors[0].shape), None, None, None
