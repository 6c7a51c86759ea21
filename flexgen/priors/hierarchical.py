"""A prior of levels, each a normal given the level above."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import BaseSpace, Draws, Prior, Report
from flexgen.distributions import DiagonalNormal, HierarchicalNormal
from flexgen.networks import MLPGenerator
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.fixed import Normal

# As of a posterior: a scale that overflows, or is 0, makes the first steps NaN.
_LOG_SCALE = 10.0


class Hierarchical(Prior):
    r"""p(z) = p(z_L) ∏ p(z_l | z_{l+1}): each level a diagonal normal of a network of that above.

    .. math:: z_L = ε_L, \quad z_l = m_l(z_{l+1}) + s_l(z_{l+1}) ⊙ ε_l, \quad ε ∼ N(0, I)

    A code is the levels side by side, the lowest first, so that all that takes a code takes it
    whole. In the base space of ε each level has its own noise: another ε_L with the same ε_l is
    another z_L, whose z_l is as likely given it.

    It starts near N(0, I). It learns with a VAE, or from codes in a fit, which reports what
    :func:`~flexgen.priors.fitting.maximise_likelihood` does.

    Args:
        latent_dim: d, at least 2.
        levels: the size of each level, the lowest first, at least two, d in all; null: two halves.
        hidden_features: of each level's network, in each hidden layer.

    Raises:
        ValueError: for sizes out of range or that do not add up to d.

    Source: Gulrajani et al., "PixelVAE", 2017, section 3.2; Sønderby et al., "Ladder variational
    autoencoders", 2016, eq. 1 and 2.

    Example:
        >>> prior = Hierarchical(6, levels=[4, 2])
        >>> prior().log_prob(prior().sample((5,))).shape
        torch.Size([5])
    """

    learns = True

    def __init__(
        self, latent_dim: int, levels: Sequence[int] | None = None,
        hidden_features: Sequence[int] = (100,),
    ) -> None:  # fmt: skip
        super().__init__()
        d = check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        self.latent_dim = d
        self.levels = check_sizes("levels", (d - d // 2, d // 2) if levels is None else levels)
        if len(self.levels) < 2 or sum(self.levels) != d:
            raise ValueError(
                f"`levels` must be at least two sizes that add up to `latent_dim` {d}, got "
                f"{list(self.levels)}; set `latent_dim={sum(self.levels)}`, or "
                f"`prior.levels=[{d - d // 2},{d // 2}]`"
            )
        below, above = self.levels[:-1], self.levels[1:]
        networks = [
            MLPGenerator(wide, (2, own), None, hidden_features)
            for own, wide in zip(below, above, strict=True)
        ]
        for network in networks:
            # Not 0, where the hidden layers would get no gradient.
            network.output.weight.data *= 0.01
            nn.init.zeros_(network.output.bias)
        self.networks = nn.ModuleList(networks)
        self.base = Normal(d)
        self.top = Normal(self.levels[-1])

    def forward(self, context: Tensor | None = None) -> HierarchicalNormal:
        below = [functools.partial(_given, network) for network in self.networks]
        return HierarchicalNormal(below, self.top(), self.levels)

    def base_space(self) -> BaseSpace:
        """The space of ε."""
        p = self()
        return BaseSpace(self.base, p.of_noise, p.noise_of)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        return maximise_likelihood(self, codes, draws=draws, seed=seed, progress=progress)


def _given(network: nn.Module, above: Tensor) -> DiagonalNormal:
    """A level's normal given the level above, `(*batch, d)`."""
    out = network(above.reshape(-1, above.shape[-1]))
    # As a posterior's: log-densities in half precision have a grain of half a nat.
    out = out.to(torch.promote_types(out.dtype, torch.float32))
    loc, log_scale = out.view(*above.shape[:-1], *out.shape[1:]).unbind(-2)
    return DiagonalNormal(loc, log_scale.clamp(-_LOG_SCALE, _LOG_SCALE).exp())
