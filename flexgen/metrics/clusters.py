"""How well classes separate in a space of codes."""

from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.metrics.streaming import StreamingMetric, as_rows, check_labels


class ClusterRatio(StreamingMetric):
    r"""Between-class over within-class scatter of labelled codes, trace(S_B) / trace(S_W).

    $$ \frac{\sum_c n_c \lVert m_c - m \rVert^2}{\sum_c \sum_{i \in c} \lVert z_i - m_c \rVert^2} $$

    with the mean $m_c$ of each class and the mean $m$ of all codes. It does not depend on the
    scale of the codes; classes at random give about (k - 1) / (n - k), and it is infinite where
    each class is a single point. The state is a count, a sum and a sum of squares a class.

    Args:
        num_classes: number of classes k; a class without codes is left out.

    Raises:
        ValueError: `num_classes` is below 2.

    Source: the "ratios of between-cluster distances to within-cluster distances" of Kilcher,
    Lucchi, Hofmann, 2017, figure 2, which leaves the ratio undefined; this is Fisher's.

    Example:
        >>> ratio = ClusterRatio(num_classes=2)
        >>> ratio.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> float(ratio.compute())
        25.0
    """

    higher_is_better = True

    count: Tensor
    sum_z: Tensor
    sum_squares: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, 2, "one class has nothing to be apart from")
        self.num_classes = num_classes
        per_class = torch.zeros(num_classes, dtype=torch.float64)
        self.add_state("count", per_class, dist_reduce_fx="sum")
        self.add_state("sum_squares", per_class, dist_reduce_fx="sum")
        self.add_state("sum_z", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        return {"sum_z": self.sum_z.new_zeros(self.num_classes, width)}

    def update(self, z: Tensor, y: Tensor) -> None:
        """Add labelled codes.

        Args:
            z: codes, `(n, d)`; the events of data, `(n, *event_shape)`, are flattened.
            y: labels, `(n,)`, whole numbers from 0 to `num_classes` - 1.

        Raises:
            ValueError: `z` is not finite or of another width than before, or `y` does not fit it.
        """
        z = as_rows(z, "z", width=self.width).to(self.device)
        check_labels(y, len(z), self.num_classes, "y", "codes")
        # A product with indicators: index_add_ would sum in another order on each GPU run.
        classes = torch.arange(self.num_classes, device=self.device)
        member = (classes[:, None] == y.to(self.device)).double()
        self.count = self.count + member.sum(1)
        self.sum_z = self.sum_z + member @ z
        self.sum_squares = self.sum_squares + member @ z.square().sum(1)

    def compute(self) -> Tensor:
        """The ratio, a float64 scalar of at least 0.

        Raises:
            ValueError: fewer than two classes have codes, or all codes are one point.
        """
        seen = self.count > 0
        if seen.sum() < 2:
            raise ValueError(
                f"at least 2 classes must have codes, got {int(seen.sum())}; "
                "update with codes of more classes"
            )
        count, sum_z = self.count[seen], self.sum_z[seen]
        mean = sum_z / count[:, None]
        centre = sum_z.sum(0) / count.sum()
        between = (count * (mean - centre).square().sum(1)).sum()
        within = (self.sum_squares[seen] - count * mean.square().sum(1)).sum().clamp(min=0)
        if between == 0 and within == 0:
            raise ValueError("the codes are all one point; look for the reversal that did not move")
        return between / within
