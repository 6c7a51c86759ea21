"""Before and after a prior refit, beside the control that kept the old prior."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from flexgen.report.catalogue import describe, number, ordered, plus_minus, signed, typeset
from flexgen.report.curves import Curve, Point, RunError
from flexgen.report.run_files import RunFiles

WHEN = ("before", "after", "control")

# What decides whether a refit is kept, by the first that was logged.
_DISTANCES = {
    "refit/nll": "−log p(z) of held-out codes, nats",
    "refit/energy": "distance to held-out codes",
}

_NOT_COMPARED = ("loss/", "speed/", "refit/", "prior/")


@dataclass(frozen=True)
class Refit:
    """One attempt to learn the data-induced prior, at a step; `kept` if it replaced the old one.

    The distances are of both to held-out codes, NaN where not logged; `distance` says in what unit.
    """

    step: int
    kept: bool
    distance_before: float
    distance_after: float
    distance: str = "distance to held-out codes"

    def __str__(self) -> str:
        verdict = "kept" if self.kept else "not kept, the run went on from the old prior"
        if np.isfinite([self.distance_before, self.distance_after]).all():
            verdict += (
                f" ({self.distance}: old prior {number(self.distance_before)}, "
                f"learned prior {number(self.distance_after)})"
            )
        return f"refit at generator step {self.step:,}: {verdict}"


@dataclass(frozen=True)
class Comparison:
    """The measurements of a run before and after its refits, kept or not, and of its control.

    `points` gives of a metric "before", "after" and "control", of these what was measured; `errors`
    the standard error of its difference, where that is a mean over data that both were measured on;
    the notes say what to know about it, one line each.
    """

    points: dict[str, dict[str, Point]]
    refits: tuple[Refit, ...]
    notes: tuple[str, ...]
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether any refit was kept."""
        return any(refit.kept for refit in self.refits)

    @property
    def columns(self) -> list[str]:
        """Those of "before", "after", "control" that were measured at all."""
        return [when for when in WHEN if any(when in at for at in self.points.values())]

    def difference(self, metric: str) -> float | None:
        """The metric after the refit less the control's, None where either is missing."""
        at = self.points[metric]
        if "after" not in at or "control" not in at:
            return None
        return at["after"].value - at["control"].value

    def told_difference(self, metric: str) -> str:
        """The difference as text, ± its standard error where that is known."""
        if (difference := self.difference(metric)) is None:
            return "–"
        if (error := self.errors.get(metric)) is None:
            return signed(difference)
        return f"{'+' if difference > 0 else ''}{typeset(plus_minus(difference, error))}"

    @property
    def lines(self) -> list[str]:
        """What to know beside the figures: each refit, then the notes."""
        return [*map(str, self.refits), *self.notes]

    def __rich__(self) -> Group:
        """The table and its notes, for a terminal."""
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        grid.add_column("", no_wrap=True)
        for when in self.columns:
            grid.add_column(when, justify="right", no_wrap=True)
        if "control" in self.columns:
            grid.add_column("difference", justify="right", no_wrap=True)
        for metric, at in self.points.items():
            cells = [str(at[when]) if when in at else "–" for when in self.columns]
            if "control" in self.columns:
                cells.append(self.told_difference(metric))
            grid.add_row(Text(describe(metric).heading), *map(Text, cells))
        lines = self.lines
        if "control" in self.columns:
            lines.append("difference: after less control")
        return Group(grid, *(Text(line) for line in lines))


def compare(run: RunFiles) -> Comparison | None:
    """Compares the run before its prior was replaced with its end and with its control's end.

    `before` is the last measurement under the run's first prior (`prior/stage` at its initial
    value), `after` the last one under a later prior, `control` the control's last one. Where no
    refit was kept, `before` is the last measurement up to the last refit and `after` the last one
    past it. Columns `<metric>_low` and `<metric>_high` give the metric's interval. A run without a
    refit gives None.
    """
    refits = tuple(_refits(run))
    if not refits:
        return None
    kept = any(refit.kept for refit in refits)
    points: dict[str, dict[str, Point]] = {}
    compared = [name for name in run.curves if not name.startswith(_NOT_COMPARED)]
    intervals = {f"{name}_{end}" for name in compared for end in ("low", "high")}
    for metric in ordered(set(compared) - intervals):
        curve = run.curves[metric]
        if kept:
            old = _stages(run, curve.rows) <= _stages(run, np.array([0]))[0]
        else:
            old = curve.steps <= refits[-1].step
        at = {"before": _last(run, metric, old), "after": _last(run, metric, ~old)}
        if run.control is not None and metric in run.control.curves:
            everything = np.ones(len(run.control.curves[metric]), dtype=bool)
            at["control"] = _last(run.control, metric, everything)
        points[metric] = {when: point for when, point in at.items() if point is not None}
    notes, errors = [*_notes(run, points, refits)], {}
    try:
        error = _paired_error(run, points.get("nll/samples", {}))
    except RunError as damaged:
        notes.append(str(damaged))
    else:
        if error is not None:
            errors["nll/samples"] = error
            notes.append("± of a difference: its standard error, paired over the held-out data")
    return Comparison(points, refits, tuple(notes), errors)


