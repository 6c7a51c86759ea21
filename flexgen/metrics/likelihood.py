"""What a latent variable model's bound is made of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flexgen.metrics.streaming import PAIRS_AT_ONCE


def bits_per_dimension(nll: float, num_dimensions: int) -> float:
    r"""NLL of probabilities, not of a density, in bits a dimension, $NLL / (D \log 2)$.

    Args:
        nll: nats per datum.
        num_dimensions: D, pixels times channels.
    """
    return nll / (num_dimensions * math.log(2))


def active_units(means: Tensor, again: Tensor | None = None, threshold: float = 0.01) -> int:
    r"""How many dimensions of the code the data move: $\mathrm{Var}_x(E_{q(z|x)}[z_u]) > 0.01$.

    Args:
        means: posterior means of data, `(n, d)`.
        again: the means of other draws, where means are of draws: the variance is then the
            covariance of the two, to which the noise of neither adds.
        threshold: of the variance.

    Source: Burda et al., "Importance weighted autoencoders", 2016, section 5.2.
    """
    a, b = (m.double() - m.double().mean(0) for m in (means, means if again is None else again))
    return int(((a * b).mean(0) > threshold).sum())


def marginal_log_prob(
    z: Tensor, log_prob: Callable[[Tensor], Tensor], num_posteriors: int
) -> Tensor:
    r"""log q(z), with q(z) the mean of the posteriors of `num_posteriors` data.

    $$ \log q(z_i) = \log \frac1m \sum_{j=1}^{m} q(z_i|x_j) $$

    If each z_i was drawn from one of these posteriors, the mean of log q(z_i|x_i) − log q(z_i) is
    the mutual information of the code and the index, which is at most log m.

    Args:
        z: codes, `(n, d)`.
        log_prob: codes `(b, 1, d)` to their log-densities under each posterior, `(b, m)`; or to
            those of each dimension, `(b, m, d)`.
        num_posteriors: m.

    Returns:
        `(n,)`, float64; or those of the marginals q(z_j), `(n, d)`.

    Source: Hoffman & Johnson, "ELBO surgery", 2016.
    """
    rows = max(1, PAIRS_AT_ONCE // (num_posteriors * z.shape[1]))
    found = [log_prob(block[:, None]).double().logsumexp(1) for block in z.split(rows)]
    return torch.cat(found) - math.log(num_posteriors)
