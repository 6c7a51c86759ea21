"""Before and after a prior refit, beside the control that kept the old prior."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from flexgen.report.catalogue import (
    CHIEF,
    describe,
    number,
    ordered,
    plus_minus,
    signed,
    typeset,
    why_undefined,
)
from flexgen.report.curves import STANDARD_ERRORS, Curve, Point, RunError
from flexgen.report.run_files import RunFiles

WHEN = ("before", "swapped", "after", "control")
PAIRS = (("before", "swapped"), ("control", "after"))
"""What is to be told apart: the old prior and the new one, alone and after training on."""

# −log p(x) of each held-out datum is saved, so that models are compared on the same data.
_NLL = ("nll/samples", "nll/ais")
_TOLD_APART = 2.0  # standard errors
_MOST_WORSE = 4  # that the verdict names; all are in the table
_MUST_BE_ZERO = {
    "own/pag_posterior": "no such PAG can be believed: raise `num_temperatures` of the posterior "
    "score",
    "own/posterior_pag": "the posterior is not exact, and PAG of the posterior holds its error",
}

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
    gain: float = float("nan")

    def __str__(self) -> str:
        verdict = "kept" if self.kept else "not kept, the run went on from the old prior"
        if np.isfinite(self.gain):
            verdict += f" (held-out log p(x), by the codes: {signed(self.gain)} nats)"
        elif np.isfinite([self.distance_before, self.distance_after]).all():
            verdict += (
                f" ({self.distance}: old prior {number(self.distance_before)}, "
                f"learned prior {number(self.distance_after)})"
            )
        return f"refit at generator step {self.step:,}: {verdict}"


class Paired(NamedTuple):
    """A mean of differences over n data that two models were measured on, with its standard error,
    nats."""

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        sign = "+" if self.mean > 0 else ""
        return f"{sign}{typeset(plus_minus(self.mean, self.error))} nats ({self.told})"

    @property
    def told(self) -> str:
        """Whether it can be told from 0, and how surely."""
        sizes = abs(self.mean) / self.error if self.error else float("inf")
        if not sizes >= _TOLD_APART:
            return "cannot be told from no change"
        return f"{'a gain' if self.mean < 0 else 'a loss'}, {sizes:.1f} standard errors"


@dataclass(frozen=True)
class Comparison:
    """The measurements of a run before and after its refits, kept or not, and of its control.

    `points` gives of a metric "before", "swapped", "after" and "control", of these what was
    measured, `swapped` at most one step after the first refit; `paired` the differences of
    −log p(x) between two of them on the same data; the notes say what to know about it, one line
    each.
    """

    points: dict[str, dict[str, Point]]
    refits: tuple[Refit, ...]
    notes: tuple[str, ...]
    paired: dict[tuple[str, str], Paired] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether any refit was kept."""
        return any(refit.kept for refit in self.refits)

    @property
    def columns(self) -> list[str]:
        """Those of `WHEN` that were measured at all."""
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
        pair = self.paired.get(("control", "after"))
        if metric not in _NLL or pair is None:
            return signed(difference)
        return f"{'+' if difference > 0 else ''}{typeset(plus_minus(difference, pair.error))}"

    @property
    def verdict(self) -> list[str]:
        """What came of it, in sentences, what got worse among them."""
        first = next((refit for refit in self.refits if refit.kept), self.refits[-1])
        said = [f"At step {first.step:,} the run replaced its prior by one learned from codes."]
        if not self.kept:
            said = [
                f"The prior learned at step {first.step:,} was not kept, as it is no closer to "
                "held-out codes: the run went on with the old one."
            ]
        if (pair := self.paired.get(("before", "swapped"))) is not None:
            data = f"{pair.n} held-out data"
            said.append(f"With the generator as it was, −log p(x) of {data} changed by {pair}.")
        if self.kept and (pair := self.paired.get(("control", "after"))) is not None:
            said.append(
                f"After training on, −log p(x) of {pair.n} held-out data differs from the "
                f"control's by {pair}."
            )
        told = ["pag/posterior"] if "pag/posterior" in self.points else [*CHIEF]
        told = [m for m in told if {"before", "after"} <= self.points.get(m, {}).keys()]
        said += [self._told_change(metric) for metric in told[: 1 if self.paired else 2]]
        for control, therefore in _MUST_BE_ZERO.items():
            off = {w: p for w, p in self.points.get(control, {}).items() if p.misses(0)}
            if off:
                wrong = ", ".join(f"{number(point.value)} {when}" for when, point in off.items())
                said.append(
                    f"Codes of the model's own samples score {wrong} where 0 is right: {therefore}."
                )
        if worse := self._worse():
            said.append(f"Worse than the control, in one run, whose error is unknown: {worse}.")
        return said

    def _told_change(self, metric: str) -> str:
        at = self.points[metric]
        text = f"{describe(metric).label} went from {number(at['before'].value)}"
        text += f" to {number(at['after'].value)}"
        text += f" (control: {number(at['control'].value)})" if "control" in at else ""
        ends = [at["after"], at.get("control", at["before"])]
        low = [point.low for point in ends if point.low is not None]
        high = [point.high for point in ends if point.high is not None]
        overlap = len(low) == len(high) == len(ends) and max(low) <= min(high)
        return text + ("; their intervals overlap: no difference can be told." if overlap else ".")

    def _worse(self) -> str:
        """What is worse after than in the control, without an interval or an error of its own."""
        found = []
        for metric, at in self.points.items():
            better, difference = describe(metric).better, self.difference(metric)
            if metric in _NLL or not better or not difference or at["after"].low is not None:
                continue
            if (difference > 0) == (better == "lower"):
                values = number(at["after"].value), number(at["control"].value)
                found.append(f"{describe(metric).label} {values[0]} ({values[1]})")
        return ", ".join(found[:_MOST_WORSE]) + (", …" if len(found) > _MOST_WORSE else "")

    @property
    def lines(self) -> list[str]:
        """What to know beside the figures: each refit, what has no value and why, the notes."""
        values = ((m, p.value) for m, at in self.points.items() for p in at.values())
        gone = {metric: value for metric, value in values if np.isnan(value)}
        return [*map(str, self.refits), *why_undefined(gone), *self.notes]

    def __rich__(self) -> Group:
        """The table and its notes, for a terminal."""
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        narrow = len(self.columns) < len(WHEN)  # so that an interval is not cut in two
        grid.add_column("", overflow="fold")
        for when in self.columns:
            grid.add_column(when, justify="right", no_wrap=narrow, overflow="fold")
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
        said = Text(" ".join(self.verdict), style="bold")
        return Group(said, grid, *(Text(line) for line in lines))


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
    intervals |= {error for name, error in STANDARD_ERRORS.items() if name in compared}
    for metric in ordered(set(compared) - intervals):
        curve = run.curves[metric]
        if kept:
            old = _stages(run, curve.rows) <= _stages(run, np.array([0]))[0]
        else:
            old = curve.steps <= refits[-1].step
        at = {"before": _last(run, metric, old), "after": _last(run, metric, ~old)}
        soon = ~old & (curve.steps <= min(r.step for r in refits if r.kept or not kept) + 1)
        if kept and at["after"] is not None and soon.any() and not soon[-1]:
            at["swapped"] = _last(run, metric, soon)
        if run.control is not None and metric in run.control.curves:
            everything = np.ones(len(run.control.curves[metric]), dtype=bool)
            at["control"] = _last(run.control, metric, everything)
        points[metric] = {when: p for when in WHEN if (p := at.get(when)) is not None}
    notes, paired = [*_notes(run, points, refits)], {}
    measured = next((points[name] for name in _NLL if name in points), {})
    for when in PAIRS:
        try:
            if (pair := _paired(run, measured, *when)) is not None:
                paired[when] = pair
        except RunError as unpaired:
            notes.append(str(unpaired))
    if paired:
        notes.append("± of a difference: its standard error, paired over the held-out data")
    return Comparison(points, refits, tuple(notes), paired)


