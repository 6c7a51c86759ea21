"""What a Lightning trainer is asked for, kept or refused: a step here takes its batches itself."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer

from flexgen.contracts import StreamSource
from flexgen.training.counters import Schedule


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse what the loop could not honour, naming FlexGen's key.

    Raises:
        ValueError: for such an argument of the trainer.
    """
    if trainer.gradient_clip_val:
        raise ValueError(
            "`gradient_clip_val` cannot clip two optimizers' steps; build the model with "
            f"gradient_clip={trainer.gradient_clip_val}, on the command line "
            f"model.gradient_clip={trainer.gradient_clip_val}"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            "`accumulate_grad_batches` cannot accumulate for two optimizers; build the model with "
            f"accumulate={trainer.accumulate_grad_batches}, on the command line "
            f"model.accumulate={trainer.accumulate_grad_batches}"
        )
    if str(trainer.precision).endswith("-true") and trainer.precision != "32-true":
        raise ValueError(
            f"`trainer.precision={trainer.precision}` does not fit data and codes of 32 bits; set "
            "trainer.precision=32-true, bf16-mixed or 16-mixed"
        )
    if not isinstance(trainer.datamodule, StreamSource):  # type: ignore[attr-defined]
        return
    without_epochs = "FlexGen's data are a stream without epochs"
    dev = trainer.fast_dev_run  # type: ignore[attr-defined]
    if trainer.overfit_batches and not dev:  # type: ignore[attr-defined]
        raise ValueError(
            f"`overfit_batches` has no batches to repeat, {without_epochs}; cut the training set, "
            "with data.num_train where the data have it"
        )
    limit = trainer.limit_train_batches
    if (isinstance(limit, int) or limit != 1.0) and not dev:  # the integer 1 is one batch
        raise ValueError(
            f"`limit_train_batches` limits epochs, and {without_epochs}; give max_steps, on the "
            "command line steps"
        )
    if trainer.max_epochs not in (None, -1) and not dev and trainer.max_steps == -1:
        raise ValueError(
            f"`max_epochs` would never be reached, {without_epochs}; give max_steps, in generator "
            "steps, on the command line steps"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            raise ValueError(
                f"EarlyStopping looks at the end of an epoch, and {without_epochs}; on the "
                "command line set callbacks=[…,early_stopping], elsewhere max_steps or max_time, "
                "or train from a DataLoader"
            )


def last_step(trainer: pl.Trainer, schedule: Schedule) -> int | None:
    """The last generator step: of the schedule or of `max_steps`, whichever comes first.

    What ModelCheckpoint counts in training steps is registered too, so that training stops there.

    Raises:
        ValueError: if nothing would ever end a training on a stream.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and (every := callback._every_n_train_steps) > 0:
            schedule.register(every)
    ends = [end for end in (schedule.end, trainer.max_steps) if end not in (None, -1)]
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    streamed = isinstance(trainer.datamodule, StreamSource)  # type: ignore[attr-defined]
    if not ends and not timed and streamed:
        raise ValueError(
            "training on FlexGen's data would never end; give the trainer max_steps, in generator "
            "steps, or max_time"
        )
    return min(ends, default=None)


def count_steps(trainer: pl.Trainer, step: int) -> None:
    """Have Lightning's `global_step` be the generator steps, for `max_steps` and its callbacks."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.total.ready = progress.total.completed = step
