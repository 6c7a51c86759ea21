"""Draws of a base, weighed by how much the decoder stretches space there."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.contracts import in_context
from flexgen.priors.reweighted import Reweighted, ReweightedDistribution

_CODES_A_PASS = 100
_SMALLEST = 1e-12  # of a singular value: a dead direction has none


class PolarityDistribution(ReweightedDistribution):
    """Draws by the decoder's log-volumes in the place of a critic's scores."""

    prior: "Polarity"

    def _scores(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.cat([self._volume(part, label) for part in z.split(_CODES_A_PASS)])

    def _volume(self, z: Tensor, label: Tensor | None) -> Tensor:
        context = None if label is None else label.expand(len(z))
        decoder = self.prior.bound()

        def data(z: Tensor) -> Tensor:
            x: Tensor = in_context(decoder, z, context)
            return x.flatten(1)

        # Forward mode: a pass for each of d directions, not for each pixel.
        eye = torch.eye(z.shape[1]).to(z)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of how it has this mode
            columns = [torch.func.jvp(data, (z,), (e.expand_as(z),))[1] for e in eye]
        jacobian = torch.stack(columns, 2).double()
        squares = torch.linalg.eigvalsh(jacobian.mT @ jacobian)
        kept = squares[:, -self.prior.top :] if self.prior.top else squares
        return 0.5 * kept.clamp_min(_SMALLEST**2).log().sum(1).float()


class Polarity(Reweighted):
    r"""The base weighed by a power of the volume that the decoder G gives to codes there.

    .. math:: p_ρ(z) ∝ p(z) \Big( \prod_{i ≤ k} σ_i(J_G(z)) \Big)^ρ

    with σ_i the singular values of G's Jacobian, resampled from a pool. Data on G's manifold are
    p/∏σ dense: ρ > 0 goes to where they are rare, ρ < 0 to modes, and ρ = 1 undoes what G does to
    the density of codes.
    Any model with a decoder has it, without a critic. A code of the pool costs d passes with a
    tangent through G. Training draws from the base.

    Args:
        base: any prior; it needs no density.
        rho: ρ.
        top: k, the largest singular values that count; None: all.
        presample: codes in the pool for each that is drawn, at least 2.

    Raises:
        ValueError: for a value out of range.

    Source: Humayun, Balestriero & Baraniuk, "Polarity sampling: quality and diversity control of
    pre-trained generative networks via singular values", 2022, Algorithm 1.
    """

    distribution = PolarityDistribution

    def __init__(
        self, base: nn.Module, *, rho: float = -0.1, top: int | None = None, presample: float = 4.0
    ) -> None:
        super().__init__(base, presample=presample, where="generation")
        self.rho = float(rho)
        self.top = None if top is None else check_integer("top", top, 1, "set `prior.top=null`")
        self._decoder: Callable[..., Tensor] | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.base.needs | {"decoder"}

    def bind(self, *, decoder: Callable[..., Tensor] | None = None, **offers: Any) -> None:
        if decoder is not None:
            self._decoder = functools.partial(decoder)
        super().bind(decoder=decoder, **offers)

    def bound(self) -> Callable[..., Tensor]:
        """The decoder."""
        if self._decoder is None:
            raise RuntimeError(
                "a Polarity prior weighs codes by a decoder, and it was given none; call "
                "`prior.bind(decoder=…)`"
            )
        return self._decoder

    def weights(self, scores: Tensor) -> Tensor:
        return (self.rho * scores.double()).softmax(0).to(scores)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_decoder": None}
