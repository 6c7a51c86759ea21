"""How much of the samples lies among the data, and how much of the data among the samples."""

from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.metrics.classifier import Classifier
from flexgen.metrics.streaming import PAIRS_AT_ONCE
from flexgen.metrics.two_sample import TwoSampleMetric, pairwise_distances


class PrecisionRecall(TwoSampleMetric):
    r"""Precision, recall, density and coverage of samples, by balls about nearest neighbours.

    Each of N data points $x_i$ has the ball $B(x_i)$ that reaches to its k-th nearest other data
    point, and each of M samples $y_j$ the ball that reaches to its k-th nearest other sample.

    $$ \text{precision} = \tfrac1M \sum_j 1[\exists i: y_j \in B(x_i)], \quad
       \text{recall} = \tfrac1N \sum_i 1[\exists j: x_i \in B(y_j)] $$

    $$ \text{density} = \tfrac1{kM} \sum_j \sum_i 1[y_j \in B(x_i)], \quad
       \text{coverage} = \tfrac1N \sum_i 1[\exists j: y_j \in B(x_i)] $$

    Precision and density score fidelity, recall and coverage diversity. One outlier with a large
    ball lifts precision and recall, which density and coverage mend. All but density are in [0, 1];
    density has no bound. For samples of the data's own distribution density is 1 in expectation
    and coverage $1 - \prod_{i=1}^{k} (N - i) / (N + M - i)$, about $1 - 2^{-k}$ for M = N;
    precision and recall depend on the distribution. All depend on N, M and k: compare at the same.

    Args:
        classifier: the distances are between its features of images; None: between points as they
            are, events flattened.
        num_neighbours: k, at least 1.

    Raises:
        ValueError: `num_neighbours` is under 1.

    Source: Kynkäänniemi, Karras, Laine, Lehtinen & Aila, Improved Precision and Recall Metric for
    Assessing Generative Models, 2019, eq. 1 and 2 (k = 3); Naeem, Oh, Uh, Choi & Yoo, Reliable
    Fidelity and Diversity Metrics for Generative Models, 2020, eq. 3 and 4 (k = 5, the default
    here). Departure: balls are closed for all four, as in the first.

    Example:
        >>> scores = PrecisionRecall(num_neighbours=1)
        >>> scores.update(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), real=True)
        >>> scores.update(torch.tensor([[0.5], [0.6]]), real=False)
        >>> {name: float(value) for name, value in scores.compute().items()}
        {'precision': 1.0, 'recall': 0.0, 'density': 2.0, 'coverage': 0.5}
    """

    higher_is_better = True

    def __init__(
        self, classifier: Classifier | None = None, num_neighbours: int = 5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_neighbours", num_neighbours, 1, "5 is usual")
        self.classifier, self.num_neighbours = classifier, num_neighbours

    @torch.no_grad()
    def update(self, x: Tensor, real: bool) -> None:
        """Add points, or with a classifier images `(n, channels, height, width)`, to a sample."""
        super().update(x if self.classifier is None else self.classifier.features(x), real)

    def compute(self) -> dict[str, Tensor]:
        """`precision`, `recall`, `density` and `coverage`, each a float64 scalar.

        Raises:
            ValueError: a sample has no more than k points.
        """
        real, fake = self.concatenated("real"), self.concatenated("fake")
        k = self.num_neighbours
        if min(len(real), len(fake)) <= k:
            raise ValueError(
                f"both samples must hold more than `num_neighbours` {k} points, got {len(real)} "
                f"real and {len(fake)} fake; update with more"
            )
        # Equal distances are rounded apart, by where they stand in a matrix product.
        of_real, of_fake = (_radii(x, k) * (1 + 1e-7) for x in (real, fake))
        precise = torch.zeros(len(fake), dtype=torch.bool, device=self.device)
        recalled, covered, inside = (of_real.new_zeros(()) for _ in range(3))
        rows = max(1, PAIRS_AT_ONCE // len(fake))
        for x, radius in zip(real.split(rows), of_real.split(rows), strict=True):
            distance = pairwise_distances(x, fake)
            in_real = distance <= radius[:, None]
            precise |= in_real.any(0)
            covered += in_real.any(1).sum()
            inside += in_real.sum()
            recalled += (distance <= of_fake).any(1).sum()
        return {
            "precision": precise.double().mean(),
            "recall": recalled / len(real),
            "density": inside / (k * len(fake)),
            "coverage": covered / len(real),
        }


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest other one, `(len(x),)`."""
    radii = []
    for start in range(0, len(x), rows := max(1, PAIRS_AT_ONCE // len(x))):
        distance = pairwise_distances(x[start : start + rows], x)
        # Its distance to itself is left out by place: as a product it is not exactly 0.
        distance.diagonal(start).fill_(torch.inf)
        radii.append(distance.topk(k, largest=False).values[:, -1])
    return torch.cat(radii)