def _paired_error(run: RunFiles, at: dict[str, Point]) -> float | None:
    """Standard error of the NLL after less the control's: on the same data, their levels share most
    of their error."""
    if run.control is None or not {"after", "control"} <= at.keys():
        return None
    after = run.nll_of_data(at["after"].step)
    control = run.control.nll_of_data(at["control"].step)
    if len(after) < 2 or after.keys() != control.keys():
        return None
    differences = np.array([after[index] - control[index] for index in after])
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def _refits(run: RunFiles) -> Iterator[Refit]:
    kept = run.curves.get("refit/kept")
    if kept is not None:
        name = next((name for name in _DISTANCES if f"{name}_after" in run.curves), "refit/energy")
        for row, step, value in zip(kept.rows, kept.steps, kept.values, strict=True):
            ends = (run.curves.get(f"{name}_{when}") for when in ("before", "after"))
            before, after = (_at_row(end, row) for end in ends)
            yield Refit(int(step), bool(value > 0), before, after, _DISTANCES[name])
        return
    stage = run.curves.get("prior/stage")
    if stage is not None:
        for step in stage.steps[1:][np.diff(stage.values) > 0]:
            yield Refit(int(step), True, float("nan"), float("nan"))


def _at_row(curve: Curve | None, row: int) -> float:
    if curve is None or row not in curve.rows:
        return float("nan")
    return float(curve.values[np.flatnonzero(curve.rows == row)[0]])


def _stages(run: RunFiles, rows: np.ndarray) -> np.ndarray:
    """The prior's stage under which those rows were measured."""
    stage = run.curves.get("prior/stage")
    kept = run.curves.get("refit/kept")
    changes = kept.rows[kept.values > 0] if kept is not None else np.array([], dtype=int)
    # The row that reports a kept refit also holds what was measured at its step just before.
    if stage is None:
        return np.searchsorted(changes, rows)
    logged = stage.values - np.isin(stage.rows, changes)
    after = np.append(max(0.0, logged[0]), stage.values)
    stages = after[np.searchsorted(stage.rows, rows, side="right")]
    return stages - np.isin(rows, changes)


def _last(run: RunFiles, metric: str, keep: np.ndarray) -> Point | None:
    curve = run.curves[metric].where(keep)
    if not len(curve):
        return None
    ends = (run.curves.get(f"{metric}_{end}") for end in ("low", "high"))
    low, high = (_at_row(end, curve.rows[-1]) for end in ends)
    value, step = float(curve.values[-1]), int(curve.steps[-1])
    known = not np.isnan([low, high]).any()
    return Point(value, low, high, step) if known else Point(value, None, None, step)


def _notes(
    run: RunFiles, points: dict[str, dict[str, Point]], refits: tuple[Refit, ...]
) -> Iterator[str]:
    steps = {when: [at[when].step for at in points.values() if when in at] for when in WHEN}
    measured = []
    for when, found in steps.items():
        if not found and (when != "control" or run.control is not None):
            yield f"nothing was measured {'in the control' if when == 'control' else when}"
        elif found:
            some = f" (some metrics at {min(found):,})" if min(found) < max(found) else ""
            measured.append(f"{when} at {max(found):,}{some}")
    if measured:
        yield f"generator steps measured: {', '.join(measured)}"
    if run.control is None:
        yield (
            "no control run: whether the gain is due to the prior or to the longer training "
            "cannot be told"
        )
    elif steps["after"] and steps["control"] and max(steps["after"]) != max(steps["control"]):
        yield "the control was measured at another step than the run: the two are not alike"
    if not any(refit.kept for refit in refits):
        yield "no refit was kept: before and after are the same prior"
