"""How real a critic finds the data of codes, which priors that draw by score are bound to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flexgen.contracts import in_context

__all__ = ["CriticScore", "FlatCritic", "warn_of_clipping"]

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

    def __call__(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Scores `(n,)` of codes `(n, latent_dim)`, in a context `(n,)` if there is one."""
        rows = torch.arange(len(z), device=z.device).split(_CODES_A_PASS)
        with _evaluating(self.generator, self.critic):
            return torch.cat([self._pass(z, context, r) for r in rows])

    def _pass(self, z: Tensor, context: Tensor | None, rows: Tensor) -> Tensor:
        y = None if context is None else context[rows]
        scores: Tensor = in_context(self.critic, in_context(self.generator, z[rows], y), y)
        return scores


def warn_of_clipping(clip: float | None) -> None:
    """Warn where the critic's weights are clipped so far that its score tells a prior nothing."""
    if clip is not None and clip <= _ALL_BUT_LINEAR:
        log.warning(
            "a critic whose weights are clipped to %g is all but linear, and a prior that draws by "
            "its score learns no modes; use `model=wgan_gp`",
            clip,
        )


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
