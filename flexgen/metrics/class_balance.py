"""How evenly samples fill the classes, as a classifier sees them."""

from typing import Any

import torch
from torch import Tensor, nn

from flexgen.metrics.streaming import StreamingMetric, as_rows


class ClassBalance(StreamingMetric):
    r"""Total variation between the classes of samples and the shares that they should have.

    $$ \tfrac12 \sum_{c=1}^{k} \Big| \frac{n_c}{n} - q_c \Big| $$

    with $n_c$ of n samples in class c by the classifier's largest logit: 0 for the wanted shares, 1
    - min q at most. n samples that do have the shares q score about
    $\sum_c \sqrt{q_c (1 - q_c) / (2 \pi n)}$ by chance, and a classifier that takes one class for
    another adds its own errors: see what it makes of data of known shares.

    Args:
        classifier: maps images to logits `(n, classes)`; it is put in evaluation mode. Without
            one, `update` takes logits.
        shares: q, `(classes,)`, at least 0 and of sum 1, e.g. those of the data; None: uniform.
        kwargs: passed on to `torchmetrics.Metric`.

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
        super().__init__(**kwargs)
        self.classifier = classifier
        self.register_buffer("wanted", _check_shares(shares), persistent=False)
        self.add_state("counts", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        return {"counts": self.counts.new_zeros(width)}

    def update(self, x: Tensor) -> None:
        """Add images, or logits where there is no classifier.

        Args:
            x: images as the classifier takes them, `(n, channels, height, width)`; or logits,
                `(n, classes)`.

        Raises:
            ValueError: the logits are not `(n, classes)`, not finite, or of other classes than
                `shares`.
        """
        logits = x if self.classifier is None else self.classifier.eval()(x)
        if logits.ndim != 2:
            raise ValueError(
                f"the logits must have shape (n, classes), got {tuple(logits.shape)}; "
                "give `ClassBalance` the classifier if you update it with images"
            )
        width = self.width or (0 if self.wanted is None else len(self.wanted))
        logits = as_rows(logits, "logits", width=width).to(self.device)
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
        """The share of each class among the samples, `(classes,)`, float64.

        As `compute`, it gathers the counts of all processes: call it in each of them.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._shares()

    def _shares(self) -> Tensor:
        n = self.counts.sum()
        if n == 0:
            raise ValueError("no samples to score; call `update(x)` with images or logits first")
        return self.counts.double() / n


def _check_shares(shares: Tensor | None) -> Tensor | None:
    if shares is None:
        return None
    shares = torch.as_tensor(shares, dtype=torch.float64)
    is_shares = shares.ndim == 1 and (shares >= 0).all() and abs(float(shares.sum()) - 1) < 1e-6
    if not is_shares:
        raise ValueError(
            f"`shares` must be (classes,), at least 0 and of sum 1, got {shares.tolist()}; "
            "give `labels.bincount() / len(labels)`"
        )
    return shares
