"""Ends a trial of a search early when its values are worse than those of the others."""

from typing import Any

import numpy as np
import pytorch_lightning as pl

from flexgen.checks import check_integer, check_one_of

PRUNERS = ("median", "percentile", "successive_halving", "hyperband")
PRUNED = "pruned_at"
"""What a pruned trial's attribute is called in the study: the generator step."""


def make_pruner(name: str | None, steps: int, warmup: int = 0) -> Any:
    """Optuna's pruner of that name, in generator steps; one that prunes nothing for None.

    `median` ends a trial whose best value so far is worse than the median of what the others had
    at that step, `percentile` one that is not among the best quarter; both look after five whole
    trials. `successive_halving` and `hyperband` (Li et al., 2018) keep the best third at each rung,
    steps/27, steps/9, steps/3.

    Args:
        name: one of `PRUNERS`, or None.
        steps: of a whole trial.
        warmup: generator steps before which nothing is pruned; of median and percentile alone.

    Raises:
        ValueError: for another name, or a warm-up where there is none.
    """
    from optuna import pruners

    check_one_of("pruner", name, (None, *PRUNERS))
    if check_integer("pruner_warmup", warmup, 0) and name not in ("median", "percentile"):
        raise ValueError(
            f"`pruner_warmup` is of pruner=median and percentile, got {warmup} with {name}; set 0"
        )
    least = max(1, steps // 27)
    if name == "median":
        return pruners.MedianPruner(n_warmup_steps=warmup)
    if name == "percentile":
        return pruners.PercentilePruner(25.0, n_warmup_steps=warmup)
    if name == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, max_resource=steps, reduction_factor=3)
    return pruners.NopPruner()


class Pruning(pl.Callback):
    """Reports each measured value of a trial to its study, and stops the run if it is pruned.

    `flexgen search pruner=…` adds it. A value is the mean of the last so many, as the trial's own
    is. A trial that was killed reports no step twice, and one that has ended reports nothing.

    Args:
        journal: file of the study.
        number: of the trial.
        metric: the name under which the value is logged.
        last: of how many values each report is the mean.
        pruner: see :func:`make_pruner`.
        warmup: see :func:`make_pruner`.
    """

    def __init__(
        self, *, journal: str, number: int, metric: str, last: int, pruner: str, warmup: int
    ) -> None:
        self.journal, self.number, self.metric, self.last = journal, number, metric, last
        self.pruner, self.warmup = pruner, warmup
        self._values: list[float] = []
        self._looked_at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"values": self._values, "looked_at": self._looked_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._values, self._looked_at = list(state_dict["values"]), int(state_dict["looked_at"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step, (logged_at, values) = pl_module.counters.generator_steps, pl_module.logged
        end, value = pl_module.schedule.end, values.get(self.metric)
        if value is None or logged_at != step or step <= self._looked_at or step == end:
            return
        self._looked_at = step
        self._values = [*self._values, value][-self.last :]
        if trainer.is_global_zero and self._is_to_stop(step, end):
            pl_module.stop_requested = True

    def _is_to_stop(self, step: int, end: int) -> bool:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(self.journal))
        pruner = make_pruner(self.pruner, end, self.warmup)
        study = optuna.load_study(study_name="search", storage=storage, pruner=pruner)
        known = study.get_trials(deepcopy=False)[self.number]
        reported = known.last_step or 0
        if known.state != optuna.trial.TrialState.RUNNING or step < reported:
            return False
        trial = optuna.trial.Trial(study, known._trial_id)
        if step > reported:
            trial.report(float(np.mean(self._values)), step)
        if not trial.should_prune():
            return False
        trial.set_user_attr(PRUNED, step)
        return True
