"""Likelihoods p(x|z); what they are, :class:`flexgen.contracts.Likelihood` says."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_positive
from flexgen.contracts import Likelihood, in_context
from flexgen.distributions import BernoulliPixels, GaussianPixels, LogisticPixels

# Of float32 data, in units of their range.
_ROUNDING = 1e-6
# Data of more values than these are told no number of levels to set.
_MOST_LEVELS = 1024


class _Decoded(Likelihood):
    """A decoder and what its output means."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def decode(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, int]:
        """The decoder's output `(*batch, *shape)` for codes `(*batch, latent_dim)`; len(shape)."""
        rows = z.reshape(-1, z.shape[-1])
        if context is not None:
            context = context.expand(z.shape[:-1]).reshape(-1)
        out: Tensor = in_context(self.decoder, rows, context)
        return out.view(*z.shape[:-1], *out.shape[1:]), out.ndim - 1


class Bernoulli(_Decoded):
    r"""Binary pixels, $\log p(x|z) = \sum_i x_i l_i − \log(1 + e^{l_i})$ with logits l of z, nats.

    Args:
        decoder: codes `(n, latent_dim)` to logits `(n, *shape)`.
    """

    data_range = (0.0, 1.0)
    has_mass = True

    def forward(self, z: Tensor, context: Tensor | None = None) -> BernoulliPixels:
        return BernoulliPixels(*self.decode(z, context))


class Gaussian(_Decoded):
    r"""Pixels N(loc(z), σ²), a density: nats against the Lebesgue measure of the data's unit.

    Args:
        decoder: codes `(n, latent_dim)` to means `(n, *shape)`.
        scale: σ, above 0; where it starts if it is learned.
        learn_scale: whether σ, one for all pixels, learns.

    Raises:
        ValueError: if `scale` is not above 0.
    """

    def __init__(self, decoder: nn.Module, scale: float = 1.0, learn_scale: bool = True) -> None:
        super().__init__(decoder)
        check_positive("scale", scale, "set `likelihood.scale=1`")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)

    def forward(self, z: Tensor, context: Tensor | None = None) -> GaussianPixels:
        loc, event_dims = self.decode(z, context)
        return GaussianPixels(loc, self.log_scale.exp(), event_dims)


class DiscretisedLogistic(_Decoded):
    r"""Pixels of `levels` values: the mass of a logistic between the edges of a value's cell.

    .. math:: P(x_i|z) = σ((x_i + δ − m_i)/s) − σ((x_i − δ − m_i)/s)

    with δ half a level; the lowest value has all mass below its upper edge, the highest all above
    its lower one, so the masses of all values add up to 1.

    Data off the grid of `levels`, or on one half as fine, are refused: mass would lie where no
    datum can be, and bits per dimension would mean nothing.

    Args:
        decoder: codes `(n, latent_dim)` to means m `(n, *shape)`, in the data's range.
        range: (low, high), the data's range.
        levels: how many values a pixel has.
        scale: s, above 0, where it starts; one for all pixels learns.

    Raises:
        ValueError: for a range that is not rising, under two levels, or a scale not above 0.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    appendix (CIFAR-10). Departure: the end cells are open, so that the masses add up to 1.
    """

    has_mass = True

    def __init__(
        self, decoder: nn.Module, range: Sequence[float] = (-1.0, 1.0), levels: int = 256,
        scale: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(decoder)
        low, high = (float(end) for end in range)
        if not low < high:
            raise ValueError(f"`range` must rise, got {(low, high)}; set `data.range=[-1,1]`")
        check_integer("levels", levels, 2, "256 are usual")
        check_positive("scale", scale, "set `likelihood.scale=0.1`")
        self.data_range, self.grid = (low, high), (low, high, levels)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def check_data(self, x: Tensor) -> None:
        low, high, levels = self.grid
        values = ((x.detach().unique().double() - low) / (high - low)).unique()
        fits = _on_grid(values, levels)
        if fits and len(values) < 2:
            return  # of one value nothing can be told
        # The coarsest grid that holds them, and that they fill by half.
        num = max(2, len(values))
        most = min(2 * num, (levels + 1) // 2 if fits else _MOST_LEVELS)
        for coarser in range(num, most + 1):
            if _on_grid(values, coarser):
                binary = ", or likelihood=bernoulli with data.range=[0,1]" if coarser == 2 else ""
                raise ValueError(
                    f"a DiscretisedLogistic likelihood of {levels} levels is of data that take as "
                    f"many values, got data of {coarser}; set likelihood.levels={coarser}{binary}"
                )
        if not fits:
            raise ValueError(
                f"a DiscretisedLogistic likelihood of {levels} levels is of data on their grid, "
                f"got {len(values)} values that are not; set likelihood=gaussian"
            )

    def forward(self, z: Tensor, context: Tensor | None = None) -> LogisticPixels:
        loc, event_dims = self.decode(z, context)
        return LogisticPixels(loc, self.log_scale.exp(), *self.grid, event_dims)


def _on_grid(values: Tensor, levels: int) -> bool:
    """Whether values in [0, 1] are multiples of 1 / (levels − 1), or such rounded to 8 bits."""
    nearest = (values * (levels - 1)).round() / (levels - 1)
    stored = (nearest * 255).round() / 255
    near = torch.minimum((values - nearest).abs(), (values - stored).abs()) < _ROUNDING
    return bool(near.all())
