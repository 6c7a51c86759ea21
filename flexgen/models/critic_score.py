"""What a model hands the priors that draw by a critic's score."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.priors import Staged

__all__ = ["CriticScore", "FlatCritic", "attach_critic", "training_prior"]

log = logging.getLogger(__name__)

_CODES_A_PASS = 1000
# Scores on the ring of eight, 20 to 160 steps, one seed: GAN and WGAN-GP 0.009 to 0.23, WGAN
# clipped to 0.01 at most 1.2e-5.
_FLAT = 1e-4
_ALL_BUT_LINEAR = 0.01


class CriticScore:
    """The critic's raw output for G(z).

    Both networks are in eval mode meanwhile: a code's score does not depend on the codes beside
    it, and neither batch-norm statistics nor the draws of a dropout are touched.

    Args:
        generator: codes `(batch, latent_dim)` to data.
        critic: data to raw outputs `(batch,)`.
    """

    def __init__(self, generator: nn.Module, critic: nn.Module) -> None:
        self.generator, self.critic = generator, critic

    def __call__(self, z: Tensor) -> Tensor:
        """Scores `(n,)` of codes `(n, latent_dim)`."""
        with _evaluating(self.generator, self.critic):
            return torch.cat([self.critic(self.generator(c)) for c in z.split(_CODES_A_PASS)])


def attach_critic(
    prior: nn.Module, sampler: nn.Module, critic: nn.Module, clip: float | None
) -> None:
    """Have every prior in `prior` that draws by score draw by the critic's for the sampler's data.

    `clip` is what the objective clips the critic's weights to: small enough, it warns.
    """
    waiting = [module for module in prior.modules() if hasattr(module, "attach")]
    for module in waiting:
        module.attach(CriticScore(sampler, critic))  # type: ignore[operator]
    if waiting and clip is not None and clip <= _ALL_BUT_LINEAR:
        log.warning(
            "a critic whose weights are clipped to %g is all but linear, and a prior that draws by "
            "its score learns no modes; use `model=wgan_gp`",
            clip,
        )


def training_prior(prior: Staged, player: str, step: int, score: CriticScore) -> Distribution:
    """What a step of `player`, "critic" or "generator", draws codes from.

    Args:
        prior: a model's.
        player: whose step it is.
        step: generator steps before it.
        score: by the networks that are trained.
    """
    at = getattr(prior.current, "at", None)
    drawn_from: Distribution = prior() if at is None else at(player, step, score)
    return drawn_from


class FlatCritic:
    """Warns once when the scores that a prior draws by hardly differ.

    The game has degenerated then: a masked one has every p with p_data ≤ p/r as an optimum, and a
    flat critic tells none of them from another.
    """

    def __init__(self) -> None:
        self.told = False

    def watch(self, logged: dict[str, float], step: int) -> None:
        """Look at the mean values logged at generator step `step`."""
        std = logged.get("prior/critic_std", 1.0)
        if std < _FLAT and not self.told:
            self.told = True
            log.warning(
                "the critic's scores hardly differ (standard deviation %.1e before generator step "
                "%d): drawing by score is no better than drawing from the base; use "
                "`model=wgan_gp`, or for a masked prior raise `prior.rate`",
                std,
                step,
            )


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    training = [m for network in networks for m in network.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
