"""Saves checkpoints by FlexGen's own steps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from flexgen.callbacks.scheduled import Scheduled
from flexgen.files import write_atomically
from flexgen.models import Generative
from flexgen.training import CSVLogger, find_checkpoints

__all__ = ["Checkpoint", "save"]


def save(trainer: pl.Trainer, path: Path) -> None:
    """Save the trainer's whole state to `path`, or leave `path` as it was.

    Every process must call it, as every process's generators are saved.

    Raises:
        OSError: if the file cannot be written.
    """
    if trainer.world_size == 1:
        write_atomically(path, trainer.save_checkpoint)
        return
    beside = path.with_name(f".{path.name}.part")
    trainer.save_checkpoint(beside)
    if trainer.is_global_zero:
        beside.replace(path)
    trainer.strategy.barrier()


class Checkpoint(Scheduled, pl.callbacks.Checkpoint):
    """Writes `checkpoints/step=00001000.ckpt` and keeps the newest.

    Lightning's ModelCheckpoint counts the steps of all optimizers and so saves at others than
    asked. This one runs after every other callback, so a checkpoint holds what they did.

    Args:
        keep: how many to keep; None: all.
        **schedule: see :class:`~flexgen.callbacks.Scheduled`.

    Raises:
        ValueError: if `keep` is under 1.
    """

    def __init__(self, *, keep: int | None = None, **schedule: Any) -> None:
        super().__init__(**schedule)
        if keep is not None and keep < 1:
            raise ValueError(f"`keep` must be at least 1, got {keep}; null keeps all")
        self.keep = keep

    def act(self, trainer: pl.Trainer, model: Generative) -> None:
        run_dir = Path(trainer.default_root_dir)
        step = model.counters.generator_steps
        # Rows first: those after the last checkpoint are dropped by a resume, missing ones stay so.
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        save(trainer, run_dir / "checkpoints" / f"step={step:08d}.ckpt")
        if not trainer.is_global_zero:
            return
        if self.keep is not None:
            for old in find_checkpoints(run_dir)[: -self.keep]:
                old.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        stopped = trainer.should_stop and pl_module.counters.generator_steps > 0
        if stopped and self._acted_at != pl_module.counters.generator_steps:
            self.act(trainer, pl_module)
