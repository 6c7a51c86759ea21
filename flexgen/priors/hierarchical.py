"""Priors of levels, each a normal given those above: by networks of their own, or a decoder's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import BaseSpace, Decodes, Draws, Ladder, Prior, Report, Rung
from flexgen.distributions import HierarchicalNormal, normal_of
from flexgen.networks.given import GivenNormal
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.fixed import Normal
from flexgen.priors.staged import as_prior


class OfLevels(Prior):
    """A prior with a ladder."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.base = Normal(latent_dim)

    def forward(self, context: Tensor | None = None) -> HierarchicalNormal:
        return HierarchicalNormal(self._ladder())

    def base_space(self) -> BaseSpace:
        """The space of ε."""
        p = self()
        return BaseSpace(self.base, p.of_noise, p.noise_of)

    def _ladder(self) -> Ladder:
        raise NotImplementedError


class Hierarchical(OfLevels, Ladder):
    r"""p(z) = p(z_L) ∏ p(z_l | z_{l+1}): each level a diagonal normal of a network of that above.

    .. math:: z_L = ε_L, \quad z_l = m_l(z_{l+1}) + s_l(z_{l+1}) ⊙ ε_l, \quad ε ∼ N(0, I)

    A code is the levels side by side, the lowest first, so that all that takes a code takes it
    whole. In the base space of ε each level has its own noise: another ε_L with the same ε_l is
    another z_L, whose z_l is as likely given it.

    It starts near N(0, I), or with less noise below the highest level. It learns with a VAE, in an
    adversarial game, or from codes in a fit, which reports what
    :func:`~flexgen.priors.fitting.maximise_likelihood` does.

    Args:
        latent_dim: d, at least 2.
        levels: the size of each level, the lowest first, at least two, d in all; null: two halves.
        hidden_features: of each level's network, in each hidden layer.
        top: p(z_L), a prior with a density over the highest level; null: N(0, I).
        log_scale: where log s starts; below 0 a level is mostly what the one above says.
        output_scale: by which the weights of m and s start smaller than torch draws them; at 0.01
            no level says much of the one below. Not 0, where hidden layers would get no gradient.
        constant_scale: whether each s is a parameter, the same whatever the level above is.

    Raises:
        ValueError: for sizes out of range or that do not add up to d, or a top of another size or
            without a density.

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
        hidden_features: Sequence[int] = (100,), top: nn.Module | None = None, *,
        log_scale: float = 0.0, output_scale: float = 0.01, constant_scale: bool = False,
    ) -> None:  # fmt: skip
        d = check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        super().__init__(d)
        self.levels = check_sizes("levels", (d - d // 2, d // 2) if levels is None else levels)
        if len(self.levels) < 2 or sum(self.levels) != d:
            raise ValueError(
                f"`levels` must be at least two sizes that add up to `latent_dim` {d}, got "
                f"{list(self.levels)}; set `latent_dim={sum(self.levels)}`, or "
                f"`prior.levels=[{d - d // 2},{d // 2}]`"
            )
        below, above = self.levels[:-1], self.levels[1:]
        self.networks = nn.ModuleList(
            GivenNormal(
                wide, own, hidden_features, log_scale=log_scale, constant_scale=constant_scale,
                output_scale=output_scale,
            )
            for own, wide in zip(below, above, strict=True)
        )  # fmt: skip
        self.top = Normal(self.levels[-1]) if top is None else as_prior(top)
        if self.top.latent_dim != self.levels[-1] or not self.top.has_log_prob:
            raise ValueError(
                f"`top` must be a prior with a density over the highest level's {self.levels[-1]} "
                f"numbers, got a {type(self.top).__name__} over {self.top.latent_dim}; use "
                "prior@prior.top=realnvp with its size, or null"
            )
        self.level_shapes = tuple((size,) for size in self.levels)
        self.feature_shapes = (*((2 * size,) for size in below), None)

    @property
    def ladder(self) -> Ladder:
        return self

    def start(self, n: int) -> None:
        return None

    def rung(self, level: int, state: Any) -> Rung:
        if level == len(self.levels) - 1:
            return Rung(self.top(), None, None)
        network = self.networks[level]
        assert isinstance(network, GivenNormal)
        out = network.outputs(state)
        return Rung(normal_of(*out), torch.cat(out, 1), None)

    def below(self, level: int, state: Any, z: Tensor) -> Tensor:
        return z

    def base_space(self) -> BaseSpace:
        """The space of ε, where the highest level has one; else that of codes."""
        space, p = self.top.base_space(), self()
        if space.prior.normal_scale != 1 or space.prior.latent_dim != self.levels[-1]:
            return Prior.base_space(self)
        to_top, from_top = space.to_code, space.from_code
        return BaseSpace(
            self.base,
            lambda eps: p.of_noise(eps, to_top),
            None if from_top is None else lambda z: p.noise_of(z, from_top),
            space.to_code_cost,
        )

    def _ladder(self) -> Ladder:
        return self

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        return maximise_likelihood(self, codes, draws=draws, seed=seed, progress=progress)


class TopDown(OfLevels):
    r"""$p(z) = \prod_l p(z_l | z_{>l})$ by the decoder that makes the data too, a VAE's own.

    The networks are the decoder's, saved and trained there: prior, likelihood and a
    :class:`~flexgen.posteriors.Bidirectional` posterior share them, and one pass serves all three.
    It has nothing of its own to learn, so a refit takes another prior.

    Args:
        latent_dim: d, the decoder's.

    Raises:
        ValueError: when it is bound, if the decoder's codes are of another size.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    figure 3 and appendix (ResNet VAE); Sønderby et al., "Ladder variational autoencoders", 2016.
    """

    needs = frozenset({"ladder"})

    def __init__(self, latent_dim: int) -> None:
        super().__init__(check_integer("latent_dim", latent_dim))
        # In a tuple: a module that were an attribute would be saved and trained as a part of this.
        self._decoder: tuple[Decodes] | None = None

    @property
    def ladder(self) -> Ladder | None:
        return None if self._decoder is None else self._decoder[0]

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.ladder is None else self.ladder.levels

    def bind(self, *, ladder: Decodes | None = None, **offers: Any) -> None:
        if ladder is None:
            return
        if (size := sum(ladder.levels)) != self.latent_dim:
            raise ValueError(
                f"`latent_dim` must be the {size} numbers of the decoder's levels "
                f"{list(ladder.levels)}, got {self.latent_dim}; set `latent_dim={size}`"
            )
        self._decoder = (ladder,)

    def _ladder(self) -> Ladder:
        if self._decoder is None:
            raise RuntimeError(
                "a TopDown prior is that of a decoder, and it was given none; call "
                "`prior.bind(ladder=decoder)`"
            )
        return self._decoder[0]
