"""Mixtures of Gaussians: fitted to codes by EM, or learned with the generator."""

import logging
import math
import warnings
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_positive
from flexgen.contracts import Draws, Prior, Report
from flexgen.distributions import Shape, Vectors
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.gaussian import check_codes

log = logging.getLogger(__name__)


class GaussianMixture(Vectors):
    r"""Σₖ wₖ N(locₖ, Aₖ Aₖᵀ) over vectors.

    A draw takes a component k and returns locₖ + Aₖ ε, so gradients reach `loc` and `factor` of
    the components drawn; none reach `weights`.

    Args:
        weights: w, `(K,)`, at least 0, with sum 1; a component of weight 0 is as good as absent.
        loc: means, `(K, d)`.
        factor: A, either standard deviations `(K, d)` or lower Cholesky factors `(K, d, d)`.
    """

    def __init__(self, weights: Tensor, loc: Tensor, factor: Tensor) -> None:
        self.weights, self.loc, self.factor = weights, loc, factor
        super().__init__((), loc.shape[1])

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.loc

    @property
    def variance(self) -> Tensor:
        within = self.factor.square()
        if self.factor.ndim == 3:
            within = within.sum(-1)
        return self.weights @ (within + (self.loc - self.mean).square())

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        n, d = math.prod(sample_shape), self.loc.shape[1]
        k = torch.multinomial(self.weights, n, replacement=True)
        eps = torch.randn(n, d, device=self.loc.device, dtype=self.loc.dtype)
        if self.factor.ndim == 2:
            z = torch.addcmul(self.loc[k], self.factor[k], eps)
        else:
            # Each noise through all K factors: gathering a factor a draw would take n·d² numbers.
            scaled = (self.factor @ eps.mT)[k, :, torch.arange(n, device=k.device)]
            z = self.loc[k] + scaled
        return z.view(*sample_shape, d)

    def log_prob(self, value: Tensor) -> Tensor:
        d = self.loc.shape[1]
        offset = value.reshape(-1, d).mT - self.loc.unsqueeze(-1)  # (K, d, n)
        if self.factor.ndim == 2:
            whitened, scale = offset / self.factor.unsqueeze(-1), self.factor
        else:
            whitened = torch.linalg.solve_triangular(self.factor, offset, upper=False)
            scale = self.factor.diagonal(dim1=-2, dim2=-1)
        constant = self.weights.log() - scale.log().sum(-1) - 0.5 * d * math.log(2 * math.pi)
        log_density = constant.unsqueeze(-1) - 0.5 * whitened.square().sum(1)
        return log_density.logsumexp(0).view(value.shape[:-1])


