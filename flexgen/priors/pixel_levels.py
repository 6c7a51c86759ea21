"""A prior of two levels whose lower one is a map, drawn number by number given the one above."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.contracts import BaseSpace, Draws, Ladder, Prior, Report, Rung
from flexgen.distributions import Shape, Vectors
from flexgen.networks.mlp import MLPGenerator
from flexgen.networks.pixels import PixelNetwork, PixelsGivenMaps
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.fixed import Normal
from flexgen.priors.hierarchical import OfLevels
from flexgen.priors.pixel import near_normal
from flexgen.priors.staged import as_prior


class FlatMaps(Vectors):
    """Maps of a pixel network as vectors `(d,)`, one for each of a batch of contexts.

    A draw has no gradient: it is drawn coordinate by coordinate.

    Args:
        maps: the network's distribution given the contexts.
    """

    has_rsample = False

    def __init__(self, maps: PixelsGivenMaps) -> None:
        self.maps = maps
        super().__init__(maps.batch_shape, math.prod(maps.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.maps.sample(sample_shape).flatten(-3)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.maps.log_prob(value.unflatten(-1, self.maps.event_shape))


class PixelLevels(OfLevels, Ladder):
    r"""$p(z) = p(z_2) \prod_i p(z_{1i} | z_{1,<i}, h(z_2))$: a map given the level above it.

    z₁ is a map `network.shape`, drawn number by number in raster order by a pixel network whose
    context are maps h(z₂) that a decoder makes of the higher level; z₂ is a vector. A code is both
    side by side, z₁ first, as :class:`~flexgen.priors.Hierarchical` has it. It starts near N(0, I)
    and learns with a VAE, or from codes in a fit, which reports what
    :func:`~flexgen.priors.fitting.maximise_likelihood` does. Draws have no gradient.

    Args:
        latent_dim: d, both levels together.
        network: a density of maps of real numbers given `context_features` maps; the last weights
            of its heads are made small.
        hidden_features: of the decoder h, in each hidden layer.
        top: p(z₂), a prior with a density over what z₁ leaves of d; null: N(0, I).

    Raises:
        ValueError: for a network of other data or without such a context, a d that leaves nothing
            to the higher level, or a top of another size or without a density.

    Source: Gulrajani et al., "PixelVAE", 2017, section 3.2, whose p(z₁|z₂) is a PixelCNN over the
    first level's maps.

    Example:
        >>> from flexgen.networks import GatedPixelCNN
        >>> from flexgen.outputs import NormalMixture
        >>> sizes = {"channels": 4, "num_layers": 2, "context_features": 3}
        >>> prior = PixelLevels(6, GatedPixelCNN((1, 2, 2), NormalMixture(1), **sizes))
        >>> prior().log_prob(prior().sample((5,))).shape
        torch.Size([5])
    """

    learns = True
    is_normal = False

    def __init__(
        self, latent_dim: int, network: PixelNetwork, hidden_features: Sequence[int] = (100,),
        top: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(latent_dim)
        if network.num_classes is not None or not network.context_size or network.has_mass:
            raise ValueError(
                "the network must be of real numbers and have `context_features`, which are made "
                f"of the higher level, got a {type(network.output).__name__} output and "
                f"{network.context_size}; set output normal_mixture and `context_features=8`"
            )
        own, maps = math.prod(network.shape), (network.context_size, *network.shape[1:])
        if (above := latent_dim - own) < 1:
            raise ValueError(
                f"`latent_dim` must be above the {own} numbers of the lower level's map "
                f"{network.shape}, got {latent_dim}; set `latent_dim={own + 8}`"
            )
        self.levels = own, above
        self.network = near_normal(network)
        self.decoder = MLPGenerator(above, maps, None, hidden_features)
        self.top = Normal(above) if top is None else as_prior(top)
        if self.top.latent_dim != above or not self.top.has_log_prob:
            raise ValueError(
                f"`top` must be a prior with a density over the {above} numbers of the higher "
                f"level, got a {type(self.top).__name__} over {self.top.latent_dim}; use "
                "prior@prior.top=realnvp with its size, or null"
            )
        self.level_shapes = network.shape, (above,)
        self.feature_shapes = None, None

    @property
    def ladder(self) -> Ladder:
        return self

    def _ladder(self) -> Ladder:
        return self

    def start(self, n: int) -> None:
        return None

    def rung(self, level: int, state: Any) -> Rung:
        if level:
            return Rung(self.top(), None, None)
        return Rung(FlatMaps(PixelsGivenMaps(self.network, self.decoder(state))), None, None)

    def below(self, level: int, state: Any, z: Tensor) -> Tensor:
        return z

    def base_space(self) -> BaseSpace:
        """That of codes: numbers of a map have no noise of their own here."""
        return Prior.base_space(self)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        return maximise_likelihood(self, codes, draws=draws, seed=seed, progress=progress)
