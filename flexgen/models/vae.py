"""VAE, VAE-IAF and LED: one LightningModule for any posterior, likelihood and prior."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexgen.distributions import DiagonalNormal
from flexgen.models.generative import Generative, at_least_one
from flexgen.objectives import importance_weighted_bound, kl_floor

__all__ = ["CODES_AT_ONCE", "VAE"]

CODES_AT_ONCE = 5_000
"""Codes that a likelihood decodes at once: more take memory, and no less time."""


class _Mean(nn.Module):
    """E[x|z], the picture of a code."""

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> Tensor:
        mean: Tensor = self.likelihood(z).mean
        return mean


class VAE(Generative):
    r"""A posterior q(z|x), a likelihood p(x|z) and a prior p(z), trained by a bound on log p(x).

    .. math:: L_K(x) = E\left[\log \frac1K \sum_{k=1}^{K}
        \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}\right], \quad z_k ∼ q(z|x)

    K = 1 is the ELBO. Where posterior and prior are diagonal normals its term
    E[log q(z|x) − log p(z)] is their KL in closed form, else it is estimated from the same draws.
    The training loss is −L_K, in nats per datum, with two changes to its KL term for K = 1: the
    weight rises from 0 to 1 in the first `kl_warmup` generator steps, and is no lower than
    `free_bits` for each dimension.

    Args:
        posterior: data to q(z|x), with `rsample_and_log_prob`.
        likelihood: codes to p(x|z).
        prior: p(z), with a density that is positive everywhere; its parameters learn as well.
        optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        importance_samples: K.
        draws: draws of the bound that are averaged for each datum.
        kl_warmup: generator steps.
        free_bits: λ, nats per dimension of the code, of the KL averaged over the batch; under a
            Monte Carlo estimate the whole code is one group with λ times its dimension.
        gradient_clip: largest norm of the gradient; None: no clipping.
        accumulate: batches whose gradients one optimizer step averages.
        scheduler: optimizer to a schedule of its step size, stepped once a generator step.
        log_every: generator steps between two rows of losses.

    Raises:
        ValueError: if the prior has no density everywhere, or is made of posteriors that have
            none, a size is out of range, or a change of the KL term is asked for K above 1, whose
            bound has no such term.

    Source: Kingma & Welling, 2014, eq. 7 and 10; Burda et al., 2016, eq. 8 (K > 1); Kingma et al.,
    2016, eq. 15 (free bits); Huang et al., "Learnable explicit density", 2017, eq. 5 (a prior that
    learns).
    """

    def __init__(
        self,
        posterior: nn.Module,
        likelihood: nn.Module,
        prior: nn.Module,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        importance_samples: int = 1,
        draws: int = 1,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        log_every: int = 100,
    ) -> None:
        super().__init__(
            prior, gradient_clip=gradient_clip, accumulate=accumulate, log_every=log_every
        )
        at_least_one("importance_samples", importance_samples)
        at_least_one("draws", draws)
        for name, value in (("kl_warmup", kl_warmup), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"`{name}` must be at least 0 and finite, got {value}; set `model.{name}=0`"
                )
            if value and importance_samples > 1:
                raise ValueError(
                    f"`{name}` needs the bound's KL term, which {importance_samples} importance "
                    f"samples do not have; set `model.{name}=0` or `model.importance_samples=1`"
                )
        self.check_prior(self.prior.current)
        self.posterior, self.likelihood = posterior, likelihood
        self.importance_samples, self.draws = importance_samples, draws
        self.kl_warmup, self.free_bits = kl_warmup, free_bits
        self._optimizer, self._scheduler = optimizer, scheduler
        self.attach(self.prior)

    @property
    def sampler(self) -> nn.Module:
        """Codes `(n, latent_dim)` to E[x|z]."""
        return _Mean(self.likelihood)

    @torch.no_grad()
    def encode(self, x: Tensor, batch_size: int = 1000) -> Tensor:
        """A draw from q(z|x) of each datum: together a sample of the aggregate posterior."""
        with self.evaluating():
            return torch.cat([self.posterior(batch).sample() for batch in x.split(batch_size)])

    def attach_posterior(self, prior: nn.Module) -> None:
        if hasattr(prior, "attach_posterior"):
            prior.attach_posterior(self.posterior)  # type: ignore[operator]

    def check_prior(self, prior: nn.Module) -> None:
        check_density(prior)

    def check_fit(
        self, shape: tuple[int, ...], data_range: tuple[float, float] | None = None
    ) -> None:
        wanted = getattr(self.likelihood, "data_range", None)
        if wanted not in (None, data_range):
            raise ValueError(
                f"a {type(self.likelihood).__name__} likelihood is of data in {wanted}, got data "
                f"in {data_range}; use data=digits_static or mnist_static, or likelihood=gaussian"
            )
        with torch.no_grad():
            try:
                q = self.posterior(torch.zeros(2, *shape))
                q.rsample()
                p = self.likelihood(self.prior().sample(torch.Size((2,))))
            except RuntimeError as error:
                raise ValueError(
                    f"prior, posterior, likelihood and data do not fit: "
                    f"{str(error).splitlines()[0]}; give them one `latent_dim` and one `data.shape`"
                ) from error
        if tuple(p.event_shape) != shape:
            raise ValueError(
                f"the likelihood must be of data of shape {shape}, got {tuple(p.event_shape)}; "
                "set `network.decoder.shape=${data.shape}`"
            )
        if tuple(q.event_shape) != (self.latent_dim,):
            raise ValueError(
                f"the posterior's event shape must be the prior's ({self.latent_dim},), got "
                f"{tuple(q.event_shape)}; set one `latent_dim` for both"
            )

    def configure_optimizers(self) -> Any:
        parts = self.posterior, self.likelihood, self.prior
        self._parameters_trained: list[Tensor] = [
            p for m in parts for p in m.parameters() if p.requires_grad
        ]
        optimizer = self._optimizer(self._parameters_trained)
        self._lr_schedulers = [] if self._scheduler is None else [self._scheduler(optimizer)]
        return [optimizer], self._lr_schedulers

    def _update(self, stream: Iterator[Tensor], *optimizers: Any) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        for _ in range(self.accumulate):
            x = next(stream)
            self._backward(self.loss(x))
            self.counters.batches += 1
            self.counters.images_seen += len(x) * self.trainer.world_size
        self._step(optimizer, self._parameters_trained)
        if self._scaler is not None:
            self._scaler.update()
        self.counters.generator_steps += 1
        for scheduler in self._lr_schedulers:
            scheduler.step()

    def loss(self, x: Tensor) -> Tensor:
        """The training loss of a batch, nats per datum; records it and its terms."""
        if self.importance_samples > 1:
            weights = self.log_weights(x, self.importance_samples * self.draws)
            weights = weights.unflatten(0, (self.importance_samples, self.draws))
            loss = -importance_weighted_bound(weights).mean()
            self._record("loss/generator", loss)
            return loss
        reconstruction, kl = self._terms(x)
        step = self.counters.generator_steps
        weight = min(1.0, (step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        loss = reconstruction + weight * kl_floor(kl, self.free_bits * self.latent_dim / len(kl))
        self._record("loss/generator", loss)
        self._record("loss/reconstruction", reconstruction)
        self._record("loss/kl", kl.sum())
        return loss

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """−E log p(x|z) `()`, and KL(q(z|x) ‖ p(z)), of each dimension `(d,)` or of all `(1,)`.

        Both are means over batch and draws.
        """
        q, p = self.posterior(x), self.prior()
        draws = (self.draws,) if self.draws > 1 else ()
        if isinstance(q, DiagonalNormal) and isinstance(p, DiagonalNormal):
            z, kl = q.rsample_and_kl(p, draws)
            kl = kl.mean(0)
        else:
            z, log_q = q.rsample_and_log_prob(draws)
            kl = (log_q - p.log_prob(z)).mean().view(1)
        return -self.likelihood(z).log_prob(x).mean(), kl

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, num_samples: int, at_once: int = CODES_AT_ONCE) -> Tensor:
        """log p(x) by importance sampling, an estimate that is low on average.

        The sum over draws streams, in float64, so memory does not grow with them.

        Args:
            x: data, `(n, *shape)`.
            num_samples: K, draws from q(z|x) for each datum; say it with every value.
            at_once: codes that are decoded at once.

        Returns:
            Nats per datum, `(n,)`, float64.

        Source: Burda et al., 2016, eq. 8, as an estimate with K = 5,000 in their section 5.
        """
        at_least_one("num_samples", num_samples)
        q, p = self.posterior(x), self.prior()
        total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        draws = max(1, at_once // len(x))
        for done in range(0, num_samples, draws):
            weights = self._weights(q, p, x, min(draws, num_samples - done))
            total = torch.logaddexp(total, weights.double().logsumexp(0))
        return total - math.log(num_samples)

    def log_weights(self, x: Tensor, num: int) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) of `num` draws for each datum, `(num, n)`."""
        return self._weights(self.posterior(x), self.prior(), x, num)

    def _weights(self, q: Distribution, p: Distribution, x: Tensor, num: int) -> Tensor:
        z, log_q = q.rsample_and_log_prob((num,))  # type: ignore[attr-defined]
        weights: Tensor = self.likelihood(z).log_prob(x) + p.log_prob(z) - log_q
        return weights


def check_density(prior: nn.Module) -> None:
    """Refuse a prior that a bound cannot be taken under.

    Raises:
        ValueError: if it has no density, or one that is 0 somewhere.
    """
    name = type(prior).__name__
    if not getattr(prior, "has_log_prob", True):
        raise ValueError(
            f"a VAE needs the density of its prior, and a {name} prior has none; "
            "use prior=normal, gaussian, mixture, learnable_mixture, vamp, realnvp, maf or zuko_nsf"
        )
    if getattr(prior, "support", None) is not None:
        raise ValueError(
            f"a VAE's prior must have a density above 0 everywhere, as its posteriors reach "
            f"everywhere, and a {name} prior is 0 outside {prior.support}; use prior=normal"
        )
