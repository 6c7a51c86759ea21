"""The best settings of a run by Optuna: a study in a folder, each trial of it a run."""

import shlex
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from flexgen.checks import check_integer
from flexgen.files import in_turn
from flexgen.runs.cells import Cell, train_cell
from flexgen.runs.compose import compose, quoted
from flexgen.runs.devices import wants_several
from flexgen.runs.errors import TrainingStopped, TrialPruned
from flexgen.runs.grid_position import duration


class _NoMetricError(ValueError):
    """The same command would find no metric again."""


@dataclass(frozen=True)
class Best:
    """The best trial of a search, its value of the metric and the overrides that train it; of how
    many trials, and how many of them failed or were pruned."""

    number: int
    value: float
    overrides: list[str]
    trials: int
    failed: int
    pruned: int


class Search:
    """A study in a folder: Optuna's journal, and a numbered run for each trial.

    What a trial draws depends on the seed, its number and the trials before it alone, so that a
    search that was killed goes on as if it had not been. Several processes can share one folder.
    Optuna's record of a trial whose process died while it drew lacks some keys: it is told as
    failed, counts as no trial, and the next one draws what it would have drawn.

    Args:
        folder: of the search.
        fixed: overrides of `flexgen train` that all trials share.
        space: those that are searched, such as `prior=normal,uniform`, by their keys.
        trials: how many in all.
        metric: of `metrics.csv`, of which a trial's value is the mean of its `last` values.
        pruner: ends trials early by the values that they have meanwhile, see
            :func:`flexgen.callbacks.make_pruner`; None: no trial.
        pruner_warmup: generator steps before which it ends none.

    Raises:
        ValueError: if an argument is wrong, Optuna is missing, the space is none, or the folder
            holds another search; the metric may change until a trial has a value.
    """

    def __init__(
        self, folder: Path, fixed: Sequence[str], space: Mapping[str, Override], *,
        trials: int = 20, metric: str = "emd/samples", last: int = 1,
        direction: Literal["minimize", "maximize"] = "minimize", seed: int = 0,
        pruner: str | None = None, pruner_warmup: int = 0,
    ) -> None:  # fmt: skip
        for name, value, least in (("trials", trials, 1), ("last", last, 1),
                                   ("search_seed", seed, 0)):  # fmt: skip
            check_integer(name, value, least)
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"`direction` must be minimize or maximize, got {direction!r}")
        if not space:
            raise ValueError(
                "what is to be searched? give an interval or a choice, as in "
                "'model.lr=tag(log,interval(1e-4,1e-2))' or prior=normal,uniform"
            )
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ValueError("search needs Optuna: pip install optuna") from error
        from flexgen.callbacks import PRUNED, make_pruner

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna
        self.state = optuna.trial.TrialState
        self.folder, self.fixed = folder, list(fixed)
        self.trials, self.metric, self.last, self.seed = trials, metric, last, seed
        self.space = {key: _distribution(override) for key, override in space.items()}
        self.entry = uuid.uuid4().hex
        self.again = f"hydra.run.dir={shlex.quote(str(folder))}"
        self._lock = folder / "search.lock"
        steps = compose(self.fixed)["steps"]
        self.pruner, self.warmup, self._pruned_at = pruner, pruner_warmup, PRUNED
        rule = make_pruner(pruner, steps, pruner_warmup)
        self.journal = folder / "search.journal"
        self.study = optuna.create_study(
            study_name="search", direction=direction, pruner=rule, load_if_exists=True,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(self.journal))),
        )  # fmt: skip
        what = {
            "fixed": sorted(self.fixed),
            "space": {key: str(value) for key, value in self.space.items()},
            "metric": metric, "last": last, "direction": direction, "search_seed": seed,
            "pruner": pruner, "pruner_warmup": pruner_warmup,
        }  # fmt: skip
        before = self.study.user_attrs.get("what", what)
        if not self.study.get_trials(states=(self.state.COMPLETE,)):
            before = before | {name: what[name] for name in ("metric", "last")}
        if before != what:
            raise ValueError(
                f"{folder} holds another search; give the same keys, but `trials`, or another "
                "hydra.run.dir"
            )
        self.study.set_user_attr("what", what)
        self._began, self._settled_before = time.monotonic(), self._settled()

    def run(self) -> Best | None:
        """Finish the trials of a killed search, then make new ones.

        Returns the best, None while other processes are at some; RuntimeError if none has a value.
        """
        try:
            self._finish_running()
            while (trial := self._next()) is not None:
                self._trial(trial.number, trial.params)
            # Those with the overrides of a trial that was at another process have no value yet.
            self._finish_running()
        except _NoMetricError:
            raise
        except BaseException:
            print(f"the search goes on with the same command and {self.again}", file=sys.stderr)
            raise
        with in_turn(self._lock):
            trials = self._drawn()
        states = Counter(trial.state for trial in trials)
        if states[self.state.RUNNING]:
            return None
        failed, pruned = states[self.state.FAIL], states[self.state.PRUNED]
        if not states[self.state.COMPLETE]:
            raise RuntimeError(
                f"all {failed + pruned} trials failed or were pruned; {self.folder}/*/cell.json "
                "say why"
            )
        best = self.study.best_trial
        assert best.value is not None
        overrides = self._overrides(best.params)
        return Best(best.number, best.value, overrides, len(trials), failed, pruned)

    def _drawn(self) -> list[Any]:
        """The trials with all keys. Whoever holds the lock knows that no process is drawing."""
        drawn = []
        for trial in self.study.get_trials():
            if trial.params.keys() == self.space.keys():
                drawn.append(trial)
            elif trial.state == self.state.RUNNING:
                self.study.tell(trial.number, state=self.state.FAIL)
        return drawn

    def _finish_running(self) -> None:
        with in_turn(self._lock):
            running = [trial for trial in self._drawn() if trial.state == self.state.RUNNING]
        for trial in running:
            self._trial(trial.number, trial.params)

    def _next(self) -> Any:
        """A new trial, or None if there are enough; one process asks at a time."""
        with in_turn(self._lock):
            if (number := len(self._drawn())) >= self.trials:
                return None
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
            return self.study.ask(self.space)

    def _overrides(self, params: dict[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={value}" for key, value in sorted(params.items()))]

    def _trial(self, number: int, params: dict[str, Any]) -> None:
        overrides = self._overrides(params)
        cell = Cell.claim(self.folder, number, overrides, self.entry)

        def train() -> None:
            if self._is_pruned(number):  # and killed before its cell said so
                raise TrialPruned("pruned before")
            watched = [*overrides, *self._watch(number)]
            config = compose([*watched, f"paths.run_dir={quoted(cell.folder)}"])
            print(f"trial {number + 1} of {self.trials}{self._time_left()}", file=sys.stderr)
            try:
                apart = wants_several(config["trainer"])
                train_cell(config, watched if apart else overrides, number)
            except TrainingStopped as stopped:
                if (step := self._is_pruned(number)) is None:
                    raise
                raise TrialPruned(f"pruned at step {step} by its {self.metric}") from stopped

        cell.run(train)
        with in_turn(self._lock):
            if cell.state == "pruned":
                self.study.tell(number, state=self.state.PRUNED, skip_if_finished=True)
            elif cell.state == "finished":
                self.study.tell(number, self._value(cell.folder), skip_if_finished=True)
            elif cell.state == "failed":
                self.study.tell(number, state=self.state.FAIL, skip_if_finished=True)

    def _time_left(self) -> str:
        """How long the other trials will take, if as long as those since the command began."""
        settled = self._settled()
        if (ended := settled - self._settled_before) < 1:
            return ""
        seconds = (time.monotonic() - self._began) / ended * (self.trials - settled)
        return f", {duration(seconds)} left"

    def _settled(self) -> int:
        """How many trials have ended; without those that died while they were drawn."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.state.is_finished() and t.params.keys() == self.space.keys() for t in trials)

    def _is_pruned(self, number: int) -> int | None:
        """The generator step at which a trial was pruned; None if it was not."""
        step: int | None = self.study.get_trials()[number].user_attrs.get(self._pruned_at)
        return step

    def _watch(self, number: int) -> list[str]:
        """The override by which a run reports its values, if there is a pruner."""
        if self.pruner is None:
            return []
        keys = {
            "_target_": "flexgen.callbacks.Pruning", "journal": quoted(self.journal.absolute()),
            "number": number, "metric": self.metric, "last": self.last, "pruner": self.pruner,
            "warmup": self.warmup,
        }  # fmt: skip
        return [f"++callbacks.pruning={{{','.join(f'{k}:{v}' for k, v in keys.items())}}}"]

    def _value(self, run_dir: Path) -> float:
        from flexgen.files import open_file
        from flexgen.metrics_table import read_arrays

        with open_file(run_dir / "metrics.csv") as file:
            columns = read_arrays(file).columns
        if self.metric not in columns:
            raise _NoMetricError(
                f"no metric {self.metric!r}; there are {', '.join(columns)}; the search goes on "
                f"with another `metric` and {self.again}"
            )
        return float(columns[self.metric][1][-self.last :].mean())


def parse_override(word: str) -> Override | None:
    """A word as an override; None if it is a flag, or a mistake that Hydra will tell of."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _distribution(override: Override) -> Any:
    """Optuna's distribution of Hydra's `a,b`, `choice`, `range`, `interval`, with a tag `log`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep):
        steps, step = list(value.range()), value.step
        if all(isinstance(each, int) for each in (*steps, step)):
            return IntDistribution(int(steps[0]), int(steps[-1]), step=int(step))
        return FloatDistribution(float(steps[0]), float(steps[-1]), step=float(step))
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution(tuple(override.sweep_string_iterator()))
    raise ValueError(
        f"`{override.input_line}` cannot be searched; give interval(…), range(…) or a choice"
    )
