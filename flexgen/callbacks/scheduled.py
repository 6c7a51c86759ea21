"""What acts at chosen generator steps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import LightningDataModule

from flexgen.models import Generative
from flexgen.training import isolated_rng

__all__ = ["ALONE", "Measurement", "Scheduled"]

ALONE: dict[str, Any] = {"sync_on_compute": False}
"""For the metrics of a measurement, each of which is taken of all the data by one process."""


class Scheduled(pl.Callback):
    """Acts at every multiple of `every`, at the steps in `at`, and at the end.

    Args:
        every: period in generator steps; None: no period.
        at: single generator steps.
        at_end: whether to act at the last step of the run too.

    Attributes:
        family: the models that it is for.
    """

    family: type[Generative] = Generative

    def __init__(
        self, *, every: int | None = None, at: Iterable[int] = (), at_end: bool = True
    ) -> None:
        self.every, self.at, self.at_end = every, sorted(set(at)), at_end
        self._acted_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.schedule.register(self.every, self.at)

    def check(self, model: Generative, data: Any) -> None:
        """Refuse before training what would be refused in the middle of it.

        Raises:
            ValueError: if the model is of another family, say, or the data have no such split.
        """
        if not isinstance(model, self.family):
            raise ValueError(
                f"{type(self).__name__} is for a {self.family.__name__}, and this model is "
                f"{type(model).__name__}; leave it out of `callbacks`"
            )
        if (split := getattr(self, "split", None)) is not None:
            data.size(split)

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
            self._acted_at = step
            self.act(trainer, pl_module)

    def act(self, trainer: pl.Trainer, model: Generative) -> None:
        raise NotImplementedError


class Measurement(Scheduled):
    """Measures a model and logs what it found; `flexgen evaluate` calls `measure` alone.

    It draws from generators of its own seed, so that a run does not depend on being measured.

    Among several processes, process zero measures and the others wait, unless `together` is set:
    then all call `measure` alike, which shares its work out and writes files from process zero.

    Args:
        seed: of everything that the measurement draws.
        **schedule: see :class:`Scheduled`.
    """

    together = False

    def __init__(self, *, seed: int = 0, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.seed = seed

    def act(self, trainer: pl.Trainer, model: Generative) -> None:
        if self.together or trainer.is_global_zero:
            values = self.run(model, trainer.datamodule, Path(trainer.default_root_dir))  # type: ignore[attr-defined]
            if values:
                model.log_values(values)
        trainer.strategy.barrier()

    def run(self, model: Generative, data: LightningDataModule, run_dir: Path) -> dict[str, float]:
        """:meth:`measure` with the generators kept apart."""
        with isolated_rng(self.seed):
            return self.measure(model, data, run_dir)

    def measure(self, model: Generative, data: Any, run_dir: Path) -> dict[str, float]:
        raise NotImplementedError
