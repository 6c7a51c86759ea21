"""Any prior beside a trained generator: built, given the critic, fitted to codes."""

import copy
from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate

from flexgen.callbacks import ReversalScore
from flexgen.codes import Codes, codes_of_data
from flexgen.priors import Prior, as_prior
from flexgen.runs.build import Parts, examples
from flexgen.training import isolated_rng

__all__ = ["codes_of", "own_options", "prior_for"]


def codes_of(
    parts: Parts,
    split: str = "train",
    n: int | None = 10_000,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Codes:
    """Codes of a run's data: of its posterior, else as the run reverses them.

    Args:
        parts: a trained run; nothing in it changes.
        split: which part of the data.
        n: how many images, at most what the split holds; None: all.
        seed: which images, and where their codes start.
        progress: whether to draw a progress bar.
    """
    options = {**own_options(parts), "seed": seed, "progress": progress}
    return codes_of_data(parts.model, parts.data, split, n, **options)


def own_options(parts: Parts) -> dict[str, Any]:
    """What a run's own reversal is told, see :func:`flexgen.codes.reverse_data`."""
    scores = (m for m in parts.measurements.values() if isinstance(m, ReversalScore))
    return next((score.options for score in scores), {})


def prior_for(
    parts: Parts,
    config: dict[str, Any],
    codes: Callable[[], Codes],
    *,
    base: Prior | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prior:
    """A prior, ready to be drawn from, for a trained run.

    A prior that can learn is fitted to `codes`; one that draws by score draws by the run's critic,
    and its base is fitted if that can learn and was not given.

    Args:
        parts: a trained run; nothing in it changes.
        config: of the prior, plain values with a `_target_`.
        codes: gives the codes to fit to; called only for a prior that can learn.
        base: what a prior that draws by score draws from; None: what its configuration says.
        seed: of the prior's weights and of the fit.
        progress: whether to draw a progress bar.

    Returns:
        The prior, frozen, on the model's device.

    Raises:
        ValueError: if it is of another dimension than the run's codes, or cannot be fitted.
    """
    model = parts.model
    with isolated_rng(seed):
        build = instantiate({**config, "_partial_": True})
        prior = as_prior(build())
        if given := base is not None and prior.unmasked is not None:
            prior = build(base=copy.deepcopy(base))
        prior = prior.to(model.device).requires_grad_(False)
        if prior.latent_dim != model.latent_dim:
            raise ValueError(
                f"the prior's event shape must be ({model.latent_dim},), the run's `latent_dim`, "
                f"got ({prior.latent_dim},); leave `prior.latent_dim` out"
            )
        model.bind(prior)
        prior.bind(data=examples(parts.data, seed))
        learner = prior
        while learner.unmasked is not None:
            learner = learner.unmasked
        if learner.learns and (learner is prior or not given):
            z, context = codes()
            learner.fit(z, context=context, seed=seed, progress=progress)
    return prior.eval()
