"""Saves checkpoints by FlexGen's own steps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from flexgen.callbacks.scheduled import Scheduled
from flexgen.checks import check_integer
from flexgen.training import CSVLogger, Loop, find_checkpoints


def save_first(trainer: pl.Trainer, model: Loop) -> None:
    """Save a checkpoint of this step before something is measured at it, if the run keeps any."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            callback.save_once(trainer, model)


class Checkpoint(Scheduled, pl.callbacks.Checkpoint):
    """Writes `checkpoints/step=00001000.ckpt` and keeps the newest.

    It saves on its schedule, and at each step at which something is measured: once before, so that
    a measurement that fails costs nothing, and once after every other callback, so that the
    checkpoint holds what they did.

    Args:
        keep: how many to keep; None: all.
        **schedule: see :class:`~flexgen.callbacks.Scheduled`.

    Raises:
        ValueError: if `keep` is under 1.
    """

    def __init__(self, *, keep: int | None = None, **schedule: Any) -> None:
        super().__init__(**schedule)
        if keep is not None:
            check_integer("keep", keep, 1, "null keeps all")
        self.keep = keep
        self._saved_at = -1

    def save_once(self, trainer: pl.Trainer, model: Loop) -> None:
        """Save now, unless this step is on disk already."""
        if self._saved_at != model.counters.generator_steps:
            self.act(trainer, model)

    def act(self, trainer: pl.Trainer, model: Any) -> None:
        run_dir = Path(trainer.default_root_dir)
        step = model.counters.generator_steps
        # Rows first: those after the last checkpoint are dropped by a resume, missing ones stay so.
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        trainer.save_checkpoint(run_dir / "checkpoints" / f"step={step:08d}.ckpt")
        self._saved_at = step
        if trainer.is_global_zero and self.keep is not None:
            for old in find_checkpoints(run_dir)[: -self.keep]:
                old.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        step = pl_module.counters.generator_steps
        measured = self._saved_at == step and not pl_module.counters.critic_phase
        if step > 0 and self._acted_at != step and (measured or trainer.should_stop):
            self._acted_at = step
            self.act(trainer, pl_module)
