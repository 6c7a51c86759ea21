"""Draws of a base that a critic's gradient moves: optimal transport, and gradient flows."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flexgen.checks import check_integer, check_not_negative, check_one_of, check_positive
from flexgen.priors.critic_sampling import Climbing, ClimbingDistribution

_PAIRS = 1000


class TransportedDistribution(ClimbingDistribution):
    """Draws of the base, moved as its prior says; `critic_std` is of the scores at their start."""

    prior: "Transported"

    def _draw(self, num: int, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            start = z = self._start(num, label)
            if not num:
                return z, {}
            steepest = self._steepest(label)
            statistics = {}
            for step in range(self.prior.steps):
                _, slope, scores = self._energy(z, label)
                if not step:
                    statistics = {"critic_std": scores.std(correction=0)}
                z = self.prior.moved(z, start, scores, -slope, steepest)
                if self.prior.support is not None:
                    z = z.clamp(*self.prior.support)
        return z, statistics

    def _steepest(self, label: Tensor | None) -> Tensor:
        """How much scores differ at most for a distance of 1, over pairs of draws."""
        a, b = self._base(_PAIRS, label), self._base(_PAIRS, label)
        apart = (self._scores(a, label) - self._scores(b, label)).abs()
        return (apart / (a - b).norm(dim=1).clamp_min(1e-12)).max().clamp_min(1e-12)


class Transported(Climbing):
    """A prior whose draws are those of a base, moved in `steps` of `step_size`."""

    distribution = TransportedDistribution

    def __init__(self, base: nn.Module, steps: int, step_size: float) -> None:
        super().__init__(base)
        self.steps = check_integer("steps", steps, 1, "set `prior.steps=25`")
        self.step_size = check_positive("step_size", step_size, "set `prior.step_size=0.01`")

    def moved(
        self, z: Tensor, start: Tensor, scores: Tensor, rise: Tensor, steepest: Tensor
    ) -> Tensor:
        """Codes `(n, d)` after a step, given their start, their scores `(n,)` and its gradient."""
        raise NotImplementedError


class OptimalTransport(Transported):
    r"""Each draw goes to where the score is worth the way: discriminator optimal transport.

    .. math:: T(z_0) = \arg\min_z \Big( |z - z_0| - \frac{s(z)}{k} \Big), \quad
        k = \max \frac{|s(z) - s(z')|}{|z - z'|}

    by gradient descent from z₀, k over 1,000 pairs of draws at each call. Under a normal base a
    step keeps to the sphere through z: its part along z is left out. Training draws from the base.

    Args:
        base: any prior; it needs no density.
        steps: of the descent, at least 1.
        step_size: above 0.

    Raises:
        ValueError: for a value out of range.

    Source: Tanaka, "Discriminator optimal transport", 2019, Algorithm 2 (latent space).
    """

    def __init__(self, base: nn.Module, *, steps: int = 100, step_size: float = 0.01) -> None:
        super().__init__(base, steps, step_size)

    def moved(
        self, z: Tensor, start: Tensor, scores: Tensor, rise: Tensor, steepest: Tensor
    ) -> Tensor:
        back = normalize(z - start, dim=1)
        step = self.step_size * (rise / steepest - back)
        if self.base.normal_scale is not None:
            along = normalize(z, dim=1)
            step = step - (step * along).sum(1, keepdim=True) * along
        return z + step


class GradientFlow(Transported):
    r"""Draws that flow down an f-divergence from the generator's data to the data: DGflow.

    .. math:: z ← z - η ∇ f'\big(e^{-s(z)}\big) + \sqrt{2γη}\, n, \quad n ∼ N(0, I)

    with exp(−s) as the ratio of the generator's density to the data's, which it is at the start for
    the logit of the original game's best critic. Training draws from the base.

    Args:
        base: any prior; it needs no density.
        divergence: "kl": −∇f' = ∇s; "js": σ(s) ∇s; "logd": σ(−s) ∇s.
        steps: at least 1.
        step_size: η, above 0.
        noise: γ, at least 0.

    Raises:
        ValueError: for a value out of range or another divergence.

    Source: Ansari, Ang & Soh, "Refining deep generative models via discriminator gradient flow",
    2021, Algorithm 1.
    """

    def __init__(
        self, base: nn.Module, *, divergence: str = "kl", steps: int = 25,
        step_size: float = 0.01, noise: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(base, steps, step_size)
        check_one_of("divergence", divergence, _SHARES, "set `prior.divergence=kl`")
        self.divergence = divergence
        self.noise = check_not_negative("noise", noise, "set `prior.noise=0.01`")

    def moved(
        self, z: Tensor, start: Tensor, scores: Tensor, rise: Tensor, steepest: Tensor
    ) -> Tensor:
        flow = _SHARES[self.divergence](scores)[:, None] * rise
        shake = math.sqrt(2 * self.noise * self.step_size) * torch.randn_like(z)
        return z + self.step_size * flow + shake


_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": torch.ones_like, "js": torch.sigmoid, "logd": lambda s: (-s).sigmoid(),
}  # fmt: skip
