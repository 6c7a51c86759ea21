"""Kullback-Leibler divergence from codes, taken as a Gaussian, to a reference Gaussian."""

import math
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_positive
from flexgen.metrics.agreement import CodeMoments, check_rank, divergence, pag_bias


class GaussianKL(CodeMoments):
    r"""KL(N(m, S) || N(a, C)) for the mean m and covariance S of codes, in nats.

    $$ \tfrac12 \Big[ \operatorname{tr} C^{-1} S - \log \det C^{-1} S - d \Big]
       + \tfrac12 (m - a)^\top C^{-1} (m - a) $$

    with the maximum-likelihood covariance (1/n). By default the reference is N(0, sigma² I); any
    other Gaussian, such as the moments of a fitted prior's samples, is given by `reference`. The
    second part is the mean term. Unlike PAG, which sees second moments about 0 only, it tells
    codes that moved from codes that spread.

    Args:
        sigma: standard deviation of the reference N(0, sigma² I), positive.
        reference: mean `(d,)` and covariance `(d, d)` of another reference; leave `sigma` at 1.
        bias_correct: subtract the finite-sample bias, exactly `pag_bias(n - 1, d)
            + d/2 log(n / (n - 1))` for codes of any Gaussian (0.113 at n = 1024, d = 20), and from
            the mean term its part of that, tr(C⁻¹ S) / (2 (n - 1)). Off by default: the plain KL of
            the fitted Gaussian.

    Raises:
        ValueError: `sigma` is not positive and finite, or is given beside a reference; the
            reference's shapes do not fit, or its covariance is not positive definite.

    Example:
        >>> kl = GaussianKL()
        >>> kl.update(torch.tensor([[0.0], [2.0]]))  # mean 1, variance 1
        >>> float(kl.compute()), float(kl.mean_term())
        (0.5, 0.5)
    """

    mean: Tensor | None
    factor: Tensor | None

    def __init__(
        self, sigma: float = 1.0, reference: tuple[Tensor, Tensor] | None = None,
        bias_correct: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        check_positive("sigma", sigma, "give the prior's standard deviation")
        if reference is not None and sigma != 1.0:
            raise ValueError(
                f"`sigma` must stay 1.0 beside a `reference`, which has a scale, got {sigma}; "
                "leave one of the two out"
            )
        self.sigma = sigma
        self.bias_correct = bias_correct
        mean, factor = (None, None) if reference is None else _check_reference(*reference)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("factor", factor, persistent=False)

    def update(self, z: Tensor) -> None:
        if self.mean is not None and z.ndim == 2 and z.shape[1] != len(self.mean):
            raise ValueError(
                f"`z` must have the reference's {len(self.mean)} features, got {z.shape[1]}; "
                "give codes and reference of one space"
            )
        super().update(z)

    def compute(self) -> Tensor:
        """The divergence with its mean term, a float64 scalar in nats.

        Raises:
            ValueError: no more codes than dimensions, so that their covariance is singular.
        """
        n, d = self.seen()
        check_rank(n - 1, d, centred=True)
        second, first = self._whitened()
        eigenvalues = torch.linalg.eigvalsh(second - torch.outer(first, first))
        # Centring cancels, so the covariance is known only to the second moment's last digits.
        score = divergence(eigenvalues, largest=second.trace())
        score = score + 0.5 * first.square().sum()
        if self.bias_correct:
            score = score - pag_bias(n - 1, d) - 0.5 * d * math.log(n / (n - 1))
        return score

    def mean_term(self) -> Tensor:
        """The mean's part of it, in nats, a scalar; as `compute`, call it in each process."""
        with self.sync_context(should_sync=self.sync_on_compute):
            n, d = self.seen()
            second, first = self._whitened()
            term = 0.5 * first.square().sum()
            if self.bias_correct:
                check_rank(n - 1, d, centred=True)
                term = term - 0.5 * (second.trace() - first.square().sum()) / (n - 1)
            return term

    def _whitened(self) -> tuple[Tensor, Tensor]:
        """Second moment about the reference's mean `(d, d)` and first `(d,)`, in its units."""
        first, second = self.sum_z / self.num_codes, self.sum_zz / self.num_codes
        if self.mean is None or self.factor is None:
            return second / self.sigma**2, first / self.sigma
        cross = torch.outer(first, self.mean)
        second = second - cross - cross.T + torch.outer(self.mean, self.mean)
        half = torch.linalg.solve_triangular(self.factor, second, upper=False)
        second = torch.linalg.solve_triangular(self.factor, half.T, upper=False)
        shift = (first - self.mean)[:, None]
        return second, torch.linalg.solve_triangular(self.factor, shift, upper=False)[:, 0]


def _check_reference(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's mean and the Cholesky factor of its covariance, in float64."""
    mean, covariance = mean.detach().double(), covariance.detach().double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            "`reference` must be a mean (d,) and a covariance (d, d), got shapes "
            f"{tuple(mean.shape)} and {tuple(covariance.shape)}; give `(z.mean(0), z.T.cov())`"
        )
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(
            "`reference` must have a finite mean and a positive definite covariance, got one that "
            "is not; the fitted prior has collapsed in rank, or too few samples were drawn from it"
        )
    return mean, factor
