"""Mixtures of a VAE's own posteriors: VampPrior, and posteriors of training data."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.checks import check_integer
from flexgen.contracts import Draws, Posterior, Prior, Report
from flexgen.distributions import DiagonalNormal, Shape, Vectors
from flexgen.modes import restored
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.gaussian import check_codes

# Numbers in one block of densities: of 20,000 codes under 500 posteriors all would take gigabytes.
_AT_ONCE = 2**22
_DRAWS_A_PASS = 1000
# Of a pixel's range: at its ends a sigmoid would have no slope.
_MARGIN = 0.05


class PosteriorMixture(Vectors):
    r"""Σₖ wₖ q(z|uₖ) over vectors.

    Args:
        posterior: inputs to q(z|u), a batch of distributions with densities.
        inputs: u, `(K, *shape)`.
        log_weights: log w, `(K,)`, of weights with sum 1.
        latent_dim: d.
    """

    def __init__(
        self, posterior: Callable[[Tensor], Distribution], inputs: Tensor, log_weights: Tensor,
        latent_dim: int,
    ) -> None:  # fmt: skip
        self.posterior, self.inputs, self.log_weights = posterior, inputs, log_weights
        super().__init__((), latent_dim)

    @functools.cached_property
    def components(self) -> Distribution:
        return self.posterior(self.inputs)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        k = torch.multinomial(self.log_weights.exp(), math.prod(sample_shape), replacement=True)
        draws = [self.posterior(self.inputs[part]).rsample() for part in k.split(_DRAWS_A_PASS)]
        return torch.cat(draws).view(*sample_shape, *self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        z = value.reshape(-1, *self._event_shape)
        rows = max(1, _AT_ONCE // (len(self.inputs) * z.shape[-1]))
        each = self.components
        parts = [
            (
                each.log_prob_of_each(part)
                if isinstance(each, DiagonalNormal)
                else each.log_prob(part[:, None])
            )
            for part in z.split(rows)
        ]
        parts = [(part + self.log_weights).logsumexp(1) for part in parts]
        return torch.cat(parts).view(value.shape[:-1])


class _OfPosteriors(Prior):
    """A mixture of a model's posteriors q(z|uₖ), which only a model that has them can hand over.

    The posterior is no part of the prior: it is the model's, saved and trained there once. A copy
    of the model has a prior of its own posterior; a copy of the prior alone takes a posterior
    along, as it is then. A fit, under the posterior as it is, reports what
    :func:`~flexgen.priors.fitting.maximise_likelihood` does; where there is nothing to learn, the
    `nll` of all the codes alone.
    """

    learns = True
    needs = frozenset({"posterior", "data"})

    def __init__(
        self, latent_dim: int, *, num_components: int = 500, subset: int | None = None,
        weighted: bool = False, steps: int = 1000, batch_size: int = 200, lr: float = 1e-2,
        patience: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        check_integer("num_components", num_components, 1, "set `prior.num_components=500`")
        if subset is not None:
            check_integer("subset", subset, 1, "set `prior.subset=100`, or null for all")
        self.latent_dim, self.num_components, self.subset = latent_dim, num_components, subset
        self.how: Any = {"steps": steps, "batch_size": batch_size, "lr": lr, "patience": patience}
        if weighted:
            self.logits = nn.Parameter(torch.zeros(num_components))
        else:
            self.register_buffer("logits", torch.zeros(num_components), persistent=False)
        # In a tuple: a module that were an attribute would be saved and trained as a part of this.
        self._posterior: tuple[Posterior] | None = None

    @property
    def spherical(self) -> bool:  # type: ignore[override]
        return self._posterior is not None and self._posterior[0].spherical

    @property
    def inputs(self) -> Tensor:
        """u, `(num_components, *shape)`."""
        return self._inputs(slice(None))

    def start(self, x: Tensor) -> None:
        """Put the inputs at data `(num_components, *shape)`.

        Raises:
            ValueError: for another number of data or another shape.
        """
        if x.shape != (wanted := self.inputs.shape):
            raise ValueError(
                f"a {type(self).__name__} prior starts from data {tuple(wanted)}, got "
                f"{tuple(x.shape)}; set `prior.num_components={len(x)}`"
            )
        with torch.no_grad():
            self._place(x)

    def bind(
        self, *, posterior: Posterior | None = None,
        data: Callable[[int], Tensor] | None = None, **offers: Any,
    ) -> None:  # fmt: skip
        """Be a mixture of this posterior from now on, and put the inputs at data.

        Raises:
            ValueError: for a posterior without a density of codes from outside, or too few data.
        """
        if data is not None:
            self.start(data(self.num_components))
        if posterior is None:
            return
        if not posterior.has_log_prob:
            raise ValueError(
                f"a {type(self).__name__} prior needs the density of any code under the posterior, "
                "and this one knows that of its own draws only; use posterior=diagonal, full or "
                "realnvp, or iaf, whose density takes its slow direction"
            )
        self._posterior = (posterior,)

    def forward(self, context: Tensor | None = None) -> PosteriorMixture:
        weights = self.logits.log_softmax(0)
        k: slice | Tensor = slice(None)
        steps = self.training and torch.is_grad_enabled()  # not a look at held-out codes
        if steps and self.subset is not None and self.subset < self.num_components:
            k = torch.randperm(self.num_components, device=weights.device)[: self.subset]
            weights = weights[k] + math.log(self.num_components / self.subset)
        return PosteriorMixture(
            lambda x: self._attached()(x), self._inputs(k), weights, self.latent_dim
        )

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=2)
        codes = codes.detach().to(self.logits)
        with restored(posterior := self._attached()):
            posterior.eval().requires_grad_(False)
            if next(self.parameters(), None) is None:
                with torch.no_grad():
                    return {"nll": -float(self().log_prob(codes).double().mean())}
            return maximise_likelihood(
                self, codes, draws=draws, seed=seed, progress=progress, **self.how
            )

    def _inputs(self, k: slice | Tensor) -> Tensor:
        """u at the places k."""
        raise NotImplementedError

    def _place(self, x: Tensor) -> None:
        raise NotImplementedError

    def _attached(self) -> Posterior:
        if self._posterior is None:
            raise RuntimeError(
                f"a {type(self).__name__} prior is a mixture of posteriors, and it was given none; "
                "call `prior.bind(posterior=posterior)`"
            )
        return self._posterior[0]


class Vamp(_OfPosteriors):
    r"""p(z) = Σₖ wₖ q(z|uₖ), a mixture of the VAE's posteriors of learned pseudo-inputs uₖ.

    The pseudo-inputs are data of `data_range`, a sigmoid of their parameters. They learn with the
    model. A refit learns them from codes under the posterior as it is then, and freezes them; the
    posterior trains on, and the prior moves with it.

    A density is `num_components` densities of the posterior. Those of an inverse autoregressive
    posterior take its slow direction, one step a coordinate; a planar one has none.

    Args:
        latent_dim: d, at least 1.
        shape: of a datum.
        data_range: of a datum's values; None: not bounded.
        **options: see :class:`MixtureOfPosteriors`.

    Raises:
        ValueError: for a size under 1 or an empty range.

    Source: Tomczak & Welling, "VAE with a VampPrior", 2018, eq. 9, with 500 pseudo-inputs for
    28 × 28 images. Departures: a sigmoid in the place of a clipped identity, whose gradient is 0
    outside the range; pseudo-inputs start at training data, a twentieth of the range inside it.
    """

    def __init__(
        self, latent_dim: int, shape: Sequence[int], data_range: Sequence[float] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(latent_dim, **options)
        if data_range is not None and not data_range[1] > data_range[0]:
            raise ValueError(f"`data_range` must be (low, high), got {tuple(data_range)}")
        self.data_range = None if data_range is None else (*map(float, data_range),)
        self.free = nn.Parameter(torch.randn(self.num_components, *shape))

    def _inputs(self, k: slice | Tensor) -> Tensor:
        free = self.free[k]
        if self.data_range is None:
            return free
        low, high = self.data_range
        return low + (high - low) * free.sigmoid()

    def _place(self, x: Tensor) -> None:
        if self.data_range is not None:
            low, high = self.data_range
            x = torch.logit((x - low) / (high - low), eps=_MARGIN)
        self.free.copy_(x)


class MixtureOfPosteriors(_OfPosteriors):
    r"""p(z) = Σₖ wₖ q(z|xₖ), a mixture of the VAE's posteriors of fixed training data xₖ.

    The aggregate posterior, of `num_components` data. It moves as the posterior trains; with
    `weighted` its weights learn, with the model or from codes in a refit.

    What :class:`Vamp` says of densities holds here.

    Args:
        latent_dim: d, at least 1.
        shape: of a datum.
        num_components: K, at least 1, and at most the training data, of which :meth:`start` is
            given as many, drawn at random; until then the inputs mean nothing.
        subset: components of a training step, drawn at random, of which the prior is the mean then;
            None: all. Faster, and a bound: E log Σ over a subset ≤ log p(z), by Jensen.
        weighted: whether the weights learn; else all are 1/K.
        steps, batch_size, lr, patience: of a fit, see :class:`FlowPrior`. Where K is much of the
            training data, their own posteriors are in the mixture from the start, and held-out
            codes say little of new ones.

    Raises:
        ValueError: for a size under 1.

    Source: Tomczak & Welling, 2018, section 2, and their baseline whose inputs are data.
    """

    data: Tensor

    def __init__(self, latent_dim: int, shape: Sequence[int], **options: Any) -> None:
        super().__init__(latent_dim, **options)
        self.register_buffer("data", torch.zeros(self.num_components, *shape))

    def _inputs(self, k: slice | Tensor) -> Tensor:
        return self.data[k]

    def _place(self, x: Tensor) -> None:
        self.data.copy_(x)