def _paired(run: RunFiles, at: dict[str, Point], old: str, new: str) -> Paired | None:
    """−log p(x) in `new` less that in `old`: on the same data, levels share most of their error.

    Raises:
        RunError: when a file is damaged, or the two were measured with other settings.
    """
    if not {old, new} <= at.keys():
        return None
    of = run.control if old == "control" else run
    assert of is not None  # whose point there is
    (before, how), (after, how_new) = of.nll_of_data(at[old].step), run.nll_of_data(at[new].step)
    if len(after) < 2 or after.keys() != before.keys():
        return None
    if how != how_new:
        raise RunError(
            run.path,
            f"−log p(x) was measured by {how or 'other settings'} ({old}) and by "
            f"{how_new or 'other settings'} ({new}), which cannot be compared; measure both alike "
            "with flexgen evaluate",
        )
    differences = np.array([after[index] - before[index] for index in after])
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return Paired(float(differences.mean()), error, len(differences))


def _refits(run: RunFiles) -> Iterator[Refit]:
    kept = run.curves.get("refit/kept")
    if kept is not None:
        name = next((name for name in _DISTANCES if f"{name}_after" in run.curves), "refit/energy")
        for row, step, value in zip(kept.rows, kept.steps, kept.values, strict=True):
            ends = (run.curves.get(f"{name}_{when}") for when in ("before", "after"))
            before, after = (_at_row(end, row) for end in ends)
            gain = _at_row(run.curves.get("refit/gain"), row)
            yield Refit(int(step), bool(value > 0), before, after, _DISTANCES[name], gain)
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
    error = _at_row(run.curves.get(STANDARD_ERRORS.get(metric, "")), curve.rows[-1])
    value, step = float(curve.values[-1]), int(curve.steps[-1])
    standard = None if np.isnan(error) else error
    known = not np.isnan([low, high]).any()
    return Point(value, low if known else None, high if known else None, step, standard)


def _notes(
    run: RunFiles, points: dict[str, dict[str, Point]], refits: tuple[Refit, ...]
) -> Iterator[str]:
    steps = {when: [at[when].step for at in points.values() if when in at] for when in WHEN}
    measured = []
    for when, found in steps.items():
        if not found and (when != "control" or run.control is not None):
            told = {"control": "in the control", "swapped": "right after the swap"}
            yield f"nothing was measured {told.get(when, when)}"
        elif found:
            some = f" (some metrics at {min(found):,})" if min(found) < max(found) else ""
            measured.append(f"{when} at {max(found):,}{some}")
    every = [point for at in points.values() for point in at.values()]
    if any(point.low is not None for point in every):
        yield "in brackets: 95 % bootstrap intervals"
    if any(point.error is not None for point in every):
        yield "± beside a value: its standard error over the data"
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
