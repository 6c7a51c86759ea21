"""Generator reversal of held-out data, and the prior agreement score of its codes."""

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from flexgen.callbacks.measurement import (
    ALONE,
    Measurement,
    by_level,
    check_codes,
    cosine_distance,
    energy_distance,
    value_of,
)
from flexgen.checks import check_integer, check_one_of
from flexgen.codes import base_space, codes_path, context_of, rehearse, reverse_data, with_start
from flexgen.contracts import Prior, in_context
from flexgen.distributions import covariance
from flexgen.drawing import draw_pairs
from flexgen.files import write_tensors
from flexgen.metrics import GaussianKL, PriorAgreement, pag_interval
from flexgen.models import Latent
from flexgen.reversal import Reversal

# Of a prior, for the moments of its normal: of fewer, their own noise shows in the divergence.
_DRAWS = 10_000


class ReversalScore(Measurement):
    """Reverses held-out data and scores the prior with PAG, beside both of its controls.

    Under a prior that is a map f of a simple one, a pushforward or a flow, the codes are those of
    G∘f in its base space, against the normal there (`space=base`): the same normal in the same
    dimension as before a refit. A step of the descent then takes f in its direction to codes,
    which for MAF is one step a coordinate. `space=code` takes codes in Z, and so do priors without
    such a map; they are scored against a normal with the prior's own spread.

    Logged: `pag/unit` with `pag/unit_low` and `pag/unit_high`, `pag/literal`, the full Gaussian
    KL `pag/kl` and its mean term `pag/kl_mean`; under a prior of levels `pag/unit_level1` and so
    on, of each level's own noise; codes in Z against draws from the prior on Z,
    `pag/fit` (KL of their normals) and `pag/samples` (energy distance); `reversal/error` (the mean
    per-image loss) and `reversal/converged` (a share); `own/pag_true` and `own/pag_reversed`, the
    score of codes that generated images and of those images reversed, with `own/error`; and
    `pag/nscd` with its control `own/nscd`, of those reversed images, see
    :class:`~flexgen.metrics.NSCD`.

    Args:
        n: how many images; at most what the split holds.
        split: which part of the data they come from.
        space: "base" or "code".
        sigma: standard deviation of the prior scored against; None: that of the space's prior.
        num_resamples: of the bootstrap interval.
        options: passed on to :func:`flexgen.reversal.reverse`, e.g. `loss`, `method`, `steps`.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: for an unknown space, or too few resamples.
    """

    needs = ("decoder",)
    together = True
    split: str

    def __init__(
        self,
        *,
        n: int = 1024,
        split: str = "validation",
        space: str = "base",
        sigma: float | None = None,
        num_resamples: int = 1000,
        options: dict[str, Any] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        check_one_of("space", space, ("base", "code"))
        check_integer("n", n)
        check_integer("num_resamples", num_resamples, 40, "1000 is usual for an interval")
        self.n, self.split, self.space, self.sigma = n, split, space, sigma
        self.num_resamples, self.options = num_resamples, dict(options or {})

    def check(self, model: Latent, data: Any) -> None:
        super().check(model, data)
        dim = base_space(model)[1].latent_dim if self.space == "base" else model.latent_dim
        check_codes("reversal", self.n, self.split, data.size(self.split), dim)
        rehearse(model, data, self.split, self.options)

    def measure(self, model: Latent, data: Any, run_dir: Path) -> dict[str, float]:
        n = min(self.n, data.size(self.split))
        x, label = data.split(self.split, n, self.seed)
        index = data.indices(self.split, n, self.seed)
        x, context = x.to(model.device), context_of(model, label)
        generator, prior = base_space(model)
        current = model.prior.current
        if self.space == "code":
            generator, prior = model.decoder, current  # type: ignore[assignment]
        options = {
            "seed": self.seed, "index": index, "context": context, "together": True, **self.options
        }  # fmt: skip
        quiet = {**options, "progress": False}
        in_base = prior is not current
        with model.evaluating():
            start = with_start(model, x, context, options, base=in_base)
            found = reverse_data(generator, prior, x, data.range, **start)
            in_z = found.z
            if in_base:
                start = with_start(model, x, context, quiet, base=False)
                in_z = reverse_data(model.decoder, current, x, data.range, **start).z  # type: ignore[arg-type]
            true_codes = prior.draw(n, context)
            with torch.no_grad():
                own = in_context(generator, true_codes, context)
            start = with_start(model, own, context, quiet, base=in_base)
            again = reverse_data(generator, prior, own, data.range, **start)
        labels = model.in_turn(_DRAWS)
        sigma = self.sigma or _spread(prior, labels)
        low, high = pag_interval(found.z, sigma, num_resamples=self.num_resamples, seed=self.seed)
        kl = GaussianKL(sigma=sigma, **ALONE).to(found.z.device)
        values = {
            "pag/unit_low": float(low),
            "pag/unit_high": float(high),
            "pag/kl": value_of(kl, found.z),
            "pag/kl_mean": float(kl.mean_term()),
            "reversal/error": float(found.loss.mean()),
            "reversal/converged": float(found.converged.float().mean()),
            "own/error": float(again.loss.mean()),
        }
        draws = current.draw(_DRAWS, labels)
        moments = draws.double().mean(0), covariance(draws)
        fit = GaussianKL(reference=moments, bias_correct=True, **ALONE).to(in_z.device)
        values["pag/fit"] = value_of(fit, in_z)
        values["pag/samples"] = energy_distance(draws[: len(in_z)], in_z)
        pags: dict[str, tuple[Tensor, Literal["unit", "literal"]]] = {
            "pag/unit": (found.z, "unit"),
            "pag/literal": (found.z, "literal"),
            "own/pag_true": (true_codes, "unit"),
            "own/pag_reversed": (again.z, "unit"),
        }
        for name, (z, convention) in pags.items():
            pag = PriorAgreement(sigma=sigma, convention=convention, **ALONE).to(z.device)
            pag.update(z)
            values[name] = float(pag.compute())
        drawn = prior.draw(n, context)
        values["pag/nscd"] = cosine_distance(drawn, found.z)
        values["own/nscd"] = cosine_distance(drawn, again.z)
        if self.space == "base":
            values |= by_level("pag/unit", found.z, current.levels, sigma)
        step = model.counters.generator_steps
        self._save(codes_path(run_dir, step), found, index, label, sigma)
        if x.ndim == 4:
            path = run_dir / "images" / "reconstructions" / f"step={step:08d}.png"
            rank_zero_only(draw_pairs)(x[:40], found.x_hat[:40], data.range, path)
        return values

    @rank_zero_only
    def _save(
        self, path: Path, found: Reversal, index: Tensor, label: Tensor | None, sigma: float
    ) -> None:
        tensors = {
            "z": found.z.cpu().contiguous(),
            "loss": found.loss.cpu(),
            "index": index,
            "converged": found.converged.cpu(),
            "singular_values": torch.linalg.svdvals(found.z.double()).cpu(),
        }
        if label is not None:
            tensors["label"] = label.cpu()
        about = {
            "n": self.n, "split": self.split, "seed": self.seed, "space": self.space,
            "sigma": sigma, **self.options,
        }  # fmt: skip
        metadata = {name: str(value) for name, value in about.items()}
        write_tensors(path, tensors, metadata)


def _spread(prior: Prior, labels: Tensor | None) -> float:
    """Root mean variance per coordinate; of draws, where the distribution does not state it."""
    try:
        variance = prior().variance
    except NotImplementedError:
        variance = prior.draw(_DRAWS, labels).var(0)
    return float(variance.detach().mean().sqrt())
