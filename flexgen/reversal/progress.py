"""Progress of a reversal on standard error: of one call, and of a long one over its processes."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from flexgen.reversal.chunks import Parts
from flexgen.reversal.passes import Tell

SECONDS_A_LINE = 30.0
"""In a log file there is a line that often, not a bar."""


@contextmanager
def bar(
    num_samples: int, show: bool, watch: Callable[[Tensor], None] | None, what: str = "reverse"
) -> Iterator[Callable[[int], Tell]]:
    """A progress bar: called with the size of a batch, it gives what to tell its progress to.

    Args:
        num_samples: of all batches.
        show: whether to show anything.
        watch: told the codes of the batch in work.
        what: is being done.
    """
    columns = (
        TextColumn(what), BarColumn(),
        TextColumn("{task.fields[samples]}/{task.fields[all]} samples, loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task("", total=num_samples, samples=0, all=num_samples, loss="-")
        done = 0

        def batch(size: int) -> Tell:
            nonlocal done
            before, done = done, done + size

            def tell(share: float, z: Tensor, loss: Tensor) -> None:
                if show:  # reading the loss makes the device wait
                    now = before + size * share
                    mean = f"{float(loss[:size].mean()):.4g}"
                    progress.update(task, completed=now, samples=int(now), loss=mean)
                if watch is not None:
                    watch(z[:size])

            return tell

        yield batch
        progress.update(task, completed=num_samples, samples=num_samples)


class ChunkProgress:
    """Shows samples done, samples per second, time left and mean loss, on standard error.

    Args:
        parts: what is being worked on, by whichever processes.
        show: whether to show anything.
        check: called now and then; raises if there is no use in going on.
    """

    def __init__(self, parts: Parts, show: bool, check: Callable[[], None] | None) -> None:
        self.parts, self.show, self.check = parts, show, check
        self._started = self._told = time.monotonic()
        self.before: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> "ChunkProgress":
        if self.show and sys.stderr.isatty():
            words = TextColumn("reverse"), BarColumn(), TextColumn("{task.description}")
            console = Console(stderr=True)
            self._bar = Progress(
                SpinnerColumn(), *words, console=console, refresh_per_second=2, transient=True
            )
            self._task = self._bar.add_task("reading", total=sum(self.parts.sizes))
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def look(self) -> bool:
        """Look at the parts, show how far they are, and say whether all are there."""
        if self.check is not None:
            self.check()
        finished = self.parts.finished()
        done = sum(self.parts.sizes[number] for number in finished)
        if self.before is None:
            self.before = done
        if self.show:
            self._tell(done, math.fsum(float(about["loss"]) for about in finished.values()))
        return len(finished) == len(self.parts.sizes)

    def wait(self) -> None:
        """Come back once all parts are there, whoever writes them."""
        while not self.look() and not self.parts.codes.is_file():
            time.sleep(0.2)

    def _tell(self, done: int, loss: float) -> None:
        now, total = time.monotonic(), sum(self.parts.sizes)
        speed = (done - (self.before or 0)) / max(now - self._started, 1e-9)
        text = f"{done:,}/{total:,} samples"
        if speed:
            text += f", {speed:.3g}/s, {_clock((total - done) / speed)} left"
        if done:
            text += f", mean loss {loss / done:.4g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif now - self._told >= SECONDS_A_LINE or (done == total and self._told > self._started):
            self._told = now
            print(f"reverse: {text}", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
