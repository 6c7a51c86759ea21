"""How likely held-out data are, and where a bound's nats go."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.distributions import Distribution, Normal

from flexgen.callbacks.measurement import Measurement, agreement, energy_distance
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.contracts import in_context
from flexgen.distributions import DiagonalNormal, HierarchicalNormal, LowerNormal
from flexgen.files import write_tensors
from flexgen.metrics import active_units, bits_per_dimension, marginal_log_prob
from flexgen.models import VAE
from flexgen.models.latent import in_parts
from flexgen.models.vae import CODES_AT_ONCE
from flexgen.posteriors import LevelDraws, LevelwiseDistribution
from flexgen.priors import base_codes
from flexgen.run_notes import RunNote, add_note

_PARTS = ("elbo/total_correlation", "elbo/dimensionwise_kl")
_PAG = ("posterior/pag", "own/posterior_pag")
_OF_NORMAL_PRIORS = (*_PARTS, *_PAG, *(f"{name}_{end}" for name in _PAG for end in ("low", "high")))
_OF_DENSITIES = (
    "nll/samples", "nll/standard_error", "nll/bits_per_dimension", "elbo/bound", "elbo/kl",
    "elbo/mutual_information", "elbo/marginal_kl", *_PARTS,
)  # fmt: skip
_BATCH = 100


class LikelihoodScore(Measurement):
    """The negative log-likelihood of held-out data under a VAE, and the parts of its ELBO.

    Logged, in nats per datum: `nll/samples`, by importance sampling with `num_samples` draws, with
    its standard error over data `nll/standard_error`, and, where pixels have probabilities and not
    a density, `nll/bits_per_dimension`; the ELBO
    `elbo/bound` = −`elbo/reconstruction` − `elbo/kl`, of 16 draws of each datum, and the KL's parts

        KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z))

    `elbo/mutual_information` and `elbo/marginal_kl`. For them the data are divided into as few
    blocks of one size as hold at most `num_posteriors` each; q(z) is the aggregate posterior of a
    block, and the values are means over all data. The marginal KL, of which each draw takes a
    density under every posterior of its block, is that of the first of the 16, and the mutual
    information, at most log `num_posteriors` in expectation, is what it leaves of the KL: the two
    add up to it. That of few posteriors is rougher, and farther from the prior: the marginal KL
    falls as they become more (a VAE on digits, one run: 1.73, 1.28, 0.99, 0.72 nats of 63, 110,
    220, 440), so compare it at one number. Under a normal prior it has parts in turn,

        KL(q(z) ‖ p(z)) = KL(q(z) ‖ Πⱼ q(zⱼ)) + Σⱼ KL(q(zⱼ) ‖ p(zⱼ))

    `elbo/total_correlation` and `elbo/dimensionwise_kl`. These two take densities of single
    dimensions, which a Gaussian posterior has, diagonal or full, and a flow has not. Without them
    go posteriors of flows, and priors of dependent dimensions. Under a hierarchical prior and a
    diagonal posterior the KL has a part of each level, the lowest first,

        KL(q(z|x) ‖ p(z)) = Σ_l E KL(q(z_l|x) ‖ p(z_l|z_{l+1}))

    `elbo/kl_level1` and so on, each in closed form given the 16 draws of the level above, and
    `posterior/active_units_level1`; of a posterior of levels they are means over those draws. Then
    `posterior/active_units`; and how far the aggregate posterior is from the prior by samples:
    `posterior/energy` (energy distance of one code for each datum to as many draws of the prior)
    and `posterior/pag`, the prior agreement with N(0, I) of those codes in the prior's base space,
    under a Gaussian or a flow, with the ends of its interval and the control `own/posterior_pag`:
    codes that the posterior draws for samples of the model itself. An exact posterior's control is
    0; what it is above 0 is the posterior's own error, which `posterior/pag` has too. Under the
    prior of a refit those that it does not have are NaN.

    Under a prior whose density is not normalised there are neither a likelihood nor a bound nor
    their parts, whatever its `log_prob` returns: the run's `notes.jsonl` says so.

    Saved: `nll/step=….safetensors` with `nll (n,)`, of each datum, and `index (n,)`, which of the
    split it is. The standard error is of a level. Two models on the same data share most of it: the
    error of their difference is that of the mean of each datum's difference.

    Args:
        n: data; at most what the split holds.
        split: which part of the data.
        num_samples: K. Memory does not grow with it, time does: see README, Likelihoods.
        num_posteriors: most data whose posteriors make up one q(z); 0 leaves those two parts out.
            Under an inverse autoregressive posterior each of their n · `num_posteriors` densities
            takes its slow direction (0.06 ms in 50 dimensions, four layers of 512); under a planar
            one there are none.
        progress: whether to draw a progress bar.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: if a size is out of range.

    Source: Burda et al., 2016, section 5; Hoffman & Johnson, "ELBO surgery", 2016; Chen et al.,
    "Isolating sources of disentanglement in variational autoencoders", 2018, eq. 2.
    """

    needs = ("posterior", "likelihood")

    def __init__(
        self, *, n: int = 1000, split: str = "test", num_samples: int = 128,
        num_posteriors: int = 256, progress: bool = True, **schedule: Any,
    ) -> None:  # fmt: skip
        super().__init__(**schedule)
        for name, value, least in (
            ("n", n, 2), ("num_samples", num_samples, 1), ("num_posteriors", num_posteriors, 0)
        ):  # fmt: skip
            check_integer(name, value, least)
        self.n, self.split, self.num_samples = n, split, num_samples
        self.num_posteriors, self.progress = num_posteriors, progress

    def check(self, model: Any, data: Any) -> None:
        super().check(model, data)
        if (size := data.size(self.split)) < 2:
            raise ValueError(
                f"a likelihood needs at least 2 data for its standard error, the {self.split} part "
                f"holds {size}; set `callbacks.likelihood.split`, or `data.num_{self.split}=100`"
            )

    @torch.no_grad()
    def measure(self, model: VAE, data: Any, run_dir: Path) -> dict[str, float]:
        which = self.split, min(self.n, data.size(self.split)), self.seed
        x, label = data.split(*which)
        x, context = x.to(model.device), context_of(model, label)
        believed = "log_likelihood" in model.capabilities
        with model.evaluating():
            values: dict[str, float] = {}
            if believed:
                nll = self._nll(model, x, context)
                path = run_dir / "nll" / f"step={model.counters.generator_steps:08d}.safetensors"
                settings = {"settings": f"num_samples={self.num_samples}"}
                write_tensors(path, {"nll": nll, "index": data.indices(*which)}, settings)
                values = level_of(nll, x[0].numel() if model.likelihood.has_mass else None)
            values |= self._surgery(model, x, context)
        if not believed:
            name = type(model.prior.current).__name__
            why = (
                f"no NLL and no ELBO: the density of a {name} prior is not normalised, so it says "
                "nothing of a likelihood; fit one that is, by flexgen refit with prior=realnvp"
            )
            step = model.counters.generator_steps
            add_note(run_dir, RunNote(step, type(self).__name__, False, why))
            kept = {name: value for name, value in values.items() if name not in _OF_DENSITIES}
            # The prior before a refit may have had them: its values must not stay the last ones.
            values = kept | (dict.fromkeys(_OF_DENSITIES, math.nan) if model.prior.in_use else {})
        return values

    def _nll(self, model: VAE, x: Tensor, context: Tensor | None) -> Tensor:
        # As many data as are decoded in one pass, so that the bar moves for a large K too.
        rows = max(1, min(_BATCH, CODES_AT_ONCE // self.num_samples))
        batches, quiet = [*in_parts(x, context, rows)], not self.progress
        return torch.cat([
            -model.log_likelihood(batch, self.num_samples, labels)
            for batch, labels in track(batches, "likelihood", transient=True, disable=quiet)
        ])  # fmt: skip

    def _surgery(self, model: VAE, x: Tensor, context: Tensor | None) -> dict[str, float]:
        codes, means, again = [], [], []
        terms: dict[str, list[Tensor]] = {}
        # Of a conditional model the aggregate is of each class, and few data are of one.
        divided = self.num_posteriors > 0 and model.prior.normalised and context is None
        divided = divided and model.posterior.has_log_prob
        blocks = math.ceil(len(x) / (self.num_posteriors if divided else _BATCH))
        for batch, labels in in_parts(x, context, math.ceil(len(x) / blocks)):
            q = in_context(model.posterior, batch, labels)
            of_levels = q.draw((16,)) if isinstance(q, LevelwiseDistribution) else None
            if of_levels is None:
                z, log_q = q.rsample_and_log_prob((16,))
            else:
                z, log_q = of_levels.z, of_levels.log_q.sum(-1)
            surprise = model.prior.cross_entropy(z, labels).double()
            # Of one draw the bound of 440 digits is off by 0.15 nats, more than priors differ by.
            log_p_x = [in_context(model.likelihood, code, labels).log_prob(batch) for code in z]
            found = {
                "elbo/reconstruction": -torch.stack(log_p_x).double().mean(0),
                "elbo/kl": (log_q.double() + surprise).mean(0),
            }
            if divided:
                found |= _marginal_parts(q, model.prior(), z[0], surprise[0])
            found |= _kl_of_levels(q, model.prior(labels), z, of_levels)
            for name, of_data in found.items():
                terms.setdefault(name, []).append(of_data)
            codes.append(z[0])
            first, second = _means(q)
            means.append(first)
            again.append(second)
        z = torch.cat(codes)
        parts = {name: float(torch.cat(of_data).mean()) for name, of_data in terms.items()}
        if divided:
            parts["elbo/mutual_information"] = parts["elbo/kl"] - parts["elbo/marginal_kl"]
        levels = model.prior[0].levels
        values = {
            "elbo/bound": -parts["elbo/reconstruction"] - parts["elbo/kl"],
            "posterior/active_units": float(active_units(torch.cat(means), torch.cat(again))),
            "posterior/energy": energy_distance(model.prior.draw(len(z), context), z),
        }
        halves = (torch.cat(part).split(levels, 1) for part in (means, again) if levels)
        for level, (first, second) in enumerate(zip(*halves, strict=True), 1):
            values[f"posterior/active_units_level{level}"] = float(active_units(first, second))
        if model.prior.in_use:
            # The prior before a refit may have had them: its values must not stay the last ones.
            values |= dict.fromkeys(_OF_NORMAL_PRIORS, math.nan)
            values |= {f"elbo/kl_level{level + 1}": math.nan for level in range(len(levels))}
        base = base_codes(model.prior, z)
        if base is not None and len(z) > z.shape[1]:
            values |= agreement("posterior/pag", base, seed=self.seed)
            own = torch.cat([*self._own_codes(model, len(x), context)])
            base = base_codes(model.prior, own)
            assert base is not None
            values |= agreement("own/posterior_pag", base, seed=self.seed)
        return values | parts

    @staticmethod
    def _own_codes(model: VAE, n: int, context: Tensor | None) -> Iterator[Tensor]:
        """A code of each of n samples of the model itself."""
        for z, labels in in_parts(model.prior.draw(n, context), context, _BATCH):
            x = in_context(model.likelihood, z, labels).sample()
            yield in_context(model.posterior, x, labels).sample()


def level_of(nll: Tensor, num_dimensions: int | None) -> dict[str, float]:
    """The mean NLL with its standard error, and in bits a dimension where pixels have mass."""
    nll = nll.double()
    mean, error = float(nll.mean()), float(nll.std() / math.sqrt(len(nll)))
    values = {"nll/samples": mean, "nll/standard_error": error}
    if num_dimensions is not None:
        values["nll/bits_per_dimension"] = bits_per_dimension(mean, num_dimensions)
    return values


def _marginal_parts(
    q: Distribution, p: Distribution, z: Tensor, surprise: Tensor
) -> dict[str, Tensor]:
    """KL(q(z) ‖ p(z)) at one code `(d,)` of each posterior of q and −log p of it, and its parts."""
    log_marginal = marginal_log_prob(z, q.log_prob, len(z))
    found = {"elbo/marginal_kl": log_marginal + surprise}
    if isinstance(q, DiagonalNormal | LowerNormal) and isinstance(p, DiagonalNormal):
        each = Normal(q.mean, q.stddev, validate_args=False)
        log_product = marginal_log_prob(z, each.log_prob, len(z)).sum(1)
        found["elbo/total_correlation"] = log_marginal - log_product
        found["elbo/dimensionwise_kl"] = log_product + surprise
    return found


def _kl_of_levels(
    q: Distribution, p: Distribution, z: Tensor, of_levels: LevelDraws | None
) -> dict[str, Tensor]:
    """KL(q(z_l|x) ‖ p(z_l|z_{l+1})) of each level, a mean over draws `(16, n, d)`."""
    if not isinstance(p, HierarchicalNormal):
        return {}
    if of_levels is not None:
        kl = (of_levels.log_q - p.log_prob_of_levels(z)).double().mean(0)
    elif isinstance(q, DiagonalNormal) and p.is_normal:
        parts = q.kl(p.given(z)).double().mean(0).split(p.levels, -1)
        kl = torch.stack([part.sum(-1) for part in parts], -1)
    elif isinstance(q, DiagonalNormal):
        kl = p.estimated_kl(q, z).double().mean(0)
    else:
        return {}
    return {f"elbo/kl_level{level}": part for level, part in enumerate(kl.unbind(-1), 1)}


def _means(q: Distribution) -> tuple[Tensor, Tensor]:
    """Posterior means `(n, d)` twice: exact, or of two independent sets of draws."""
    try:
        return q.mean, q.mean
    except NotImplementedError:
        first, second = q.sample(torch.Size((64,))).chunk(2)
        return first.mean(0), second.mean(0)
