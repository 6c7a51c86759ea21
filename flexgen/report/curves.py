"""The metrics of a run as curves, read from `metrics.csv`, and its other plain files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flexgen.files import open_file
from flexgen.metrics_table import COUNTERS, read_arrays
from flexgen.report.catalogue import number
from flexgen.untrusted import printable

_MOST_BYTES = 2**24


class RunError(ValueError):
    """A directory that cannot be read as a run; its text says in one line why and what to do."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = printable(" ".join(problem.split()))
        super().__init__(f"{printable(str(path))}: {self.problem}")


@dataclass(frozen=True)
class Value:
    """A metric at the end of a run: the mean over its last `count` evaluations, which may be fewer
    than asked for, their sample standard deviation (ddof = 1, NaN for one), and the last's step."""

    mean: float
    spread: float
    count: int
    step: int


@dataclass(frozen=True)
class Point:
    """A metric measured at a generator step, with the ends of its 95 % bootstrap interval and its
    standard error, None where not logged."""

    value: float
    low: float | None
    high: float | None
    step: int
    error: float | None = None

    def __str__(self) -> str:
        """The value, on a second line its interval."""
        return f"{number(self.value)}\n{self.interval}".rstrip()

    def misses(self, value: float) -> bool:
        """Whether there is an interval and it does not hold the value."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    @property
    def interval(self) -> str:
        """The interval in brackets or ± the standard error, empty where neither is known."""
        if self.low is not None and self.high is not None:
            return f"[{number(self.low, 3)}, {number(self.high, 3)}]"
        return "" if self.error is None else f"± {number(self.error, 2)}"

    @property
    def about_interval(self) -> str:
        """The interval with what it is."""
        if self.interval.startswith("["):
            return f"95 % interval {self.interval}"
        return f"{self.interval} (standard error)" if self.interval else ""


STANDARD_ERRORS = {"nll/samples": "nll/standard_error", "nll/ais": "nll/ais_standard_error"}
"""Metrics whose standard error over the data is logged, and as what."""


@dataclass(frozen=True)
class Curve:
    """One metric where it was logged; a logged NaN is kept, a cell left empty is not a point.

    Args:
        values: the logged values, float, `(n,)`.
        rows: index of each value's row in `metrics.csv`, int, `(n,)`.
        counters: for each counter of `COUNTERS`, its value at those rows, int, `(n,)`.
    """

    values: np.ndarray
    rows: np.ndarray
    counters: Mapping[str, np.ndarray]

    @property
    def steps(self) -> np.ndarray:
        """Generator steps, int, `(n,)`."""
        return self.counters["generator_steps"]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, keep: np.ndarray) -> "Curve":
        """The points at which `keep`, bool `(n,)`, is true."""
        counters = {name: column[keep] for name, column in self.counters.items()}
        return Curve(self.values[keep], self.rows[keep], counters)

    def tail(self, last: int = 1) -> Value:
        """Mean and spread of the last `last` evaluations; NaN among them stays NaN."""
        values = self.values[-last:]
        return Value(*mean_std(values), len(values), int(self.steps[-1]))


def mean_std(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof = 1); NaN where there are too few values."""
    with np.errstate(invalid="ignore"):  # infinite values make a NaN, which is shown as such
        mean = float(np.mean(values)) if len(values) else float("nan")
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return mean, std


def t_half_width(n: int, confidence: float = 0.95) -> float:
    """Half of Student's interval for a mean of n, in standard deviations; NaN for one."""
    from scipy import stats  # half a second, for whoever needs it alone

    return float(stats.t.ppf((1 + confidence) / 2, n - 1) / n**0.5) if n > 1 else float("nan")


def read_text(run: Path, name: str) -> str:
    """A file of a run, whatever stands in its place, or a `RunError`; no link is followed."""
    try:
        with open_file(run / name, within=run) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise RunError(run, f"{name} has more than {_MOST_BYTES:,} bytes")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _unread(run, name, error) from error


def read_json(run: Path, name: str) -> dict[str, Any]:
    """A file of a run as a JSON object, or a `RunError`."""
    text = read_text(run, name)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(run, f"{name} is corrupt: {error}") from error
    if not isinstance(content, dict):
        raise RunError(run, f"{name} must hold an object, got {content!r:.40}")
    return content


def read_provenance(run: Path) -> dict[str, Any]:
    """A run's `provenance.json` with its `overrides`, texts, and its `parent`, if it has any."""
    about = read_json(run, "provenance.json")
    for name, kind in (("overrides", list), ("parent", dict)):
        if not isinstance(about.get(name) or kind(), kind):
            raise RunError(run, f"provenance.json is corrupt: `{name}` is no {kind.__name__}")
    return about | {"overrides": [printable(str(word)) for word in about.get("overrides") or []]}


def read_metrics_json(run: Path) -> tuple[dict[str, int], dict[str, float]]:
    """Counters and final values of `metrics.json`, null read as NaN."""
    content = read_json(run, "metrics.json")
    try:
        counters = {name: int(count) for name, count in content.get("counters", {}).items()}
        values = {
            printable(name): float("nan") if value is None else float(value)
            for name, value in content.get("values", {}).items()
        }
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise RunError(run, f"metrics.json is corrupt: {error}") from error
    return counters, values


def read_curves(run: Path, notes: list[str]) -> tuple[dict[str, Curve], dict[str, int]]:
    """Curves and last counters of `metrics.csv`; what was left out is added to the notes."""
    try:
        with open_file(run / "metrics.csv", within=run) as file:
            table = read_arrays(file)
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unread(run, "metrics.csv", error) from error
    except ValueError as error:
        raise RunError(run, f"metrics.csv is corrupt: {error}") from error
    if table.cut_short:
        notes.append("metrics.csv: its last line was cut short and is left out")
    counters = {name: table.columns.pop(name)[1] for name in COUNTERS if table.num_rows}
    counters = {name: column.astype(np.int64) for name, column in counters.items()}
    curves = {}
    for name, (rows, values) in table.columns.items():
        at = counters
        if len(rows) < table.num_rows:
            at = {key: column[rows] for key, column in counters.items()}
        curves[printable(name)] = Curve(values, rows, at)
    return curves, {name: int(column[-1]) for name, column in counters.items()}


def _unread(run: Path, name: str, error: Exception) -> RunError:
    if (run / name).is_symlink():
        return RunError(run, f"{name} is a link; put its file there")
    reason = getattr(error, "strerror", None) or str(error)
    return RunError(run, f"{name} cannot be read: {reason}")
