"""The codes themselves as a prior, smoothed by a Gaussian kernel or not at all."""

import logging
import math
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.contracts import Cost, Draws, Prior, Report
from flexgen.distributions import Shape, Vectors, covariance
from flexgen.priors.gaussian import check_codes, covariance_factor, whitened

log = logging.getLogger(__name__)

_ROWS = 256
_ROWS_SCORED = 1024


class KernelDensityDistribution(Vectors):
    r"""1/n Σᵢ N(zᵢ, A Aᵀ) for n codes zᵢ; with no A, the empirical distribution of the codes.

    Args:
        codes: `(n, d)`.
        factor: A, the lower Cholesky factor of the kernel's covariance, `(d, d)`; None: draws are
            codes, and there is no density.
    """

    def __init__(self, codes: Tensor, factor: Tensor | None) -> None:
        self.codes, self.factor = codes, factor
        super().__init__((), codes.shape[1])

    @property
    def mean(self) -> Tensor:
        return self.codes.mean(0)

    @property
    def variance(self) -> Tensor:
        within = self.codes.var(0, correction=0)
        return within if self.factor is None else within + self.factor.square().sum(1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        index = torch.randint(len(self.codes), tuple(sample_shape), device=self.codes.device)
        z = self.codes[index]
        return z if self.factor is None else z + torch.randn_like(z) @ self.factor.mT

    def log_prob(self, value: Tensor) -> Tensor:
        if self.factor is None:
            raise NotImplementedError(
                "an empirical prior has no density, it is made of points; "
                "set `prior.bandwidth=likelihood` where a log-likelihood is needed"
            )
        n, d = self.codes.shape
        centres = whitened(self.codes, self.factor)
        z = whitened(value.reshape(-1, d), self.factor)
        parts = z.split(_ROWS)
        log_sums = [(-0.5 * _squared_distances(part, centres)).logsumexp(1) for part in parts]
        constant = 0.5 * d * math.log(2 * math.pi) + math.log(n)
        log_det = self.factor.diagonal().log().sum()
        return (torch.cat(log_sums) - log_det - constant).view(value.shape[:-1])


class KernelDensity(Prior):
    r"""p(z) = 1/n Σᵢ N(z; zᵢ, h²Σ): the codes themselves, each with a Gaussian around it.

    Σ is the covariance of the codes and h the bandwidth, so h = 1 is as wide as all codes
    together; draws have the codes' mean and about (1 + h²) times their covariance. With h = 0 it
    is the empirical prior: draws are codes, and there is no density. Until it is fitted it is
    N(0, I), or for h = 0 draws from it.

    The codes lie in a buffer of a fixed size, which the checkpoint carries. A fit takes more than d
    codes, for h = 0 at least 1, and reports `bandwidth`, h, and for h > 0 `nll_left_out`: minus the
    mean log-density of a code under all the others, nats per code.

    Args:
        latent_dim: d, at least 1.
        num_codes: the size of the buffer, at least 1; of more codes than that a random part is
            kept.
        bandwidth: h, a number at least 0; "likelihood": of 32 values from 0.01 to 2 the one that
            makes codes most likely under all the others; "scott": n^(−1/(d + 4)), which is too
            wide for codes in separate modes.

    Raises:
        ValueError: for a size under 1, or another `bandwidth`.

    Source: Parzen, 1962; Duin, 1976 (leave-one-out likelihood); Scott, 1992. Departure: at most
    1,024 codes are left out in turn.
    """

    learns = True
    codes: Tensor
    factor: Tensor
    count: Tensor

    def __init__(
        self, latent_dim: int, num_codes: int = 10_000, *, bandwidth: float | str = "likelihood"
    ) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        check_integer("num_codes", num_codes, 1, "set `prior.num_codes=10000`")
        a_number = isinstance(bandwidth, int | float) and 0 <= bandwidth < math.inf
        if not a_number and bandwidth not in ("likelihood", "scott"):
            raise ValueError(
                f"`bandwidth` must be likelihood, scott or a number at least 0, got {bandwidth!r}; "
                "set `prior.bandwidth=likelihood`"
            )
        self.latent_dim, self.num_codes, self.bandwidth = latent_dim, num_codes, bandwidth
        self.log_prob_cost = Cost.PARALLEL if bandwidth != 0 else Cost.ABSENT
        # One code at 0 with a kernel of N(0, I) is N(0, I); without a kernel it takes many.
        first = torch.zeros if self.has_log_prob else torch.randn
        self.register_buffer("codes", first(num_codes, latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))
        self.register_buffer("count", torch.tensor(1 if self.has_log_prob else num_codes))
        # Reading the count on a GPU would wait for the device at every draw.
        self._count = int(self.count)

    def forward(self, context: Tensor | None = None) -> KernelDensityDistribution:
        factor = self.factor if self.has_log_prob else None
        return KernelDensityDistribution(self.codes[: self._count], factor)

    @torch.no_grad()
    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        at_least = self.latent_dim + 1 if self.has_log_prob else 1
        check_codes(codes, self.latent_dim, at_least=at_least)
        if self.has_log_prob and self.num_codes < at_least:
            raise ValueError(
                f"`num_codes` must be at least {at_least} in {self.latent_dim} dimensions, got "
                f"{self.num_codes}; set `prior.num_codes=10000`"
            )
        shuffled = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
        kept = codes.detach()[shuffled[: self.num_codes].to(codes.device)].to(self.codes)
        report = {"bandwidth": 0.0}
        if self.has_log_prob:
            factor = covariance_factor(covariance(kept))
            report = self._choose(whitened(kept.double(), factor), progress)
            report["nll_left_out"] += float(factor.diagonal().log().sum())
            self.factor.copy_(report["bandwidth"] * factor)
        self._count = len(kept)
        self.codes.zero_()[: self._count].copy_(kept)
        self.count.fill_(self._count)
        return report

    def _choose(self, z: Tensor, progress: bool) -> Report:
        """The bandwidth for whitened codes `(n, d)` in random order, and its left-out score."""
        n, d = z.shape
        if self.bandwidth == "likelihood":
            widths = torch.logspace(-2, math.log10(2), 32).tolist()
        else:
            widths = [n ** (-1 / (d + 4)) if self.bandwidth == "scott" else float(self.bandwidth)]
        scored = min(n, _ROWS_SCORED)
        totals = torch.zeros(len(widths), dtype=z.dtype)
        starts = range(0, scored, _ROWS)
        for start in track(starts, "bandwidth", transient=True, disable=not progress):
            part = z[start : min(start + _ROWS, scored)]
            distances = _squared_distances(part, z)
            rows = torch.arange(len(part), device=z.device)
            distances[rows, start + rows] = math.inf
            # Less the nearest, once for all widths, the sums neither vanish nor need doubles.
            nearest = distances.amin(1)
            further = (distances - nearest.unsqueeze(1)).float()
            for i, h in enumerate(widths):
                # Denormal numbers, below e^-87, take several times as long; they add nothing to 1.
                sums = (further * (-0.5 / h**2)).clamp_(min=-80).exp_().sum(1)
                totals[i] += float((sums.double().log() - 0.5 / h**2 * nearest).sum())
        constant = 0.5 * d * math.log(2 * math.pi) + math.log(n - 1)
        nll = constant + d * torch.tensor(widths).double().log() - totals / scored
        best = int(nll.argmin())
        if len(widths) > 1 and best == 0:
            log.warning(
                "kernel density: the smallest bandwidth tried, %.3g, was the best, as it is when "
                "codes repeat; drop repeated codes, or set `prior.bandwidth=scott`",
                widths[0],
            )
        return {"bandwidth": widths[best], "nll_left_out": float(nll[best])}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._count = int(self.count)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between rows, `(n, m)`; by differences, as |a|² + |b|² − 2ab cancels in a narrow kernel."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
