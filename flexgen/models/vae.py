"""VAE, VAE-IAF and LED: one LightningModule for any posterior, likelihood and prior."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_integer, check_not_negative, check_positive
from flexgen.contracts import Batch, Likelihood, Posterior, Prior, in_context
from flexgen.directional import Directions, UniformSphere
from flexgen.distributions import DiagonalNormal, HierarchicalNormal
from flexgen.models.autoencoder import Encoding
from flexgen.networks.layers import initialise_from_data
from flexgen.objectives import importance_weighted_bound, kl_floor
from flexgen.posteriors import LevelDraws, LevelwiseDistribution
from flexgen.training import copy_from_zero

CODES_AT_ONCE = 5_000
"""Codes that a likelihood decodes at once: more take memory, and no less time."""


class VAE(Encoding):
    r"""A posterior q(z|x), a likelihood p(x|z) and a prior p(z), trained by a bound on log p(x).

    .. math:: L_K(x) = E\left[\log \frac1K \sum_{k=1}^{K}
        \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}\right], \quad z_k ∼ q(z|x)

    K = 1 is the ELBO. Where posterior and prior are diagonal normals its term
    E[log q(z|x) − log p(z)] is their KL in closed form; under a hierarchical prior that of each
    level, Σ_l E KL(q(z_l|x) ‖ p(z_l|z_{l+1})), given the draw of the level above. Else it is
    estimated from the same draws, level by level where there are levels; where the posterior goes
    down the prior's own ladder, the KL of two diagonal normals is in closed form. Where the ladder
    is the decoder's, posterior, prior and likelihood take one pass.
    The training loss is −L_K, in nats per datum, with two changes to its KL term for K = 1: the
    weight rises from 0 to 1 in the first `kl_warmup` generator steps, and is no lower than
    `free_bits` for each dimension.

    Under a prior whose density is not normalised, log p(z) is minus its `cross_entropy`, known up
    to a constant: it trains as well, and no bound on log p(x) is known.

    With `num_classes` all three are of the labels too, p(x|z, y), q(z|x, y) and p(z|y), and the
    bound is on log p(x|y).

    Args:
        posterior: data to q(z|x), with `rsample_and_log_prob`.
        likelihood: codes to p(x|z).
        prior: p(z), with a density that is positive everywhere; its parameters learn as well.
        importance_samples: K.
        draws: draws of the bound that are averaged for each datum.
        kl_warmup: generator steps.
        free_bits: λ, nats per dimension of the code, of the KL averaged over the batch. Where it is
            estimated each level has them, λ times its dimension; without levels the whole code is
            one such group.
        data_init: standard deviation of each output of the weight-normed layers on the first batch,
            by :func:`~flexgen.networks.layers.initialise_from_data`; None: they stay as drawn.
        **how: see :class:`~flexgen.models.autoencoder.Encoding`.

    Raises:
        ValueError: if the prior has no density everywhere, or is made of posteriors that have
            none, a size is out of range, or K is above 1 with a change of the KL term, which that
            bound does not have, or under a prior that is not normalised.

    Source: Kingma & Welling, 2014, eq. 7 and 10; Burda et al., 2016, eq. 8 (K > 1); Kingma et al.,
    2016, eq. 15 (free bits); Huang et al., "Learnable explicit density", 2017, eq. 5 (a prior that
    learns).
    """

    def __init__(
        self,
        posterior: Posterior,
        likelihood: Likelihood,
        prior: nn.Module,
        *,
        importance_samples: int = 1,
        draws: int = 1,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        data_init: float | None = None,
        **how: Any,
    ) -> None:
        for name, count in (("importance_samples", importance_samples), ("draws", draws)):
            check_integer(name, count, 1, f"set `model.{name}=1`")
        for name, value in (("kl_warmup", kl_warmup), ("free_bits", free_bits)):
            check_not_negative(name, value, f"set `model.{name}=0`")
            if value and importance_samples > 1:
                raise ValueError(
                    f"`{name}` needs the bound's KL term, which {importance_samples} importance "
                    f"samples do not have; set `model.{name}=0` or `model.importance_samples=1`"
                )
        if posterior.is_point:
            raise ValueError(
                f"a bound on log p(x) needs the density of q(z|x), and a "
                f"{type(posterior).__name__} posterior has none; use posterior=diagonal, or "
                "model=ae, wae or bigan"
            )
        if data_init is not None:
            check_positive("data_init", data_init, "null leaves the weights as drawn")
        self.importance_samples, self.draws = importance_samples, draws
        self.kl_warmup, self.free_bits = kl_warmup, free_bits
        self.data_init = data_init
        super().__init__(posterior, likelihood, prior, **how)

    @property
    def capabilities(self) -> frozenset[str]:
        believed = {"log_likelihood"} if self.prior.normalised else set()
        return super().capabilities | {"posterior", "likelihood"} | believed

    def offers(self) -> dict[str, Any]:
        ladder = self.likelihood.ladder
        own = {"posterior": self.posterior} | ({} if ladder is None else {"ladder": ladder})
        return super().offers() | own

    def bind(self, prior: nn.Module) -> Prior:
        bound = super().bind(prior)
        if bound.spherical != self.posterior.spherical:
            raise ValueError(
                "codes of length 1 have a density against the sphere's area, on both sides of a "
                "VAE's bound or on none; use posterior=power_spherical or von_mises_fisher with "
                "prior=hyperspherical, spherical_mixture or vamp, or posterior=diagonal with a "
                "VAE's other priors, as prior=normal"
            )
        return bound

    def check_prior(self, prior: Prior) -> None:
        name = type(prior).__name__
        if not prior.has_log_prob and prior.normalised:
            raise ValueError(
                f"a VAE needs the density of its prior, and a {name} prior has none; use "
                "prior=normal, gaussian, mixture, learnable_mixture, vamp, hierarchical, "
                "realnvp, maf or zuko_nsf"
            )
        if prior.support is not None:
            raise ValueError(
                f"a VAE's prior must have a density above 0 everywhere, as its posteriors reach "
                f"everywhere, and a {name} prior is 0 outside {prior.support}; use prior=normal"
            )
        if not prior.normalised and self.importance_samples > 1:
            raise ValueError(
                f"{self.importance_samples} importance samples weigh draws by a normalised "
                f"density, and that of a {name} prior is not; set `model.importance_samples=1`"
            )

    def next_batch(self, stream: Iterator[Batch]) -> Batch:
        batch = super().next_batch(stream)
        if self.data_init is not None and self.counters.batches == 1:
            self._initialise(batch, self.data_init)
        return batch

    def _initialise(self, batch: Batch, scale: float) -> None:
        x, context = batch
        found = initialise_from_data(self, lambda: self.log_weights(x, 1, context), scale)
        if found and self.trainer.world_size > 1:
            copy_from_zero([parameter.detach().view(-1) for parameter in found])

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The training loss of a batch, nats per datum; records it and its terms."""
        if self.importance_samples > 1:
            weights = self.log_weights(x, self.importance_samples * self.draws, context)
            weights = weights.unflatten(0, (self.importance_samples, self.draws))
            loss = -importance_weighted_bound(weights).mean()
            self.record("loss/generator", loss)
            return loss
        reconstruction, kl, sizes = self._terms(x, context)
        step = self.counters.generator_steps
        weight = min(1.0, (step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        floored = kl_floor(kl, self.free_bits * sizes) if self.free_bits else kl.sum()
        loss = reconstruction + weight * floored
        self.record("loss/generator", loss)
        self.record("loss/reconstruction", reconstruction)
        self.record("loss/kl" if self.prior.normalised else "loss/kl_unnormalised", kl.sum())
        return loss

    def _terms(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | int]:
        """Means of −log p(x|z) `()` and KL(q(z|x) ‖ p(z)), by group `(groups,)`, and their sizes.

        A group is a dimension, a level, or the whole code.
        """
        q, p = in_context(self.posterior, x, context), self.prior(context)
        draws = (self.draws,) if self.draws > 1 else ()
        sizes: Tensor | int = 1
        if isinstance(q, LevelwiseDistribution) and isinstance(p, HierarchicalNormal):
            found, likelihood = self._pass(q, context, draws)
            kl = found.kl
            if kl is None or p.ladder is not q.ladder:
                kl = found.log_q - p.log_prob_of_levels(found.z)
            kl, sizes = kl.flatten(0, -2).mean(0), torch.tensor(q.levels, device=x.device)
            return -likelihood.log_prob(x).mean(), kl, sizes
        if isinstance(q, DiagonalNormal) and isinstance(p, DiagonalNormal):
            z, kl = q.rsample_and_kl(p, draws)
            kl = kl.mean(0)
        elif isinstance(q, DiagonalNormal) and isinstance(p, HierarchicalNormal):
            z = q.rsample(draws)
            if not p.is_normal:
                sizes = torch.tensor(p.levels, device=x.device)
            kl = q.kl(p.given(z)) if p.is_normal else p.estimated_kl(q, z)
            kl = kl.flatten(0, -2).mean(0)
        elif isinstance(q, Directions) and isinstance(p, UniformSphere):
            z, kl, sizes = q.rsample(draws), q.kl_to_uniform().mean().view(1), self.latent_dim
        else:
            z, log_q = q.rsample_and_log_prob(draws)
            kl = (log_q + self.prior.cross_entropy(z, context)).mean().view(1)
            sizes = self.latent_dim
        return -in_context(self.likelihood, z, context).log_prob(x).mean(), kl, sizes

    def _pass(
        self, q: LevelwiseDistribution, context: Tensor | None, shape: tuple[int, ...]
    ) -> tuple[LevelDraws, Distribution]:
        """Draws of levels, and p(x|z) of each: in one pass if the decoder drew them."""
        found, decoder = q.draw(shape), self.likelihood.ladder
        if decoder is None or decoder is not q.ladder:
            return found, in_context(self.likelihood, found.z, context)
        out = decoder.output(found.state)
        event_dims = out.ndim - 1
        return found, self.likelihood.of(out.view(*found.z.shape[:-1], *out.shape[1:]), event_dims)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int, context: Tensor | None = None,
        at_once: int = CODES_AT_ONCE, prior: Prior | None = None,
    ) -> Tensor:  # fmt: skip
        """log p(x) by importance sampling, nats per datum `(n,)` in float64; low on average.

        The sum over draws streams, so memory does not grow with them.

        Args:
            x: data, `(n, *shape)`.
            num_samples: K, draws from q(z|x) for each datum; say it with every value.
            context: of each, where the model is conditional: then it is log p(x|y).
            at_once: codes that are decoded at once.
            prior: p(z), if another than the model's own.

        Raises:
            ValueError: under a prior whose density is not normalised.

        Source: Burda et al., 2016, eq. 8, as an estimate with K = 5,000 in their section 5.
        """
        check_integer("num_samples", num_samples)
        prior = self.prior.current if prior is None else prior
        if not prior.normalised:
            raise ValueError(
                f"a likelihood needs a normalised density of codes, which a "
                f"{type(prior).__name__} prior does not have; fit one that has by "
                "`flexgen refit`, with prior=realnvp say"
            )
        q, p = in_context(self.posterior, x, context), prior(context)
        total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        draws = max(1, at_once // len(x))
        for done in range(0, num_samples, draws):
            weights = self._weights(q, p, x, context, min(draws, num_samples - done))
            total = torch.logaddexp(total, weights.double().logsumexp(0))
        return total - math.log(num_samples)

    def log_weights(self, x: Tensor, num: int, context: Tensor | None = None) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) of `num` draws for each datum, `(num, n)`."""
        q, p = in_context(self.posterior, x, context), self.prior(context)
        return self._weights(q, p, x, context, num)

    def _weights(
        self, q: Distribution, p: Distribution, x: Tensor, context: Tensor | None, num: int
    ) -> Tensor:
        if isinstance(q, LevelwiseDistribution):
            found, likelihood = self._pass(q, context, (num,))
            z, log_q, log_p = found.z, found.log_q.sum(-1), found.log_p
            shared = isinstance(p, HierarchicalNormal) and p.ladder is q.ladder
            log_p = log_p.sum(-1) if shared and log_p is not None else p.log_prob(z)
        else:
            z, log_q = q.rsample_and_log_prob((num,))  # type: ignore[attr-defined]
            likelihood, log_p = in_context(self.likelihood, z, context), p.log_prob(z)
        weights: Tensor = likelihood.log_prob(x) + log_p - log_q
        return weights
