"""One coordinate after the other, each a mixture of normals given those before it."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.contracts import Prior
from flexgen.distributions import Shape, Vectors
from flexgen.flows import Autoregressive, Inverse
from flexgen.flows.autoregressive import degrees_of
from flexgen.flows.conditioner import Conditioner, Pass
from flexgen.outputs import NormalMixture
from flexgen.priors.flow import FlowPrior


class ConditionalMixtures(Vectors):
    """What :class:`MixtureMADE` is now. Draws choose components, so they pass no gradient on."""

    has_rsample = False

    def __init__(self, prior: "MixtureMADE") -> None:
        self.prior = prior
        super().__init__((), prior.latent_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        z = value.reshape(-1, *self._event_shape).mT
        parameters = self.prior.parameters_given(z)
        log_prob: Tensor = self.prior.output.log_prob(parameters, z[:, None]).sum(0)
        return log_prob.view(value.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        output, (dim,) = self.prior.output, self._event_shape
        z = self.prior.net.weight0.new_zeros(dim, math.prod(sample_shape))
        for i in range(dim):
            uniform = torch.rand(z.shape[1], output.num_uniforms(1), device=z.device, dtype=z.dtype)
            given = self.prior.parameters_given(z)[i].mT
            output.draw(given, output.noise(uniform), z[i, :, None])
        return z.mT.reshape(*sample_shape, dim)


class MixtureMADE(Prior):
    r"""$p(z) = \prod_i \sum_k π_k N(z_i; μ_k, σ_k^2)$, (π, μ, σ) of a masked network of $z_{<i}$.

    It starts near N(0, I). A density takes one pass, a draw one a coordinate.

    Args:
        latent_dim: d, at least 2.
        num_components: K.
        hidden_features: width of each hidden layer of the network.
        activation: of the network: "ReLU", "ELU" or "Tanh".

    Raises:
        ValueError: for sizes out of range or an unknown activation.

    Source: Papamakarios, Pavlakou & Murray, "Masked autoregressive flow for density estimation",
    2017 (MADE MoG); Germain et al., "MADE", 2015.
    """

    def __init__(
        self, latent_dim: int, *, num_components: int = 10,
        hidden_features: Sequence[int] = (100, 100), activation: str = "ReLU",
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        self.latent_dim, self.output = latent_dim, NormalMixture(num_components)
        num_outputs = self.output.num_parameters(1)
        degrees = degrees_of(latent_dim, hidden_features, num_outputs, has_context=False)
        self.net = Conditioner(
            1, latent_dim, hidden_features, latent_dim, num_outputs, activation=activation,
            has_gain=False,
            masks=[below[:, None] >= above for above, below in itertools.pairwise(degrees)],
        )  # fmt: skip
        # Side by side, and as wide as leaves the whole a variance of 1: alike, they would stay so.
        loc = torch.linspace(-1, 1, num_components) if num_components > 1 else torch.zeros(1)
        log_scale = 0.5 * (1 - loc.var(correction=0)).log().expand(num_components)
        start = torch.cat([torch.zeros(num_components), loc, log_scale]).repeat(latent_dim)
        self.net.get_parameter(f"bias{self.net.depth - 1}").data += start[:, None]

    def forward(self, context: Tensor | None = None) -> ConditionalMixtures:
        return ConditionalMixtures(self)

    def parameters_given(self, z: Tensor) -> Tensor:
        """Of each coordinate's mixture, `(d, 3K, n)`, given codes as columns, `(d, n)`."""
        run = Pass(self.net, self.net.tensors(None, z.shape[1:]), False, traced=True)
        return run(0, z).view(self.latent_dim, -1, z.shape[1])


class AutoregressiveMixture(FlowPrior):
    """MAF whose base is not N(0, I) but autoregressive too, with mixtures: MAF MoG.

    Densities take one pass, draws one step a coordinate of each layer and one pass a coordinate of
    the base; they have no gradient, so it learns with a VAE or by a refit, and not in a game.

    Args:
        latent_dim: d, at least 2.
        num_layers: how many steps of MAF.
        num_components: of each mixture.
        hidden_features: width of each hidden layer of all networks.
        order: of the coordinates in MAF: "reversed" after each step, "random" or "natural".
        activation: of the networks: "ReLU", "ELU" or "Tanh".
        fit: options of :class:`FlowPrior`.

    Raises:
        ValueError: as :class:`~flexgen.flows.Autoregressive` does.

    Source: Papamakarios, Pavlakou & Murray, 2017, table 1 (MAF MoG).
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_layers: int = 5,
        num_components: int = 10,
        hidden_features: Sequence[int] = (100, 100),
        order: Literal["reversed", "random", "natural"] = "reversed",
        activation: str = "ReLU",
        **fit: Any,
    ) -> None:
        how: Any = {"hidden_features": hidden_features, "activation": activation}
        steps = Autoregressive(latent_dim, num_layers=num_layers, order=order, **how)
        super().__init__(Inverse(steps), **fit)
        self.base = MixtureMADE(latent_dim, num_components=num_components, **how)
