"""How real a critic finds the data of codes, which priors that draw by score are bound to."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flexgen.contracts import in_context
from flexgen.models.latent import in_parts
from flexgen.objectives import Played

log = logging.getLogger(__name__)

_CODES_A_PASS = 1000
# Scores on the ring of eight, 20 to 160 steps, one seed: GAN and WGAN-GP 0.009 to 0.23, WGAN
# clipped to 0.01 at most 1.2e-5.
_FLAT = 1e-4
_ALL_BUT_LINEAR = 0.01


def critic_score(
    generator: nn.Module, critic: nn.Module, z: Tensor, context: Tensor | None = None, *,
    shown: Callable[..., Played],
) -> Tensor:  # fmt: skip
    """The critic's raw output `(n,)` for G(z), in a context `(n,)` if there is one.

    What it is shown of data, codes and context, `shown` says.

    Both networks are in eval mode meanwhile: a code's score does not depend on the codes beside
    it, and neither batch-norm statistics nor the draws of a dropout are touched.
    """
    with _evaluating(generator, critic):
        parts = in_parts(z, context, _CODES_A_PASS)
        return torch.cat([critic(*shown(in_context(generator, *p), *p)) for p in parts])


def warn_of_clipping(clip: float | None) -> None:
    """Warn where the critic's weights are clipped so far that its score tells a prior nothing."""
    if clip is not None and clip <= _ALL_BUT_LINEAR:
        log.warning(
            "a critic whose weights are clipped to %g is all but linear, and a prior that draws by "
            "its score learns no modes; use `model=wgan_gp`",
            clip,
        )


def warn_if_flat(logged: dict[str, float], step: int) -> bool:
    """Warn when the scores that a prior draws by hardly differ, and say whether they do.

    The game has degenerated then: a masked one has every p with p_data ≤ p/r as an optimum, and a
    flat critic tells none of them from another.

    Args:
        logged: the mean values logged at generator step `step`.
        step: of the generator.
    """
    if flat := (std := logged.get("prior/critic_std", 1.0)) < _FLAT:
        log.warning(
            f"the critic's scores hardly differ (standard deviation {std:.1e} before generator "
            f"step {step}): drawing by score is no better than drawing from the base; use "
            "`model=wgan_gp`, or for a masked prior raise `prior.rate`"
        )
    return flat


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
