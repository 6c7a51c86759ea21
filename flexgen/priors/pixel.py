"""Pixel networks as priors over codes that are maps."""

import math
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.contracts import Draws, Prior, Report
from flexgen.distributions import Shape, Vectors
from flexgen.networks.pixels import PixelHead, PixelNetwork
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.gaussian import check_codes

# A fit looks at all held-out codes at once; a network's activations of them would fill the memory.
_AT_ONCE = 1000
# Of the head's last weights: less of them would leave the components of a mixture alike.
_NEAR_NORMAL = 0.1


def near_normal(network: PixelNetwork) -> PixelNetwork:
    """The network with small last weights of its heads, so that numbers start near N(0, 1)."""
    heads = [part for part in network.modules() if isinstance(part, PixelHead)]
    with torch.no_grad():
        for parameter in (p for head in heads for p in head.last.parameters()):
            parameter.mul_(_NEAR_NORMAL)
    return network


class FlatPixels(Vectors):
    r"""z = loc + scale ⊙ u, u the flattened map of a pixel network's distribution.

    A draw has no gradient: it is drawn coordinate by coordinate.

    Args:
        network: the pixel network.
        loc: `(d,)`.
        scale: `(d,)`, above 0.
    """

    has_rsample = False

    def __init__(self, network: PixelNetwork, loc: Tensor, scale: Tensor) -> None:
        self.pixels, self.loc, self.scale = network(), loc, scale
        super().__init__((), len(loc))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        u = self.pixels.sample(sample_shape).flatten(-3)
        return torch.addcmul(self.loc, self.scale, u)

    def log_prob(self, value: Tensor) -> Tensor:
        maps = ((value - self.loc) / self.scale).reshape(-1, *self.pixels.event_shape)
        log_prob = torch.cat([self.pixels.log_prob(part) for part in maps.split(_AT_ONCE)])
        return log_prob.view(value.shape[:-1]) - self.scale.log().sum()


class PixelPrior(Prior):
    r"""p(z) of codes that are maps, one number after the other: $\prod_i p(z_i | z_{<i})$.

    A code stays a vector `(d,)` wherever it goes, and is a map `network.shape` in here: channels,
    rows, columns. Of real numbers, a fit first sets a location and a scale for each number by the
    codes' mean and standard deviation; of whole numbers that are names (`output.num_values`) there
    are none. Numbers start near N(0, 1) of these, from which a fit learns what the
    moments miss. It takes more than one code, and reports what
    :func:`~flexgen.priors.fitting.maximise_likelihood` does.

    A density takes one pass, a draw one step a position, by the network's cache. Draws have no
    gradient, so the prior learns with a VAE or by a refit, and not in an adversarial game.

    Args:
        network: a density of maps, without a context; a code has d = channels · height · width. Of
            an output of real numbers the last weights of its heads are made small.
        steps: optimizer steps of a fit, at most.
        batch_size: codes a step.
        lr: step size of its Adam.
        patience: looks at held-out codes, 40 in all, without an improvement after which it ends.

    Raises:
        ValueError: for a network that takes a context.

    Source: van den Oord, Vinyals & Kavukcuoglu, "Neural discrete representation learning", 2017,
    section 3.3; of continuous codes, Chen et al., "Variational lossy autoencoder", 2017, section
    3.2, whose prior is an inverse autoregressive flow.
    """

    learns = True
    loc: Tensor
    scale: Tensor

    def __init__(
        self, network: PixelNetwork, *, steps: int = 2000, batch_size: int = 200, lr: float = 1e-3,
        patience: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        if network.context_size:
            raise ValueError(
                f"a prior has no context, got a network with {network.context_size} context "
                "features; build it without `num_classes` and `context_features`"
            )
        check_integer("steps", steps, 1, "set `prior.steps=2000`")
        self.network, self.latent_dim = network, math.prod(network.shape)
        self.num_values = network.output.num_values
        self.how: Any = {"steps": steps, "batch_size": batch_size, "lr": lr, "patience": patience}
        if self.num_values is None:
            near_normal(network)
        self.register_buffer("loc", torch.zeros(self.latent_dim))
        self.register_buffer("scale", torch.ones(self.latent_dim))

    def forward(self, context: Tensor | None = None) -> FlatPixels:
        return FlatPixels(self.network, self.loc, self.scale)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=2)
        z = codes.detach().to(self.loc)
        self.network.check_data(z)
        if self.num_values is None:
            self.loc.copy_(z.mean(0))
            # A number in which all codes agree has no scale.
            self.scale.copy_(z.std(0).clamp(min=1e-6))
        return maximise_likelihood(self, z, draws=draws, seed=seed, progress=progress, **self.how)
