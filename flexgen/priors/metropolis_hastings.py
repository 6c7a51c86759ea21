"""Draws of a base, accepted by Metropolis and Hastings with a critic calibrated on data."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.priors.reweighted import Reweighted, ReweightedDistribution


class MetropolisHastingsDistribution(ReweightedDistribution):
    """The last states of chains that a :class:`MetropolisHastings` runs; each call calibrates anew.

    Their statistics are the standard deviation of the proposals' scores, `critic_std`, and the
    share of proposals that were accepted, `acceptance`.
    """

    prior: "MetropolisHastings"

    def _draw(self, num: int, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            z = self._base(num, label)
            if not num:
                return z, {}
            slope, starts = self._calibrated(label)
            # A chain starts at a datum; one that never leaves it starts again at a draw.
            first = starts[torch.randint(len(starts), (num,), device=starts.device)]
            z, moved, statistics = self._chains(z, first, slope, label)
            if stuck := int((~moved).sum()):
                anew = self._base(stuck, label)
                z[~moved] = self._chains(anew, self._scores(anew, label), slope, label)[0]
        return z, statistics

    def _chains(
        self, z: Tensor, scores: Tensor, slope: float, label: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Codes after all proposals, whether each has moved, and what there is to say of them."""
        moved, accepted, spread = torch.zeros_like(scores, dtype=torch.bool), [], []
        for _ in range(self.prior.chain_steps):
            proposed = self._base(len(z), label)
            new = self._scores(proposed, label)
            take = torch.rand_like(new).log() < slope * (new - scores)
            z, scores = torch.where(take[:, None], proposed, z), torch.where(take, new, scores)
            moved |= take
            accepted.append(take.float().mean())
            spread.append(new.std(correction=0))
        statistics = {"critic_std": torch.stack(spread), "acceptance": torch.stack(accepted)}
        return z, moved, {name: values.mean() for name, values in statistics.items()}

    def _calibrated(self, label: Tensor | None) -> tuple[float, Tensor]:
        """a, and scores that chains start at: of data, and of draws where there are none."""
        n = self.prior.num_calibration
        fake = self._scores(self._base(n, label), label)
        if len(self.prior.offers) < 2:
            return 1.0, fake
        real = self.prior.offers["critic"](self.prior.offers["data"](n)).float()
        return slope_of(real, fake), real


class MetropolisHastings(Reweighted):
    r"""Chains of independent proposals of the base, each accepted by a calibrated critic.

    .. math:: P(\text{accept } z') = \min\Big(1, \frac{e^{a\, s(z')}}{e^{a\, s(z)}}\Big), \quad
        σ(a s + b) ≈ P(\text{datum} \mid s)

    with a and b by logistic regression of data against draws, at each call; b falls out of the
    ratio. So calibrated, scores of a game without logits (WGAN) serve too. As chains grow long the
    draws have the density of data up to the critic's error. Training draws from the base. Until it
    is bound to data the score is taken for the logit, a = 1, and chains start at draws.

    Args:
        base: any prior; it needs no density.
        chain_steps: proposals of each chain, at least 1. A chain starts at a datum's score; one
            that accepts none starts again at a draw, for as many.
        num_calibration: data that the critic is calibrated on, and as many draws; at least 10.

    Raises:
        ValueError: for a size out of range.

    Source: Turner, Hung, Frank, Saatchi & Yosinski, "Metropolis-Hastings generative adversarial
    networks", 2019, Algorithm 1 and section 3.1. Departure: calibrated on training data, which the
    critic has seen, not on held-out ones.
    """

    distribution = MetropolisHastingsDistribution

    def __init__(
        self, base: nn.Module, *, chain_steps: int = 100, num_calibration: int = 1000
    ) -> None:
        super().__init__(base, where="generation")
        remedy = "set `prior.chain_steps=100`"
        self.chain_steps = check_integer("chain_steps", chain_steps, 1, remedy)
        self.num_calibration = check_integer("num_calibration", num_calibration, 10)
        self.offers: dict[str, Callable[..., Tensor]] = {}

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"critic", "data"}

    def bind(self, **offers: Any) -> None:
        for name in ("critic", "data"):
            if offers.get(name) is not None:
                self.offers[name] = functools.partial(offers[name])
        super().bind(**offers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "offers": {}}


def slope_of(real: Tensor, fake: Tensor) -> float:
    """a of σ(a s + b), the probability that a score s is of a datum; 0 if data score lower."""
    from sklearn.linear_model import LogisticRegression

    scores = torch.cat([real, fake]).double().cpu()
    scale = float(scores.std()) or 1.0
    is_real = torch.arange(len(scores)) < len(real)
    found = LogisticRegression().fit((scores[:, None] / scale).numpy(), is_real.numpy())
    return max(float(found.coef_[0, 0]) / scale, 0.0)
