"""Priors that a critic's scores reweight: masked and weighted, from a pre-sample of any base."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from flexgen.checks import check_integer, check_one_of
from flexgen.contracts import Cost, Prior, Score, in_context
from flexgen.distributions import Shape, Vectors, drawn
from flexgen.priors.staged import as_prior

# The share of few codes that score high says little of the share of the prior's.
_SMALLEST_PRESAMPLE = 100


class ReweightedDistribution(Vectors):
    """Draws of a base that `prior` chose by `score`; each draw takes a pre-sample of its own.

    With a context, labels `(n,)`, it is a batch of distributions, one a row: rows of one class
    share a pre-sample. What the prior has to say of a draw it has in its `statistics` afterwards:
    the standard deviation of the scores over the pre-sample, `critic_std`, and of the weights w the
    effective sample size `(Σw)² / (n Σw²)` and the acceptance `mean w / max w` that sampling by
    rejection would have, both in (0, 1]; means over the classes. Without a score nothing is drawn.
    """

    def __init__(self, prior: "Reweighted", score: Score | None, context: Tensor | None) -> None:
        self.prior, self.score, self.context = prior, score, context
        super().__init__(() if context is None else context.shape[:1], prior.latent_dim)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        num = math.prod(sample_shape)
        if self.context is None:
            z, self.prior.statistics = self._draw(num, None)
            return z.view(*sample_shape, *self._event_shape)
        labels, counts = self.context.unique(return_counts=True)
        each = zip(labels, counts.tolist(), strict=True)
        drawn = [self._draw(num * count, label) for label, count in each]
        names = drawn[0][1]
        self.prior.statistics = {n: torch.stack([s[n] for _, s in drawn]).mean() for n in names}
        by_label = torch.cat([z.view(num, -1, *self._event_shape) for z, _ in drawn], 1)
        place = self.context.argsort(stable=True).argsort()
        return by_label[:, place].view(*sample_shape, *self._batch_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            f"a {type(self.prior).__name__} prior has no density, it is known by its draws only; "
            "use its base, or a flow such as `prior=zuko_nsf`, where a log-likelihood is needed"
        )

    def _draw(self, num: int, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes `(num, d)` of one class, and what there is to say of them."""
        n = max(math.ceil(self.prior.presample * num), _SMALLEST_PRESAMPLE)
        z = self._base(n, label)
        with torch.no_grad():
            scores = self._scores(z.detach(), label)
            weights = self.prior.weights(scores)
            statistics = {
                "critic_std": scores.std(),
                "effective_sample_size": 1 / (n * weights.dot(weights)),
                "acceptance": 1 / (n * weights.max()),
            }
            chosen = self.prior.choose(weights, num)
        return z[chosen], statistics

    def _base(self, n: int, label: Tensor | None) -> Tensor:
        """n draws of the base with gradient, in a class if there is one."""
        distribution = self.prior.base(None if label is None else label.expand(n))
        return drawn(distribution, () if distribution.batch_shape else (n,))

    def _scores(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.score is None:
            raise RuntimeError(
                f"a {type(self.prior).__name__} prior draws by scores, and it was given none; "
                "call `prior.bind(score=…)` with a function of codes (n, d) to scores (n,)"
            )
        context = None if label is None else label.expand(len(z))
        scores = in_context(self.score, z, context).float()
        if scores.shape != z.shape[:1]:
            raise ValueError(
                f"`score` must return one score a code, ({len(z)},), got {tuple(scores.shape)}; "
                "flatten its output"
            )
        if not scores.isfinite().all():
            raise FloatingPointError(
                f"`score` must be finite, got {int((~scores.isfinite()).sum())} scores of "
                f"{len(scores)} that are not; lower the critic's step size"
            )
        return scores


class Reweighted(Prior):
    """A base prior whose draws are chosen from a pre-sample by their scores.

    It knows no model: whoever has a critic binds its `score`, which is neither saved nor copied
    with the prior. A training step asks :meth:`at` what it draws from, with the score of the
    networks as they are then.

    Args:
        base: any prior; if it has trainable parameters, they learn through the chosen draws.
        presample: codes that are scored for each that is drawn, at least 2; a pre-sample holds at
            least 100.
        where: which training steps draw by score, "critic", "generator" or "both"; the others
            draw from the base. "generation": none, only who calls the prior does, as sampling and
            measuring do; they always draw by score.
        warmup: generator steps in which training draws from the base.

    Raises:
        ValueError: for a value out of range.

    Source: Goerttler & Kloft, "Learning a multimodal prior distribution for generative adversarial
    nets", section 3.
    """

    log_prob_cost = Cost.ABSENT
    distribution = ReweightedDistribution

    def __init__(
        self, base: nn.Module, *, presample: float = 2.0, where: str = "both", warmup: int = 0
    ) -> None:
        super().__init__()
        if not presample >= 2:
            raise ValueError(
                f"`presample` must be at least 2 codes for one drawn, got {presample}; "
                "set `prior.presample=2`"
            )
        places = ("critic", "generator", "both", "generation")
        check_one_of("where", where, places, "set `prior.where=both`")
        check_integer("warmup", warmup, 0, "set `prior.warmup=0`")
        self.base = as_prior(base)
        self.latent_dim = self.base.latent_dim
        self.presample, self.where, self.warmup = float(presample), where, warmup
        self._score: Score | None = None

    @property
    def support(self) -> tuple[float, float] | None:  # type: ignore[override]
        return self.base.support

    @property
    def unmasked(self) -> Prior:  # type: ignore[override]
        return self.base

    @property
    def needs(self) -> frozenset[str]:
        return self.base.needs | {"score"}

    def bind(self, *, score: Score | None = None, **offers: Any) -> None:
        """Draw by `score` from now on: codes `(n, d)` to scores `(n,)`, called without gradient."""
        if score is not None:
            # Wrapped: a module that were an attribute would be saved and trained as a part of this.
            self._score = functools.partial(score)
        super().bind(score=score, **offers)

    def forward(self, context: Tensor | None = None) -> ReweightedDistribution:
        return self.distribution(self, self._score, context)

    def at(
        self, player: str, step: int, score: Score | None, context: Tensor | None = None
    ) -> Distribution:
        if step < self.warmup or self.where not in ("both", player):
            self.statistics = {}
            base: Distribution = self.base(context)
            return base
        return self.distribution(self, score, context)

    def weights(self, scores: Tensor) -> Tensor:
        """The probability of each code of a pre-sample, `(n,)`, from its scores `(n,)`."""
        raise NotImplementedError

    def choose(self, weights: Tensor, num: int) -> Tensor:
        """Indices `(num,)` of the codes that are drawn, by `weights` `(n,)`."""
        return torch.multinomial(weights, num, replacement=True)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a pickle, would take the whole model along with the score.
        return {**self.__dict__, "_score": None, "statistics": {}}


class Masked(Reweighted):
    r"""The base restricted to the share r of its codes that score highest.

    .. math:: pm(z_i) = 1/(rn) \text{ for the } rn \text{ highest } s(z_i), \text{ else } 0

    Args:
        base: any prior.
        rate: r, in (0, 1]; 1 is the base itself.
        **options: see :class:`Reweighted`.

    Raises:
        ValueError: for a `rate` out of range.

    Source: Goerttler & Kloft, Definition 3. Departures: the rn highest are kept, whatever their
    ties, as a critic that is flat has none strictly above its percentile; and a draw takes no code
    twice as long as enough are kept.
    """

    def __init__(self, base: nn.Module, rate: float = 0.7, **options: Any) -> None:
        super().__init__(base, **options)
        if not 0 < rate <= 1:
            raise ValueError(f"`rate` must be in (0, 1], got {rate}; set `prior.rate=0.7`")
        self.rate = float(rate)

    def weights(self, scores: Tensor) -> Tensor:
        kept = self._kept(len(scores))
        return torch.zeros_like(scores).index_fill_(0, scores.topk(kept).indices, 1 / kept)

    def choose(self, weights: Tensor, num: int) -> Tensor:
        return torch.multinomial(weights, num, replacement=num > self._kept(len(weights)))

    def _kept(self, n: int) -> int:
        return max(1, round(self.rate * n))


class Weighted(Reweighted):
    r"""The base resampled in proportion to a rising function w of the scores.

    .. math:: pm(z_i) = w(s(z_i)) / Σ_j w(s(z_j))

    Args:
        base: any prior.
        weights: w, over the scores s of a pre-sample. "exponential": exp((s − mean)/std);
            "minmax": (s − min)/(max − min); "rank": how many scores are at most s; "sigmoid":
            1/(1 + exp(−s)), the paper's own with the original game, which hardly weighs at all
            once a critic's scores are near each other; "ratio": exp(s), of a score that is the
            logarithm of a ratio of densities. A flat critic weighs all codes alike.
        **options: see :class:`Reweighted`.

    Raises:
        ValueError: for unknown `weights`.

    Source: Goerttler & Kloft, Definition 4, without its factor p(z): the pre-sample is drawn from
    p already, which the factor would count twice.
    """

    def __init__(self, base: nn.Module, weights: str = "exponential", **options: Any) -> None:
        super().__init__(base, **options)
        check_one_of("weights", weights, _WEIGHTS, "set `prior.weights=exponential`")
        self._weigh = _WEIGHTS[weights]

    def weights(self, scores: Tensor) -> Tensor:
        w = self._weigh(scores)
        return w / w.sum()


def _exponential(scores: Tensor) -> Tensor:
    std, mean = torch.std_mean(scores)
    # A flat critic's scores have no spread but their rounding.
    real = torch.finfo(scores.dtype)
    floor = real.eps * scores.abs().max() + real.tiny
    # By softmax: one far outlier among many codes overflows exp.
    return ((scores - mean) / std.maximum(floor)).softmax(0)


def _minmax(scores: Tensor) -> Tensor:
    low, high = scores.aminmax()
    return torch.where(high > low, (scores - low) / (high - low), 1.0)


_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": _exponential,
    "minmax": _minmax,
    "rank": lambda s: torch.searchsorted(s.sort().values, s, right=True).to(s),
    # In logarithms: the sigmoids of very low scores are all 0.
    "sigmoid": lambda s: logsigmoid(s).softmax(0),
    "ratio": lambda s: s.softmax(0),
}
