"""A mixture of von Mises-Fisher distributions, fitted to codes of length 1 by EM."""

import logging

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flexgen.checks import check_integer
from flexgen.contracts import Draws, Prior, Report
from flexgen.directional import DirectionMixture, VonMisesFisher
from flexgen.priors.gaussian import check_codes

log = logging.getLogger(__name__)

_OFF_THE_SPHERE = 1e-3
_CONVERGED = 1e-4  # nats per code of an iteration
_TIGHTEST = 1e4  # κ: one code alone would have no end
_EMPTY = 1e-9


class SphericalMixture(Prior):
    r"""Σₖ wₖ vMF(μₖ, κₖ) over codes of length 1, fitted to codes by expectation maximisation.

    .. math:: μ_k = r_k / |r_k|, \quad I_{d/2}(κ_k) / I_{d/2-1}(κ_k) = |r_k| / n_k,
        \quad r_k = \sum_i p(k|z_i)\, z_i, \quad n_k = \sum_i p(k|z_i), \quad w_k = n_k / n

    Until it is fitted all directions are alike. A fit takes at least K codes, as those of a VAE
    with `posterior=von_mises_fisher` or `power_spherical`, and starts from the parts of k-means; it
    reports `nll_train`, minus the mean log-density of the codes against the sphere's area, nats per
    code.

    Args:
        latent_dim: d, at least 2.
        num_components: K, at least 1.
        max_iter: EM iterations, at most; it ends when one gains less than 1e-4 nats per code.

    Raises:
        ValueError: for a size out of range; in a fit, for too few codes or of another length.

    Source: Banerjee et al., "Clustering on the unit hypersphere using von Mises-Fisher
    distributions", 2005, their soft assignments; Sra, "A short note on parameter approximation for
    von Mises-Fisher distributions", 2012 (κ by their start and two Newton steps). Departure: κ is
    10,000 at most.
    """

    learns = True
    spherical = True

    weights: Tensor
    loc: Tensor
    concentration: Tensor

    def __init__(self, latent_dim: int, num_components: int = 10, *, max_iter: int = 200) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        self.num_components = check_integer("num_components", num_components)
        self.max_iter = check_integer("max_iter", max_iter)
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("loc", torch.eye(1, latent_dim).repeat(num_components, 1))
        self.register_buffer("concentration", torch.zeros(num_components))

    def forward(self, context: Tensor | None = None) -> DirectionMixture:
        return DirectionMixture(self.weights, VonMisesFisher(self.loc, self.concentration))

    @torch.no_grad()
    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        from sklearn.cluster import KMeans  # costs a second that no other command needs

        check_codes(codes, self.latent_dim, at_least=self.num_components)
        z = codes.detach().to(self.loc)
        if (off := float((z.norm(dim=1) - 1).abs().max())) > _OFF_THE_SPHERE:
            raise ValueError(
                f"codes must have length 1, got lengths up to {off:.3g} away from it; use "
                "prior=mixture, or train with posterior=von_mises_fisher prior=hyperspherical"
            )
        parts = KMeans(self.num_components, n_init=1, random_state=seed).fit_predict(z.cpu())
        shares = torch.eye(self.num_components)[torch.from_numpy(parts).long()].to(z)
        before = -torch.inf
        for _ in range(self.max_iter):
            self._maximise(z, shares)
            joint = self().joint(z)
            of_code = joint.logsumexp(1)
            shares = (joint - of_code[:, None]).exp()
            found = float(of_code.double().mean())
            if found - before < _CONVERGED:
                break
            before = found
        else:
            log.warning(
                "spherical_mixture: EM has not converged after %d iterations; raise "
                "`prior.max_iter`", self.max_iter,
            )  # fmt: skip
        return {"nll_train": -found}

    def _maximise(self, z: Tensor, shares: Tensor) -> None:
        """The parameters that `shares`, p(k|z) of each code `(n, K)`, make most likely."""
        total, count = shares.mT @ z, shares.sum(0)
        height = (total.norm(dim=1) / count.clamp_min(_EMPTY)).clamp_max(1)
        square, d = height.square(), self.latent_dim
        kappa = (height * (d - square) / (1 - square)).clamp(_EMPTY, _TIGHTEST)
        self.weights.copy_(count / count.sum())
        self.loc.copy_(normalize(total, dim=1))
        for _ in range(2):
            mean = VonMisesFisher(self.loc, kappa).mean_height
            slope = 1 - mean.square() - (d - 1) * mean / kappa
            kappa = (kappa - (mean - height) / slope).clamp(_EMPTY, _TIGHTEST)
        self.concentration.copy_(kappa)
