"""Ends a run whose held-out values have stopped to improve, at its best weights."""

import logging
import math
from typing import Any, Literal

import pytorch_lightning as pl
from torch import Tensor

from flexgen.callbacks.measurement import Measurement
from flexgen.checks import check_integer, check_one_of

log = logging.getLogger(__name__)


class EarlyStopping(pl.Callback):
    """Ends training once a logged value no longer gets better, at the weights of its best step.

    Each value counts that a measurement logs as `metric`, on its own schedule. After `patience`
    values in a row that are not better than the best by more than `min_change`, the weights of
    the best step are put back, what is due at the end of a run is done with them, and the run ends
    there, finished. A run that makes all its steps keeps its last weights.

    Choose by data that nothing is reported of: `callbacks.nll.split=validation`, say. The best
    weights are held in memory and in each checkpoint.

    Args:
        metric: the name under which the value is logged.
        better: which of two values is better, the lower or the higher.
        patience: values in a row without a better one that end the run.
        min_change: what a value must be better by.

    Raises:
        ValueError: for an option out of range; at the start, if no measurement with a period is due
            before the end; in training, if none of these has logged `metric`.
    """

    def __init__(
        self, *, metric: str, better: Literal["lower", "higher"] = "lower", patience: int = 5,
        min_change: float = 0.0,
    ) -> None:  # fmt: skip
        check_one_of("better", better, ("lower", "higher"))
        if not (math.isfinite(min_change) and min_change >= 0):
            raise ValueError(f"`min_change` must be 0 or more, got {min_change}; set 0")
        self.metric, self.better, self.min_change = metric, better, min_change
        self.patience = check_integer("patience", patience)
        self.best, self.best_step, self.waited, self.stopped = math.nan, -1, 0, False
        self._looked_at, self._measured_by = -1, 0.0
        self._weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best, "best_step": self.best_step, "waited": self.waited,
            "stopped": self.stopped, "looked_at": self._looked_at, "weights": self._weights,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.waited, self.stopped = state_dict["waited"], state_dict["stopped"]
        self._looked_at, self._weights = state_dict["looked_at"], state_dict["weights"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        end = pl_module.schedule.end or math.inf
        periods = [m.every or math.inf for m in _measurements(trainer)]
        if not (periods := [every for every in periods if every < end]):
            raise ValueError(
                "early stopping needs values as training goes on, and no measurement is due before "
                "the end; set a period, such as `callbacks.nll.every=500`"
            )
        self._measured_by = max(periods)
        if self.stopped:
            pl_module.schedule.end = pl_module.counters.generator_steps
            log.warning(f"{self._verdict()}; to go on, set callbacks.early_stopping=null")
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, model: Any) -> None:
        """Take in what was logged at this step, once."""
        step, end = model.counters.generator_steps, model.schedule.end
        measured = any(m.is_due(step, end) for m in _measurements(trainer))
        due = measured or step % model.log_every == 0
        if self.stopped or model.counters.critic_phase or not due or step <= self._looked_at:
            return
        self._looked_at = step
        # Of several processes the first may measure alone: all must come here, and ask it.
        logged_at, values = model.logged
        value = values.get(self.metric) if logged_at == step else None
        value = trainer.strategy.broadcast(value)
        if value is None:
            if self.best_step < 0 and step >= self._measured_by:
                raise ValueError(
                    f"early stopping waits for {self.metric!r}, and nothing is logged as that; "
                    "set `callbacks.early_stopping.metric` to one of "
                    f"{', '.join(sorted(trainer.callback_metrics))}"
                )
            return
        gain = self.best - value if self.better == "lower" else value - self.best
        if self.best_step < 0 or gain > self.min_change:
            self.best, self.best_step, self.waited = value, step, 0
            self._weights = {name: w.clone() for name, w in model.state_dict().items()}
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        model.load_state_dict(self._weights)
        self._weights, self.stopped = {}, True
        model.schedule.end = step
        trainer.should_stop = True
        if trainer.is_global_zero:
            log.warning(self._verdict())
        for measurement in _measurements(trainer):
            if measurement.at_end:
                measurement.act(trainer, model)

    def _verdict(self) -> str:
        return (
            f"stopped early: {self.metric} was {self.best:.6g} at step {self.best_step}, and not "
            f"better in {self.waited} values since; the weights are those of step {self.best_step}"
        )


def _measurements(trainer: pl.Trainer) -> list[Measurement]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Measurement)]
