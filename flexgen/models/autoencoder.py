"""Autoencoders, and what a VAE shares with those that are trained without a bound."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_not_negative, first_line
from flexgen.contracts import Batch, Likelihood, Posterior, Regulariser, in_context
from flexgen.distributions import drawn
from flexgen.models.latent import Latent, in_parts
from flexgen.training import EMA
from flexgen.training.loop import DataRange, MakeOptimizer, MakeScheduler


class Mean(nn.Module):
    """E[x|z], the picture of a code."""

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        mean: Tensor = in_context(self.likelihood, z, context).mean
        return mean


class Encoding(Latent):
    """A posterior q(z|x), a likelihood p(x|z) and a prior, which one loss trains together.

    Args:
        posterior: data to q(z|x).
        likelihood: codes to p(x|z).
        prior: p(z); its parameters learn as well.
        optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        ema_decay: decay of the weights' average, which then is what samples and is measured; None:
            no average. A prior of a refit is not averaged.
        scheduler: optimizer to a schedule of its step size, stepped once a generator step.
        **loop: see :class:`~flexgen.training.Loop`.

    Raises:
        ValueError: if a size is out of range, or the parts do not fit each other.
    """

    def __init__(
        self,
        posterior: Posterior,
        likelihood: Likelihood,
        prior: nn.Module,
        *,
        optimizer: MakeOptimizer,
        ema_decay: float | None = None,
        scheduler: MakeScheduler | None = None,
        **loop: Any,
    ) -> None:
        super().__init__(prior, optimizers=(optimizer,), schedulers=(scheduler,), **loop)
        self.posterior, self.likelihood = posterior, likelihood
        self.check_prior(self.prior.current)
        self.bind(self.prior)
        self.posterior.bind(prior=self.prior[0])
        self.ema = None if ema_decay is None else EMA(self._averaged(), ema_decay)
        self._exchanged = False

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The training loss of a batch, nats per datum; records it and its terms."""
        raise NotImplementedError

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Everything in eval mode, and the averaged weights in the place of those that learn."""
        with super().evaluating():
            if self.ema is None or self._exchanged:
                yield
                return
            self._exchange()
            try:
                yield
            finally:
                self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        assert self.ema is not None
        for own, average in zip(
            self._averaged().parameters(), self.ema.module.parameters(), strict=True
        ):
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)
        self._exchanged = not self._exchanged

    def _averaged(self) -> nn.ModuleList:
        return nn.ModuleList([self.posterior, self.likelihood, self.prior[0]])

    @property
    def decoder(self) -> nn.Module | None:
        """Codes `(n, latent_dim)` to E[x|z]; None where the likelihood has no mean."""
        return Mean(self.likelihood) if self.likelihood.has_mean else None

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"encoder", "autoencoder"}

    def learners(self) -> tuple[nn.Module, ...]:
        return (nn.ModuleList([self.posterior, self.likelihood, self.prior]),)

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None, batch_size: int = 1000) -> Tensor:
        """A draw from q(z|x) of each datum: together a sample of the aggregate posterior."""
        with self.evaluating():
            parts = in_parts(x, context, batch_size)
            return torch.cat([in_context(self.posterior, *part).sample() for part in parts])

    def _picture(self, z: Tensor, context: Tensor | None) -> Tensor:
        if self.likelihood.has_mean:
            return super()._picture(z, context)
        x: Tensor = in_context(self.likelihood, z, context).sample()
        return x.float()

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        wanted = self.likelihood.data_range
        if wanted not in (None, data_range):
            raise ValueError(
                f"a {type(self.likelihood).__name__} likelihood is of data in {wanted}, got data "
                f"in {data_range}; use data=digits_static or mnist_static, or likelihood=gaussian"
            )
        labels = self.in_turn(2)
        with torch.no_grad():
            try:
                q = in_context(self.posterior, torch.zeros(2, *shape, device=self.device), labels)
                q.rsample()
                p = in_context(self.likelihood, self.prior.draw(2, labels), labels)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"prior, posterior, likelihood and data do not fit: "
                    f"{first_line(error)}; give them one `latent_dim` and one `data.shape`"
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

    def check_data(self, x: Tensor) -> None:
        self.likelihood.check_data(x)

    def update(self, stream: Iterator[Batch], *optimizers: Any) -> None:
        self.descend(stream, optimizers[0], self.loss)
        if self.ema is not None:
            self.ema.update(self._averaged())
        self.finish_step()


class Autoencoder(Encoding):
    r"""AE, WAE and RAE: data are encoded and decoded, and something keeps their codes in order.

    .. math:: L = E\left[−\log p(x|z) + \tfrac{β}{2} \lVert z \rVert^2\right] + R, \quad z = E(x)

    nats per datum, with a regulariser R: none is an autoencoder; a distance of the codes to draws
    from the prior a Wasserstein autoencoder; β above 0 and a decoder that is kept smooth a
    regularised one. No term is a density of codes and no prior is learned with them. What makes a
    generative model of it is a refit, of a mixture say (ex-post density estimation). Where the
    encoder is noisy z is a draw.

    Args:
        posterior: data to codes, posterior=deterministic say.
        likelihood: codes to p(x|z); of a fixed scale, half the squared error.
        prior: what is drawn from before a refit, and what a WAE's codes are compared with.
        regulariser: R; None: 0.
        code_norm: β.
        **how: see :class:`Encoding`.

    Raises:
        ValueError: if a size is out of range, or the parts do not fit each other.

    Source: Tolstikhin et al., "Wasserstein auto-encoders", 2018, eq. 4; Ghosh et al., "From
    variational to deterministic autoencoders", 2020, eq. 11 and section 4 (ex-post density
    estimation).
    """

    def __init__(
        self, posterior: Posterior, likelihood: Likelihood, prior: nn.Module,
        regulariser: Regulariser | None = None, *, code_norm: float = 0.0, **how: Any,
    ) -> None:  # fmt: skip
        if regulariser is not None:
            regulariser.prepare(likelihood)
        super().__init__(posterior, likelihood, prior, **how)
        self.regulariser = regulariser
        self.code_norm = check_not_negative("code_norm", code_norm, "set `model.code_norm=0`")

    def learners(self) -> tuple[nn.Module, ...]:
        (parts,) = super().learners()
        return (parts if self.regulariser is None else nn.ModuleList([parts, self.regulariser]),)

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = drawn(in_context(self.posterior, x, context))
        reconstruction = -in_context(self.likelihood, z, context).log_prob(x).mean()
        loss = reconstruction + 0.5 * self.code_norm * z.square().sum(1).mean()
        if self.regulariser is not None:
            term = self.regulariser(z, self.prior.draw(len(z), context), self.likelihood, context)
            self.record("loss/regulariser", term)
            loss = loss + term
        self.record("loss/generator", loss)
        self.record("loss/reconstruction", reconstruction)
        return loss
