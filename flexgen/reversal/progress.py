"""The progress bar of a reversal, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor


@contextmanager
def bar(num_samples: int, show: bool) -> Iterator[Callable[[int], Callable[[float, Tensor], None]]]:
    """A progress bar: called with the size of a batch, it gives what to tell its progress to.

    Args:
        num_samples: of all batches.
        show: whether to show anything.
    """
    columns = (
        TextColumn("reverse"),
        BarColumn(),
        TextColumn("{task.fields[samples]}/{task.fields[all]} samples, loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task("", total=num_samples, samples=0, all=num_samples, loss="-")
        done = 0

        def batch(size: int) -> Callable[[float, Tensor], None]:
            nonlocal done
            before, done = done, done + size

            def tell(share: float, loss: Tensor) -> None:
                if show:  # reading the loss makes the device wait
                    now = before + size * share
                    mean = f"{float(loss[:size].mean()):.4g}"
                    progress.update(task, completed=now, samples=int(now), loss=mean)

            return tell

        yield batch
        progress.update(task, completed=num_samples, samples=num_samples)
