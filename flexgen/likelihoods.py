"""Likelihoods p(x|z); what they are, :class:`flexgen.contracts.Likelihood` says."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_positive
from flexgen.contracts import Decodes, Likelihood, in_context
from flexgen.distributions import BernoulliPixels, GaussianPixels, LogisticPixels
from flexgen.networks.pixels import PixelNetwork, PixelsGivenMaps
from flexgen.outputs import check_levels, level_grid


class _Decoded(Likelihood):
    """A decoder and what its output means."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    @property
    def ladder(self) -> Decodes | None:
        return self.decoder if isinstance(self.decoder, Decodes) else None

    def forward(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        return self.of(*self.decode(z, context))

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

    def of(self, out: Tensor, event_dims: int) -> BernoulliPixels:
        return BernoulliPixels(out, event_dims)


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

    def of(self, out: Tensor, event_dims: int) -> GaussianPixels:
        return GaussianPixels(out, self.log_scale.exp(), event_dims)


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
        check_positive("scale", scale, "set `likelihood.scale=0.1`")
        self.grid = level_grid(range, levels)
        self.data_range = self.grid[:2]
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def check_data(self, x: Tensor) -> None:
        check_levels(x, self.grid, "a DiscretisedLogistic likelihood", "likelihood")

    def of(self, out: Tensor, event_dims: int) -> LogisticPixels:
        return LogisticPixels(out, self.log_scale.exp(), *self.grid, event_dims)


class AutoregressiveLikelihood(_Decoded):
    r"""Pixels that are drawn one after the other given z: a PixelVAE's likelihood.

    .. math:: p(x|z) = \prod_i p(x_i | x_{<i}, h(z))

    The decoder's maps h(z) are the context of a pixel network: in each gate, at each pixel. What
    pixels tell of each other the network need not ask of z, which then holds little or nothing: the
    smaller the network's receptive field, the more. `model.free_bits` and `model.kl_warmup` work
    against it. A picture of a code is a draw, so nothing can be reversed.

    Args:
        decoder: codes `(n, latent_dim)` to maps `(n, features, height, width)`.
        pixels: a pixel network of so many `context_features`.

    Raises:
        ValueError: when called, if the maps are no context of the network.

    Source: Gulrajani et al., "PixelVAE: a latent variable model for natural images", 2017, section
    3. Departure: h(z) goes into every gate, as a conditional PixelCNN's, and not into the last
    layers alone.
    """

    has_mean = False

    def __init__(self, decoder: nn.Module, pixels: PixelNetwork) -> None:
        super().__init__(decoder)
        self.pixels = pixels
        self.data_range, self.has_mass = pixels.data_range, pixels.has_mass

    def of(self, out: Tensor, event_dims: int) -> PixelsGivenMaps:
        return PixelsGivenMaps(self.pixels, out)

    def check_data(self, x: Tensor) -> None:
        self.pixels.check_data(x)
