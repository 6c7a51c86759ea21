"""Any prior beside a trained generator: built, given the critic, fitted to codes."""

import copy
from collections.abc import Callable
from typing import Any

from flexgen.codes import Codes, codes_of_data, reverse_split
from flexgen.priors import Prior, as_prior
from flexgen.runs.build import examples, instantiate
from flexgen.runs.run import Run
from flexgen.training import isolated_rng


def codes_of(
    run: Run, split: str = "train", n: int | None = 10_000, *, seed: int = 0, progress: bool = True
) -> Codes:
    """Codes of n data of a split, None: all: draws of p(z|x) if the run scores by such draws, else
    by its own encoder if it has one, else as the run reverses them.

    The seed says which data, and of the draws; nothing in the run changes.
    """
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    drawn = run.posterior_options
    if drawn is not None or "encoder" in run.latent.capabilities:
        options["by_encoder"] = drawn is None
        return codes_of_data(run.latent, run.data, split, n, **{**(drawn or {}), **options})
    return reverse_split(run.latent, run.data, split, n, **run.reversal_options | options)


def prior_for(
    run: Run, config: dict[str, Any], codes: Callable[[], Codes], *, base: Prior | None = None,
    seed: int = 0, progress: bool = True,
) -> Prior:  # fmt: skip
    """A prior, ready to be drawn from, for a trained run; frozen, on the model's device.

    A prior that can learn is fitted to `codes`; one that draws by score draws by the run's critic,
    and its base is fitted if that can learn and was not given.

    Args:
        config: of the prior, plain values with a `_target_`; nothing in the run changes.
        codes: gives the codes to fit to; called only for a prior that can learn.
        base: what a prior that draws by score draws from; None: what its configuration says.
        seed: of the prior's weights and of the fit.

    Raises:
        ValueError: if it is of another dimension than the run's codes, or cannot be fitted.
    """
    model = run.latent
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
        prior.bind(data=examples(run.data, seed))
        learner = prior
        while learner.unmasked is not None:
            learner = learner.unmasked
        if learner.learns and (learner is prior or not given):
            z, context, draws = codes()
            learner.fit(z, context=context, draws=draws, seed=seed, progress=progress)
    return prior.eval()
