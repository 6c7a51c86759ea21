"""A progress bar in generator steps."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich import progress
from rich.console import Console


class Progress(pl.Callback):
    """Shows steps, speed, time left and the last losses; in a log file, a line now and then.

    Args:
        label: what stands before the bar.
        lines: how many lines to print in all where there is no terminal.
    """

    def __init__(self, *, label: str = "training", lines: int = 5) -> None:
        self.label, self.lines = label, lines
        self._bar: progress.Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._started, self._first = time.monotonic(), pl_module.counters.generator_steps
        self._told = self._first
        if sys.stderr.isatty():
            columns = (
                "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(),
                "steps {task.fields[speed]:.0f}/s", progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(), "{task.fields[losses]}",
            )  # fmt: skip
            console, rate = Console(stderr=True), 2  # each drawing takes milliseconds from training
            self._bar = progress.Progress(
                *columns, console=console, refresh_per_second=rate, transient=True
            )
            self._task = self._bar.add_task(
                self.label, total=pl_module.schedule.end, completed=self._first, speed=0, losses=""
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not trainer.is_global_zero:
            return
        step, end = pl_module.counters.generator_steps, pl_module.schedule.end
        speed = (step - self._first) / (time.monotonic() - self._started)
        losses = " ".join(f"{k.split('/')[1]} {v:.3g}" for k, v in pl_module.last_losses.items())
        # Where no end is known, a line every thousand steps.
        gap = 1000 if end is None else max(1, (end - self._first) / self.lines)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=speed, losses=losses)
        elif step == end or step - self._told >= gap:
            self._told = step
            of = step if end is None else f"{step}/{end}"
            print(f"{self.label}: {of} steps, {speed:.0f}/s  {losses}", file=sys.stderr)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
