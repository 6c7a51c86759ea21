"""Signals ask a training to stop; it saves first."""

import contextlib
import os
import signal
import sys
from typing import Any

import pytorch_lightning as pl

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
_SIGNALS = tuple(number for number in signal.Signals if number.name in _NAMES)


class StopOnSignal(pl.Callback):
    """The first signal stops before the next step and saves; the second stops at once.

    Signals are Ctrl-C, SIGTERM, what schedulers send before the time is up (SIGUSR1, SIGUSR2), and
    SIGHUP of a terminal that was closed, unless it is ignored as under nohup; it comes from the
    system and from the shell, and a second one says nothing new. Lightning installs handlers of its
    own when a fit begins, so these go in after them. `received` is the first's number, else 0.
    """

    def __init__(self) -> None:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.received = 0
        self.begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.begun = True

        def stop(number: int, frame: Any) -> None:
            if signal.Signals(number).name == "SIGHUP":
                # Print to nowhere: a terminal that is gone would fail whatever is printed to it.
                for terminal in (n for n in (1, 2) if os.isatty(n)):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
            elif pl_module.stop_requested:
                raise KeyboardInterrupt
            pl_module.stop_requested = True
            self.received = number
            print("stopping: saving first; once more to stop at once", file=sys.stderr)

        # Outside the main thread, as under some launchers, the launcher handles signals.
        with contextlib.suppress(ValueError):
            for number in _SIGNALS:
                if number.name != "SIGHUP" or self._before[number] is not signal.SIG_IGN:
                    signal.signal(number, stop)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before the fit, Lightning's own gone."""
        with contextlib.suppress(ValueError):
            for number, handler in self._before.items():
                if handler is not None:  # installed by no Python code, and not to be put back
                    signal.signal(number, handler)
