"""VQ-VAE: codes that are maps of names, a prior over them, and a likelihood of what they name."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_not_negative, first_line
from flexgen.contracts import Batch, Encoder, Likelihood, Prior, in_context
from flexgen.models.latent import Latent, in_parts
from flexgen.networks.codebook import Codebook, perplexity
from flexgen.training.loop import DataRange, MakeOptimizer, MakeScheduler


class NamedLikelihood(Likelihood):
    """p(x|z) of codes that are names: a likelihood of the vectors that they name, side by side.

    Args:
        of_vectors: codes `(*batch, D · d)`, the first number of all d vectors first, to a
            distribution over data.
        codebook: the vectors.
    """

    def __init__(self, of_vectors: Likelihood, codebook: Codebook) -> None:
        super().__init__()
        self.of_vectors, self.codebook = of_vectors, codebook
        self.has_mean, self.has_mass = of_vectors.has_mean, of_vectors.has_mass
        self.data_range = of_vectors.data_range

    def named(self, z: Tensor) -> Tensor:
        """The vectors `(*batch, D · d)` of indices `(*batch, d)`."""
        vectors: Tensor = self.codebook(z)
        return vectors.transpose(-1, -2).flatten(-2)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        p: Distribution = in_context(self.of_vectors, self.named(z), context)
        return p

    def check_data(self, x: Tensor) -> None:
        self.of_vectors.check_data(x)


class VQVAE(Latent):
    r"""An encoder whose every position names the nearest vector of a codebook, and a decoder.

    .. math:: L = −\log p(x|e_{z(x)}) − \log p(z(x)) + β \sum_i \lVert h_i(x) −
        \mathrm{sg}(e_{z_i(x)}) \rVert^2, \quad z_i(x) = \arg\min_k \lVert h_i(x) − e_k \rVert

    nats per datum; the gradient of the first term goes from the vectors to the encoder's h as it is
    (straight through), the codebook follows h by moving averages. The first two terms are a bound
    on −log p(x) of the model p(z) p(x|z), the second is the length of the code. Under the uniform
    prior that is the same whatever the code is; a prior with trainable parameters learns from the
    codes, and moves none of them.

    A code at the level of every command is the vector `(latent_dim,)` of its indices, as whole
    numbers: what a prior draws and has a probability of, what `encode` gives and `decode` takes. No
    gradient goes through it, so nothing is reversed: a code is the encoder's. Distances between
    codes are taken of the vectors that they name, flattened (:meth:`points`).

    Args:
        encoder: data to features `(n, D · latent_dim)`, the first number of all positions first.
        codebook: the vectors, of D numbers each.
        likelihood: p(x|e) of such features.
        prior: p(z), over as many names as there are vectors; it becomes stage 0 of a
            :class:`~flexgen.priors.Staged`.
        optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        commitment: β.
        scheduler: optimizer to a schedule of its step size, stepped once a generator step.
        **loop: see :class:`~flexgen.training.Loop`.

    Raises:
        ValueError: if a size is out of range, or the prior is over something else.

    Source: van den Oord, Vinyals & Kavukcuoglu, "Neural discrete representation learning", 2017,
    eq. 1 to 3 and appendix A.1. Departure: the terms are sums over a datum, not means, so that the
    reconstruction is a likelihood.
    """

    num_values: int

    def __init__(
        self, encoder: Encoder, codebook: Codebook, likelihood: Likelihood, prior: nn.Module, *,
        optimizer: MakeOptimizer, commitment: float = 0.25, scheduler: MakeScheduler | None = None,
        **loop: Any,
    ) -> None:  # fmt: skip
        super().__init__(prior, optimizers=(optimizer,), schedulers=(scheduler,), **loop)
        self.commitment = check_not_negative("commitment", commitment, "set `model.commitment=1`")
        self.encoder, self.num_values = encoder, codebook.num_vectors
        self.likelihood = NamedLikelihood(likelihood, codebook)
        self.bind(self.prior)

    @property
    def codebook(self) -> Codebook:
        """The vectors."""
        return self.likelihood.codebook

    @property
    def decoder(self) -> None:
        """None: no gradient goes through a name."""
        return None

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"encoder", "autoencoder", "likelihood", "codebook"}

    def learners(self) -> tuple[nn.Module, ...]:
        assert isinstance(self.encoder, nn.Module)
        return (nn.ModuleList([self.encoder, self.likelihood, self.prior]),)

    def points(self, z: Tensor) -> Tensor:
        return self.likelihood.named(z)

    def _features(self, x: Tensor, context: Tensor | None) -> Tensor:
        """h of each datum and position, `(n, latent_dim, D)`."""
        h: Tensor = in_context(self.encoder, x, context)
        return h.unflatten(1, (self.codebook.dim, self.latent_dim)).transpose(1, 2)

    def _names(self, h: Tensor) -> Tensor:
        """z of features, `(n, latent_dim)` long."""
        return self.codebook.nearest(h.flatten(0, 1)).view(h.shape[:2])

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None, batch_size: int = 1000) -> Tensor:
        """The code of each datum, `(n, latent_dim)`, whole numbers: no draw."""
        with self.evaluating():
            found = [
                self._names(self._features(*part)) for part in in_parts(x, context, batch_size)
            ]
        return torch.cat(found).to(self.codebook.vectors.dtype)

    def _picture(self, z: Tensor, context: Tensor | None) -> Tensor:
        p = in_context(self.likelihood, z, context)
        x: Tensor = p.mean if self.likelihood.has_mean else p.sample()
        return x.float()

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        wanted, labels = self.likelihood.data_range, self.in_turn(2)
        if wanted not in (None, data_range):
            raise ValueError(
                f"a {type(self.likelihood.of_vectors).__name__} likelihood is of data in {wanted}, "
                f"got data in {data_range}; use data=digits_static or mnist_static, or "
                "likelihood=discretised_logistic"
            )
        with torch.no_grad():
            try:
                h = in_context(self.encoder, torch.zeros(2, *shape, device=self.device), labels)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the encoder and data of shape {shape} do not fit: {first_line(error)}; give "
                    "them one `data.shape`"
                ) from error
            if h.shape[1] != (wanted_size := self.codebook.dim * self.latent_dim):
                positions, rest = divmod(h.shape[1], self.codebook.dim)
                remedy = "set `model.codebook.dim`" if rest else f"set `latent_dim={positions}`"
                raise ValueError(
                    f"the encoder must give {self.codebook.dim} numbers at each of `latent_dim` "
                    f"{self.latent_dim} positions, {wanted_size}, got {h.shape[1]}; {remedy}"
                )
            try:
                p = in_context(self.likelihood, self.prior.draw(2, labels), labels)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"prior, codebook and likelihood do not fit: {first_line(error)}; give "
                    "encoder and decoder the same maps"
                ) from error
        if tuple(p.event_shape) != shape:
            raise ValueError(
                f"the likelihood must be of data of shape {shape}, got {tuple(p.event_shape)}; "
                "set `network.decoder.shape=${data.shape}`"
            )

    def check_data(self, x: Tensor) -> None:
        self.likelihood.check_data(x)

    def update(self, stream: Iterator[Batch], *optimizers: Any) -> None:
        self.descend(stream, optimizers[0], self.loss)
        self.finish_step()

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The training loss of a batch, nats per datum; records it and its terms.

        In train mode the codebook follows.
        """
        h = self._features(x, context)
        z = self._names(h)
        e = self.codebook(z)
        # The value of e, the gradient of h.
        through = (h + (e - h).detach()).transpose(1, 2).flatten(1)
        p = in_context(self.likelihood.of_vectors, through, context)
        reconstruction = -p.log_prob(x).mean()
        length = self.prior.cross_entropy(z.to(e.dtype), context).mean()
        apart = (h - e).square().sum((1, 2)).mean()
        loss = reconstruction + length + self.commitment * apart
        if self.training:
            self.codebook.update(h.flatten(0, 1), z.flatten())
        self.record("loss/generator", loss)
        self.record("loss/reconstruction", reconstruction)
        self.record("loss/kl", length)
        self.record("loss/commitment", apart)
        spread, used = perplexity(z, self.num_values)
        self.record("codebook/batch_perplexity", spread)
        self.record("codebook/batch_used", used)
        return loss

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int = 1, context: Tensor | None = None,
        prior: Prior | None = None,
    ) -> Tensor:  # fmt: skip
        """log p(x|z) + log p(z) at the code z of each datum, nats `(n,)` float64: below log p(x).

        Args:
            x: data, `(n, *shape)`.
            num_samples: has no say: all draws of a code are one.
            context: of each, where the model is conditional.
            prior: p(z), if another than the model's own.
        """
        of_data, of_codes = self.terms(x, context, prior)
        return of_data + of_codes

    @torch.no_grad()
    def terms(
        self, x: Tensor, context: Tensor | None = None, prior: Prior | None = None,
        batch_size: int = 500,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """log p(x|z) and log p(z) at the code z of each datum, nats `(n,)` float64 each."""
        prior = self.prior.current if prior is None else prior
        found = []
        with self.evaluating():
            for rows, labels in in_parts(x, context, batch_size):
                z = self.encode(rows, labels)
                p = in_context(self.likelihood, z, labels)
                found.append((p.log_prob(rows).double(), -prior.cross_entropy(z, labels).double()))
        of_data, of_codes = zip(*found, strict=True)
        return torch.cat(of_data), torch.cat(of_codes)
