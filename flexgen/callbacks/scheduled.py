"""What acts at chosen generator steps."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl


class Scheduled(pl.Callback):
    """Acts at every multiple of `every`, at the steps in `at`, and at the end.

    Args:
        every: period in generator steps; None: no period.
        at: single generator steps.
        at_end: whether to act at the last step of the run too.
    """

    def __init__(
        self, *, every: int | None = None, at: Iterable[int] = (), at_end: bool = True
    ) -> None:
        self.every, self.at, self.at_end = every, sorted(set(at)), at_end
        self._acted_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.schedule.register(self.every, self.at)

    def check(self, model: Any, data: Any) -> None:
        """Refuse before training what would be refused in the middle of it.

        Raises:
            ValueError: if model or data lack what it needs.
        """

    def is_due(self, step: int, end: int | None) -> bool:
        periodic = self.every is not None and step % self.every == 0
        return periodic or step in self.at or (self.at_end and step == end)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that is resumed has already acted at the step of its checkpoint.
        self._acted_at = pl_module.counters.generator_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step = pl_module.counters.generator_steps
        if step == self._acted_at or pl_module.counters.critic_phase:
            return
        if self.is_due(step, pl_module.schedule.end):
            self.act(trainer, pl_module)
            self._acted_at = step

    def act(self, trainer: pl.Trainer, model: Any) -> None:
        raise NotImplementedError
