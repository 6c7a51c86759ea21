"""States of metrics over vectors whose width is known only when the first batch arrives."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

# Most entries of a matrix over pairs of samples that are held at once: 64 MiB in float64.
PAIRS_AT_ONCE = 2**23


def as_rows(x: Tensor, name: str, *, width: int = 0) -> Tensor:
    """A batch as finite float64 rows, with each event flattened.

    Args:
        x: batch, `(n, *event_shape)`; `n` may be 0.
        name: what the caller calls `x`, for the error messages.
        width: number of values an event must have; 0 accepts any.

    Returns:
        A copy, `(n, width)`, detached: a caller who overwrites `x` afterwards changes no state.

    Raises:
        ValueError: `x` has no event dimension, another width, or a value that is not finite.
    """
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` must have shape (n, features), got {tuple(x.shape)}; "
            f"add the missing dimension, for one value an event `{name}[:, None]`"
        )
    rows = x.detach().to(torch.float64, copy=True).flatten(1)
    if width and rows.shape[1] != width:
        raise ValueError(
            f"`{name}` must have {width} features, as the batches before it, got {rows.shape[1]}; "
            "call `reset()` before you measure something else"
        )
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite, got {int((~finite).sum())} of {len(rows)} rows with NaN or "
            "infinity; look for the generator or the reversal that diverged"
        )
    return rows


def check_labels(y: Tensor, n: int, num_classes: int, name: str, of: str) -> None:
    """Refuse what is not a class for each of `n` images or codes, as `of` says.

    Raises:
        ValueError: naming `y` as `name`.
    """
    if y.shape != (n,) or y.is_floating_point():
        raise ValueError(
            f"`{name}` must hold one whole number for each of the {n} {of}, got "
            f"{tuple(y.shape)} of {y.dtype}; give the class labels as integers"
        )
    low, high = (int(y.min()), int(y.max())) if n else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`{name}` must be in [0, {num_classes - 1}], got {low} to {high}; "
            "set `num_classes` or renumber the labels"
        )


def sum_over_pairs(a: Tensor, b: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum of what `of` gives for all pairs of rows, in blocks of bounded memory."""
    total = a.new_zeros(())
    for block in a.split(max(1, PAIRS_AT_ONCE // len(b))):
        total += of(block, b).sum()
    return total


class StreamingMetric(Metric):
    """A metric whose states grow to the width of the first batch.

    torchmetrics gathers a state from every process and stacks what it got, so a process that has
    seen no data, and so knows no width, would leave the others waiting for ever. `sync` first
    agrees on the width and fills the states of such a process.

    A state that adds up starts as a scalar zero, which broadcasts to any width; a state that
    concatenates starts as an empty list.
    """

    full_state_update = False
    is_differentiable = False

    @abstractmethod
    def _blank(self, width: int) -> dict[str, Tensor]:
        """The states that depend on the width, as they are after no data at all."""

    @property
    def width(self) -> int:
        """Number of features of the data seen so far in this process; 0 before the first batch."""
        for name in self._blank(1):
            state = getattr(self, name)
            first = state[0] if isinstance(state, list) and state else state
            if isinstance(first, Tensor) and first.ndim:
                return first.shape[-1]
        return 0

    def concatenated(self, name: str) -> Tensor:
        """A state that concatenates, as one tensor `(n, width)`, also where no batch arrived."""
        state = getattr(self, name)
        return dim_zero_cat(state) if len(state) else torch.empty(0, self.width, device=self.device)

    def sync(
        self, dist_sync_fn: Callable | None = None, process_group: Any | None = None,
        should_sync: bool = True, distributed_available: Callable | None = None,
    ) -> None:  # fmt: skip
        """Gather the states of all processes, among them those that have seen no data.

        Raises:
            ValueError: two processes hold data of different widths.
        """
        available = distributed_available or self.distributed_available_fn
        if should_sync and not self._is_synced and available():
            gather = dist_sync_fn or gather_all_tensors
            width = torch.tensor(self.width, device=self.device)
            widths = sorted({int(w) for w in gather(width, process_group or self.process_group)})
            known = [w for w in widths if w]
            if len(known) > 1:
                raise ValueError(
                    f"every process must hold data of one width, got {known}; "
                    f"give each `{type(self).__name__}` events of one shape"
                )
            for name, blank in self._blank(known[0] if known else 0).items():
                state = getattr(self, name)
                if isinstance(state, list):
                    setattr(self, name, state or [blank])
                elif not state.ndim:
                    setattr(self, name, blank)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)


class LogitsMetric(StreamingMetric):
    """A metric of the classes that a classifier sees in images.

    Args:
        classifier: maps images to logits `(n, classes)`; it is put in evaluation mode. Without
            one, `update` takes logits.
    """

    def __init__(self, classifier: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classifier = classifier

    @abstractmethod
    def _add(self, logits: Tensor) -> None:
        """Take logits `(n, classes)`, float64, into the states."""

    def update(self, x: Tensor) -> None:
        """Add images, or logits where there is no classifier.

        Args:
            x: images as the classifier takes them, `(n, channels, height, width)`; or logits,
                `(n, classes)`.

        Raises:
            ValueError: the logits are not `(n, classes)`, not finite, or of other classes than
                before.
        """
        logits = x if self.classifier is None else self.classifier.eval()(x)
        if logits.ndim != 2:
            raise ValueError(
                f"the logits must have shape (n, classes), got {tuple(logits.shape)}; "
                f"give `{type(self).__name__}` the classifier if you update it with images"
            )
        self._add(as_rows(logits, "logits", width=self.width).to(self.device))
