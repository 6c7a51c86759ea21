"""How evenly samples fill the classes, as a classifier sees them."""

from typing import Any

import torch
from torch import Tensor, nn

from flexgen.metrics.streaming import LogitsMetric


class ClassBalance(LogitsMetric):
    r"""Total variation between the classes of samples and the shares that they should have.

    $$ \tfrac12 \sum_{c=1}^{k} \Big| \frac{n_c}{n} - q_c \Big| $$

    with $n_c$ of n samples in class c by the classifier's largest logit: 0 for the wanted shares, 1
    - min q at most. n samples that do have the shares q score about
    $\sum_c \sqrt{q_c (1 - q_c) / (2 \pi n)}$ by chance, and a classifier that takes one class for
    another adds its own errors: see what it makes of data of known shares.

    Args:
        classifier: of images; without one, `update` takes logits `(n, classes)`.
        shares: q, `(classes,)`, at least 0 and of sum 1, e.g. those of the data; None: uniform.

    Raises:
        ValueError: `shares` are no shares.

    Source: the class histograms of Goerttler & Kloft, Learning a multimodal prior distribution for
    generative adversarial nets, figure 6; the distance is ours.

    Example:
        >>> balance = ClassBalance()
        >>> balance.update(torch.tensor([[9.0, 0.0], [8.0, 1.0], [0.0, 7.0], [5.0, 2.0]]))
        >>> float(balance.compute())
        0.25
        >>> balance.shares().tolist()
        [0.75, 0.25]
    """

    higher_is_better = False

    counts: Tensor
    wanted: Tensor | None

    def __init__(
        self, classifier: nn.Module | None = None, shares: Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(classifier, **kwargs)
        if shares is not None:
            shares = torch.as_tensor(shares, dtype=torch.float64)
            positive = shares.ndim == 1 and (shares >= 0).all()
            if not positive or abs(float(shares.sum()) - 1) >= 1e-6:
                raise ValueError(
                    f"`shares` must be (classes,), at least 0 and of sum 1, got {shares.tolist()}; "
                    "give `labels.bincount() / len(labels)`"
                )
        self.register_buffer("wanted", shares, persistent=False)
        self.add_state("counts", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        return {"counts": self.counts.new_zeros(width)}

    @property
    def width(self) -> int:
        return super().width or (0 if self.wanted is None else len(self.wanted))

    def _add(self, logits: Tensor) -> None:
        self.counts = self.counts + logits.argmax(1).bincount(minlength=logits.shape[1])

    def compute(self) -> Tensor:
        """The distance, a float64 scalar, 0 to 1.

        Raises:
            ValueError: there were no samples.
        """
        shares = self._shares()
        wanted = 1 / len(shares) if self.wanted is None else self.wanted
        return 0.5 * (shares - wanted).abs().sum()

    def shares(self) -> Tensor:
        """Each class's share of samples, `(classes,)`; as `compute`, call it in each process."""
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._shares()

    def _shares(self) -> Tensor:
        n = self.counts.sum()
        if n == 0:
            raise ValueError("no samples to score; call `update(x)` with images or logits first")
        return self.counts.double() / n
