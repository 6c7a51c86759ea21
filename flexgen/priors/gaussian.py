"""The Gaussian that fits codes best: what every other learned prior must beat."""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flexgen.checks import check_integer
from flexgen.contracts import BaseSpace, Draws, Prior, Report
from flexgen.distributions import Shape, covariance
from flexgen.priors.fixed import Normal


class FullNormal(MultivariateNormal):
    """torch's N(μ, L Lᵀ), drawn by one product: theirs takes several times as long on a batch."""

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        loc: Tensor = self.loc
        eps = torch.randn(*sample_shape, *loc.shape, device=loc.device, dtype=loc.dtype)
        z = torch.addmm(loc, eps.view(-1, len(loc)), self._unbroadcasted_scale_tril.mT)
        return z.view(eps.shape)


class Gaussian(Prior):
    r"""N(μ, Σ) with a full covariance, fitted to codes by maximum likelihood.

    μ = 1/n Σᵢ zᵢ and Σ = 1/n Σᵢ (zᵢ − μ)(zᵢ − μ)ᵀ. It is the baseline of every prior that learns
    from codes: one that is no closer to held-out codes than this has learned nothing that two
    moments do not say. Until it is fitted it is N(0, I). A fit takes more than d codes, draws
    nothing, and reports `nll_train`: minus the mean log-density of the codes, nats per code.

    Args:
        latent_dim: d, at least 1.

    Raises:
        ValueError: for a `latent_dim` under 1.

    Departure from the plain estimate: Σ carries 1e-6 of its mean variance on the diagonal, so
    that codes which agree in one direction still have a density.

    Example:
        >>> prior = Gaussian(2)
        >>> _ = prior.fit(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]))
        >>> prior().mean
        tensor([1., 2.])
    """

    learns = True
    loc: Tensor
    factor: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def forward(self, context: Tensor | None = None) -> FullNormal:
        return FullNormal(self.loc, scale_tril=self.factor, validate_args=False)

    def base_space(self) -> BaseSpace:
        """The space of ε in z = μ + L ε, with L the factor of Σ."""
        return BaseSpace(
            Normal(self.latent_dim).to(self.loc),
            lambda eps: torch.addmm(self.loc, eps, self.factor.mT),
            lambda z: whitened(z - self.loc, self.factor),
        )

    @torch.no_grad()
    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=self.latent_dim + 1)
        self.factor.copy_(covariance_factor(covariance(codes, correction=0)))
        self.loc.copy_(codes.detach().double().mean(0))
        return {"nll_train": -float(self().log_prob(codes.to(self.loc)).mean())}


def whitened(z: Tensor, factor: Tensor) -> Tensor:
    """L⁻¹ z of each row, L lower triangular."""
    return torch.linalg.solve_triangular(factor, z.mT, upper=False).mT.contiguous()


def check_codes(codes: Tensor, latent_dim: int, *, at_least: int) -> None:
    """Refuse codes that are not `(n, latent_dim)`, finite, n at least `at_least`."""
    if codes.ndim != 2 or codes.shape[1] != latent_dim:
        raise ValueError(
            f"`codes` must be (n, {latent_dim}), got {tuple(codes.shape)}; "
            "reverse with the generator that this prior belongs to"
        )
    if len(codes) < at_least:
        raise ValueError(
            f"`codes` must number at least {at_least} for this prior in {latent_dim} dimensions, "
            f"got {len(codes)}; reverse more images"
        )
    if not codes.isfinite().all():
        bad = int((~codes.isfinite().all(1)).sum())
        raise ValueError(
            f"`codes` must be finite, got {bad} of {len(codes)} that are not; "
            "drop those whose reversal did not converge"
        )


def covariance_factor(covariance: Tensor) -> Tensor:
    """The lower Cholesky factor of a covariance `(d, d)`, which may be singular but not zero.

    Raises:
        ValueError: if the covariance is zero.
    """
    variance = float(covariance.diagonal().mean())
    if not (variance > 0 and math.isfinite(variance)):
        raise ValueError(
            f"`codes` must differ from each other, got a mean variance of {variance}; "
            "reverse different images, or give the reversal more steps"
        )
    # A direction in which all codes agree has no variance: rounding would make it negative.
    jitter = 1e-6 * variance * torch.eye(len(covariance)).to(covariance)
    return torch.linalg.cholesky(covariance + jitter)