class Mixture(Prior):
    r"""A mixture of Gaussians Σₖ wₖ N(μₖ, Σₖ), fitted to codes by expectation maximisation.

    Until it is fitted it is N(0, I). Checkpoint keys keep their shapes whatever the fit finds:
    components that a choice by BIC leaves out have weight 0. A fit takes at least K codes, and more
    than d for full covariances; it reports `nll_train`, minus the mean log-density of the codes,
    nats per code, and `components`, how many there are.

    Args:
        latent_dim: d, at least 1.
        num_components: K, at least 1; with `select`, the most that are tried.
        covariance: "full" or "diagonal".
        select: whether to fit 1, …, `num_components` components and keep the number with the
            smallest BIC = −2 log L + p log n, p the number of free parameters.
        num_starts: EM runs from different k-means starts; the most likely is kept.
        max_iter: EM iterations of each.

    Raises:
        ValueError: for a size under 1 or an unknown `covariance`.

    Source: Dempster, Laird, Rubin, 1977, by scikit-learn's `GaussianMixture`; Schwarz, 1978.
    Departure: codes are standardised for the fit, so that scikit-learn's floor under the variances
    (1e-6) is relative to the spread of each coordinate.
    """

    learns = True

    weights: Tensor
    loc: Tensor
    factor: Tensor

    def __init__(
        self, latent_dim: int, num_components: int = 10, *, covariance: str = "full",
        select: bool = False, num_starts: int = 1, max_iter: int = 200,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        counts = {"num_components": num_components, "num_starts": num_starts, "max_iter": max_iter}
        for name, value in counts.items():
            check_integer(name, value, 1, f"set `prior.{name}=1`")
        check_one_of("covariance", covariance, ("full", "diagonal"))
        self.latent_dim, self.num_components = latent_dim, num_components
        self.covariance, self.select = covariance, select
        self.num_starts, self.max_iter = num_starts, max_iter
        one = torch.ones(latent_dim) if covariance == "diagonal" else torch.eye(latent_dim)
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("loc", torch.zeros(num_components, latent_dim))
        self.register_buffer("factor", one.repeat(num_components, *(1,) * one.ndim))

    def forward(self, context: Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(self.weights, self.loc, self.factor)

    @torch.no_grad()
    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        full = self.covariance == "full"
        check_codes(codes, self.latent_dim, at_least=self.latent_dim + 1 if full else 2)
        if len(codes) < self.num_components:
            raise ValueError(
                f"`codes` must number at least num_components {self.num_components}, got "
                f"{len(codes)}; reverse more images, or set `prior.num_components={len(codes)}`"
            )
        z = codes.detach().double().cpu()
        shift, spread = z.mean(0), z.std(0, correction=0)
        spread[spread == 0] = 1.0
        standard = ((z - shift) / spread).numpy()
        counts = range(1 if self.select else self.num_components, self.num_components + 1)
        bar = track(counts, "mixture", transient=True, disable=not progress)
        fits = [self._expectation_maximisation(standard, k, seed) for k in bar]
        best = min(fits, key=lambda fit: fit.bic(standard)) if self.select else fits[0]
        if not best.converged_:
            log.warning(
                "mixture: EM has not converged after %d iterations; raise `prior.max_iter`",
                self.max_iter,
            )
        k, covariances = len(best.weights_), torch.from_numpy(best.covariances_)
        root = torch.linalg.cholesky(covariances) if full else covariances.sqrt()
        factor = spread.unsqueeze(-1) * root if full else spread * root
        self.weights.zero_()[:k].copy_(torch.from_numpy(best.weights_))
        self.loc[:k].copy_(shift + spread * torch.from_numpy(best.means_))
        self.factor[:k].copy_(factor)
        nll = float(spread.log().sum()) - float(best.score(standard))
        return {"nll_train": nll, "components": float(k)}

    def _expectation_maximisation(self, z: Any, num_components: int, seed: int) -> Any:
        """scikit-learn's fitted mixture of standardised codes `(n, d)`."""
        # Imported here: it costs a second that no other command needs.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Estimator

        kind = "full" if self.covariance == "full" else "diag"
        estimator = Estimator(
            num_components, covariance_type=kind, n_init=self.num_starts, max_iter=self.max_iter,
            random_state=seed,
        )  # fmt: skip
        try:
            with warnings.catch_warnings():
                # Said once, in the log, of the fit that is kept.
                warnings.simplefilter("ignore", ConvergenceWarning)
                return estimator.fit(z)
        except ValueError as error:
            raise ValueError(
                f"`num_components` {num_components} is too many for {len(z)} codes, a component "
                "has no covariance; lower `prior.num_components`, or set "
                "`prior.covariance=diagonal`"
            ) from error


class LearnableMixture(Prior):
    r"""A mixture of K Gaussians of equal weight that learns with the generator ("DeLiGAN").

    z = μₖ + σₖ ε with k uniform on {1, …, K} and ε from N(0, I). μ and log σ are parameters: the
    generator's loss reaches them through `rsample`, and the model's generator optimizer steps
    them. Under a refit they are fitted to codes by maximum likelihood instead, see
    :func:`~flexgen.priors.fitting.maximise_likelihood`.

    Args:
        latent_dim: d, at least 1.
        num_components: K, at least 1.
        spread: the means start from U(−spread, spread), above 0.
        scale: σ at the start, above 0.

    Raises:
        ValueError: for a size under 1, or a `spread` or `scale` not above 0.

    Source: Gurumurthy, Sarvadevabhatla, Babu, "DeLiGAN", 2017, section 4. Departures: log σ is the
    parameter, so that σ stays above 0; k is drawn, where the authors' program has as many
    components as codes in a batch and takes each once; their penalty on the generator's loss,
    λ times the mean of (1 − σ)², is not there, so watch σ: a component may shrink to a point.
    """

    learns = True

    weights: Tensor

    def __init__(
        self, latent_dim: int, num_components: int = 50, *, spread: float = 1.0, scale: float = 0.2
    ) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        check_integer("num_components", num_components, 1, "set `prior.num_components=1`")
        check_positive("spread", spread, "set `prior.spread=1`")
        check_positive("scale", scale, "set `prior.scale=1`")
        self.latent_dim, self.num_components = latent_dim, num_components
        means = torch.empty(num_components, latent_dim).uniform_(-spread, spread)
        self.loc = nn.Parameter(means)
        self.log_scale = nn.Parameter(torch.full_like(means, math.log(scale)))
        equal = torch.full((num_components,), 1 / num_components)
        self.register_buffer("weights", equal, persistent=False)

    def forward(self, context: Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(self.weights, self.loc, self.log_scale.exp())

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        return maximise_likelihood(self, codes, draws=draws, seed=seed, progress=progress)
