"""Moments of codes, and prior agreement (PAG): how far the second are from a normal prior's."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import check_one_of, check_positive
from flexgen.metrics.streaming import StreamingMetric, as_rows

Convention = Literal["unit", "literal"]


class CodeMoments(StreamingMetric):
    """First and second moments of codes, in float64: the state of the Gaussian scores, O(d²)."""

    higher_is_better = False

    num_codes: Tensor
    sum_z: Tensor
    sum_zz: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("num_codes", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("sum_z", "sum_zz"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        shapes = {"sum_z": (width,), "sum_zz": (width, width)}
        return {name: self.sum_z.new_zeros(shape) for name, shape in shapes.items()}

    def update(self, z: Tensor) -> None:
        """Add codes.

        Args:
            z: codes, `(n, d)`, of any floating type and on any device.

        Raises:
            ValueError: `z` is not `(n, d)`, has another `d` than before, or is not finite.
        """
        check_codes(z)
        z = as_rows(z, "z", width=self.width).to(self.device)
        self.num_codes = self.num_codes + len(z)
        self.sum_z = self.sum_z + z.sum(0)
        self.sum_zz = self.sum_zz + z.T @ z

    def seen(self) -> tuple[int, int]:
        """Number and dimension of the codes, checked."""
        n = int(self.num_codes)
        if n == 0:
            raise ValueError("no codes to score; call `update(z)` with codes (n, d) first")
        return n, self.width


def pag_bias(n: int, d: int) -> float:
    r"""Expected unit PAG of `n` codes drawn from the prior itself, in nats.

    $$ \tfrac12 \Big[ d \log n - \sum_{i=1}^{d} \psi\big(\tfrac{n+1-i}{2}\big) - d \log 2 \Big]
       \approx \frac{d(d+1)}{4n} $$

    It is exact, by the mean log-determinant of a Wishart matrix, and the same for codes of any
    zero-mean Gaussian: subtracting it leaves an unbiased estimate of the population's PAG. For
    codes that are not Gaussian a part of order 1/n remains (heavier tails: upwards).

    Args:
        n: number of codes, at least `d`.
        d: dimension of the codes.

    Raises:
        ValueError: `n < d`, where the score is infinite.

    Example:
        >>> round(pag_bias(1024, 20), 4)
        0.1032
    """
    check_rank(n, d)
    i = torch.arange(1, d + 1, dtype=torch.float64)
    psi = torch.digamma((n + 1 - i) / 2).sum().item()
    return 0.5 * (d * math.log(n) - psi - d * math.log(2))


def pag_interval(
    z: Tensor, sigma: float = 1.0, convention: Convention = "unit", num_resamples: int = 1000,
    confidence: float = 0.95, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Bootstrap confidence interval for PAG, bias-corrected under the unit convention.

    The score plus the quantiles of (resampled score - mean resampled score). The plain percentile
    interval does not work here: a resample has duplicates, so its score is biased upwards by about
    d(d+1)/(4n) a second time, and at n = 1024, d = 20 that interval covered the truth in 0 to 88 %
    of cases. Centring the resamples removes the second bias and keeps their spread.

    Measured coverage of the 95 % interval, 300 data sets of 300 resamples for each of eight kinds
    of codes (the prior's own, scaled by 1.05 and by 0.7, a wide spectrum, a 10-mode mixture,
    shifted, multivariate t with 8 degrees of freedom, uniform): 93 to 100 % at n = 1024 with d = 20
    and d = 2, 95 to 100 % at n = 256, d = 20 and at n = 100, d = 8. Above 98 % are codes of the
    prior itself or near it, where the score has no first-order variation and the interval is 1.7 to
    2 times wider than it need be: it errs towards "cannot be told from the prior". At n = 3 d it is
    up to 2.7 times too wide.

    Args:
        z: codes, `(n, d)`, independent of each other.
        sigma: standard deviation of the prior N(0, sigma² I).
        convention: `"unit"` or `"literal"`, as in `PriorAgreement`.
        num_resamples: number of bootstrap resamples.
        confidence: probability that the interval covers the truth, in (0, 1).
        seed: seed of the resampling; the global generators are left alone.

    Returns:
        Lower and upper end, in nats; the lower one may be negative, as may the corrected score.
        Both are infinite if the score is.

    Raises:
        ValueError: an argument is out of range, `z` is not finite or not `(n, d)`, or the codes
            are too few for every resample to have full rank.
    """
    _check_prior(sigma, convention)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}; use for example 0.95")
    tail = (1 - confidence) / 2
    if num_resamples * tail < 1:
        raise ValueError(
            f"`num_resamples` must be at least {math.ceil(1 / tail)} for a confidence of "
            f"{confidence}, got {num_resamples}; use for example 1000"
        )
    check_codes(z)
    z = as_rows(z, "z").cpu()
    n, d = z.shape
    check_rank(n, d)
    score = _agreement(z.T @ z, n, sigma, convention)
    if score.isinf():
        return math.inf, math.inf
    generator = torch.Generator().manual_seed(seed)
    gram = torch.empty(num_resamples, d, d, dtype=torch.float64)
    for b in range(num_resamples):
        resample = z[torch.randint(n, (n,), generator=generator)]
        gram[b] = resample.T @ resample
    scores = _agreement(gram, n, sigma, convention)
    if not scores.isfinite().all():
        raise ValueError(
            f"`z` must hold codes enough for every resample to have rank {d}, got {n} codes whose "
            "resamples are singular; use at least 3 codes a dimension"
        )
    if convention == "unit":
        score = score - pag_bias(n, d)
    ends = torch.quantile(scores, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    low, high = (score + ends - scores.mean()).tolist()
    return low, high


class PriorAgreement(CodeMoments):
    r"""Prior agreement (PAG): KL divergence from codes to the prior N(0, sigma² I), in nats.

    $$ \tfrac12 \sum_{i=1}^{d}
       \Big[ \frac{\nu_i^2}{\sigma^2} - \log \frac{\nu_i^2}{\sigma^2} - 1 \Big] $$

    over the singular values $s_i$ of the uncentred codes Z `(n, d)`, with $\nu_i = s_i / \sqrt n$
    (`"unit"`) or $\nu_i = s_i$ (`"literal"`). The unit score does not depend on n but for its
    finite-sample bias, and corrected for it perfect codes score 0 in expectation. The literal one
    gives about 10,160 to 1024 perfect codes of 20 dimensions, and shrinking them lowers it.

    A mean and a covariance trade against each other in uncentred codes: see `GaussianKL`. Codes
    with a direction that is zero to float64's resolution (a singular value below about 1e-7 of the
    largest) score infinity.

    Args:
        sigma: standard deviation of the prior, positive.
        convention: `"unit"`, the headline, or `"literal"`, to compare with published magnitudes.
        bias_correct: subtract `pag_bias(n, d)`. The unit convention only: the literal score is
            printed as published, with the bias (0.1 in 10,160), whatever this says.

    Raises:
        ValueError: `sigma` is not positive and finite, or `convention` is unknown.

    Source: Kilcher, Lucchi, Hofmann, Flexible Prior Distributions for Deep Generative Models, 2017,
    eq. 2 and the text below it, which reads as `"literal"`. The 1/n and the correction are ours.

    Example:
        >>> pag = PriorAgreement()
        >>> pag.update(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]]))
        >>> round(float(pag.compute()) + pag_bias(4, 2), 4)  # nu² = 2 twice: 1 - log 2
        0.3069
    """

    def __init__(
        self, sigma: float = 1.0, convention: Convention = "unit", bias_correct: bool = True,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        _check_prior(sigma, convention)
        self.sigma, self.convention, self.bias_correct = sigma, convention, bias_correct

    def compute(self) -> Tensor:
        """The score, a float64 scalar in nats; lower is closer, negative values are noise about 0.

        Raises:
            ValueError: fewer codes than dimensions, so that the score is infinite whatever they
                are; or none.
        """
        n, d = self.seen()
        check_rank(n, d)
        score = _agreement(self.sum_zz, n, self.sigma, self.convention)
        if self.bias_correct and self.convention == "unit":
            score = score - pag_bias(n, d)
        return score

    def singular_values(self) -> Tensor:
        """Of the uncentred codes, `(d,)`, falling; as `compute`, call it in each process."""
        with self.sync_context(should_sync=self.sync_on_compute):
            self.seen()
            return torch.linalg.eigvalsh(self.sum_zz).flip(0).clamp(min=0).sqrt()


def _agreement(gram: Tensor, n: int, sigma: float, convention: Convention) -> Tensor:
    """PAG from Gram matrices ZᵀZ `(..., d, d)` of `n` codes, without bias correction, `(...)`."""
    scale = sigma**2 * (n if convention == "unit" else 1)
    eigenvalues = torch.linalg.eigvalsh(gram) / scale
    return divergence(eigenvalues, largest=eigenvalues[..., -1:])


def _check_prior(sigma: float, convention: str) -> None:
    check_positive("sigma", sigma, "give the prior's standard deviation")
    remedy = "use 'unit' unless you compare with published magnitudes"
    check_one_of("convention", convention, ("unit", "literal"), remedy)


def divergence(eigenvalues: Tensor, largest: Tensor) -> Tensor:
    """½ Σ (λ - log λ - 1) over the last dimension, infinite where a λ is lost in rounding.

    Args:
        eigenvalues: of a covariance, in the units of the reference, `(..., d)`.
        largest: scale of the matrix they were computed from, broadcasting to `eigenvalues`.
    """
    # Rounding leaves ±1e-16 of the largest where the exact eigenvalue is 0: its log would be a
    # NaN or a harmless-looking -37, by chance.
    lost = eigenvalues <= largest * eigenvalues.shape[-1] * torch.finfo(torch.float64).eps
    kept = eigenvalues.masked_fill(lost, 0.0)
    return 0.5 * (kept - kept.log() - 1).sum(-1)


def check_codes(z: Tensor) -> None:
    """Refuse what is not `(n, d)`."""
    if z.ndim != 2:
        raise ValueError(
            f"`z` must be codes of shape (n, d), got {tuple(z.shape)}; flatten them with "
            "`z.flatten(1)` if a code has several dimensions"
        )


def check_rank(n: int, d: int, *, centred: bool = False) -> None:
    """Refuse `n` codes that cannot span `d` dimensions (`n` one less if their mean is taken)."""
    if n < d:
        least, got = (d + 1, n + 1) if centred else (d, n)
        raise ValueError(
            f"the divergence of {got} codes in {d} dimensions is infinite, their covariance being "
            f"singular; give at least {least} codes, 3 a dimension for a score of use"
        )
