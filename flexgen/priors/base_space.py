"""The simple space under a prior that is a map of another prior."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from flexgen.priors.fixed import Normal
from flexgen.priors.staged import Staged

__all__ = ["BaseSpace", "base_codes"]


class BaseSpace(NamedTuple):
    """Where a prior f#p(ε) is simple.

    Args:
        prior: p(ε).
        to_code: f, ε `(n, base_dim)` to codes `(n, latent_dim)`, with gradient.
        from_code: its inverse; None where there is none.
    """

    prior: nn.Module
    to_code: Callable[[Tensor], Tensor]
    from_code: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, prior: nn.Module) -> "BaseSpace":
        """The base space of any prior, of a staged one that of the stage in use.

        A prior that is a map has a method `base_space()` that says so; any other, one of zuko's
        too, is its own base.
        """
        if isinstance(prior, Staged):
            prior = prior.current
        if hasattr(prior, "base_space"):
            space: BaseSpace = prior.base_space()  # type: ignore[operator]
            return space
        return cls(prior, _same, _same)


def base_codes(prior: nn.Module, z: Tensor) -> Tensor | None:
    """Codes `(n, d)` in the prior's base space, in units in which N(0, I) stands there.

    None where no normal does, or the map has no inverse.
    """
    space = BaseSpace.of(prior)
    if space.from_code is None or not isinstance(space.prior, Normal):
        return None
    return space.from_code(z) / space.prior.scale


def _same(z: Tensor) -> Tensor:
    return z
