"""Charts of several runs: curves with a band over seeds, and means with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flexgen.report.catalogue import describe, typeset
from flexgen.report.chart import Chart, Line, axis_texts, ticks
from flexgen.report.curves import Curve, t_half_width
from flexgen.report.run_files import RunFiles
from flexgen.report.summary import Table

_MOST_GROUPS = 8  # whose lines can be told apart
_MOST_PANELS = 12


class Grouping(NamedTuple):
    """The runs by one setting, or by all that differ: a chart a metric, with the groups' names."""

    name: str
    charts: list[tuple[str, Chart]]
    keys: list[tuple[str, str]]
    lines: dict[str, dict[str, Line]]
    note: str


def groupings(table: Table, runs: Sequence[RunFiles]) -> list[Grouping]:
    """Curves over seeds by all settings that differ, then by each alone; none without curves."""
    by_path = {run.path: run for run in runs}
    found = []
    rows = [(row, [by_path[path] for path in row.runs if path in by_path]) for row in table.rows]
    for name, keys in [("all settings", table.keys), *((key, [key]) for key in table.keys)]:
        if name != "all settings" and len(table.keys) == 1:
            continue
        members: dict[str, list[RunFiles]] = {}
        for (row, those), short in zip(rows, table.labels.short, strict=True):
            label = short if len(keys) != 1 else row.settings[keys[0]]
            members.setdefault(label if keys else "all runs", []).extend(those)
        if grouping := _grouping(name, members, table.metrics):
            found.append(grouping)
    return found


def _grouping(
    name: str, members: dict[str, list[RunFiles]], metrics: Sequence[str]
) -> Grouping | None:
    shown = dict(list(members.items())[:_MOST_GROUPS])
    lines: dict[str, dict[str, Line]] = {label: {} for label in shown}
    losses = sorted({m for runs in shown.values() for run in runs for m in run.curves
                     if m.startswith("loss/")})  # fmt: skip
    charts: list[tuple[str, Chart]] = []
    for metric in [*metrics, *(loss for loss in losses if loss not in metrics)]:
        for i, (label, runs) in enumerate(shown.items()):
            curves = [run.curves[metric] for run in runs if metric in run.curves]
            if any(len(curve) > 1 for curve in curves):
                lines[label][metric] = over_seeds(curves, f"series-{i}")
        drawn = [found[metric] for found in lines.values() if metric in found]
        if drawn and len(charts) < _MOST_PANELS:
            about = describe(metric)
            chart = Chart(drawn, label=f"{about.label} over generator steps", metrics=[metric])
            charts.append((metric, chart))
    keys = [(label, f"series-{i}") for i, label in enumerate(shown)]
    left = len(members) - len(shown)
    note = f"The first {len(shown)} of {len(members)} groups are drawn." if left > 0 else ""
    return Grouping(name, charts, keys, lines, note) if charts else None


def over_seeds(curves: Sequence[Curve], style: str) -> Line:
    """The mean over runs at each step that any of them logged, with a band of one sample standard
    deviation where two or more did."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    values = np.full((len(curves), len(steps)), np.nan)
    images = np.zeros(len(steps))
    for row, curve in zip(values, curves, strict=True):
        at = np.searchsorted(steps, curve.steps)
        row[at], images[at] = curve.values, curve.counters["images_seen"]
    there = np.isfinite(values)
    n = there.sum(0)
    filled = np.where(there, values, 0.0)
    mean = np.where(n > 0, filled.sum(0) / np.maximum(n, 1), np.nan)
    square = np.where(there, (values - mean) ** 2, 0.0).sum(0)
    std = np.where(n > 1, np.sqrt(square / np.maximum(n - 1, 1)), 0.0)
    if not (n > 1).any():
        return Line(steps, images, mean, None, None, style, False)
    return Line(steps, images, mean, mean - std, mean + std, style, False)


class Dot(NamedTuple):
    """A row of a dot plot, in per cent of the axis: its mean, its interval as far as it is on the
    axis, whether that goes on to the left and to the right, and the runs."""

    label: str
    mean: float
    low: float
    high: float
    cut: tuple[bool, bool]
    runs: list[float]
    text: str
    best: bool


@dataclass(frozen=True)
class DotPlot:
    """A metric of all rows on an axis from the lowest to the highest run, so that differences show;
    `ticks` are places in per cent with their texts."""

    metric: str
    dots: list[Dot]
    ticks: list[tuple[float, str]]


def dot_plots(table: Table) -> list[DotPlot]:
    """One a metric that two rows have, with the 95 % t-interval of each mean over the runs."""
    found = []
    for metric in table.metrics:
        cells = [row.cells[metric] for row in table.rows]
        values = np.array([value for cell in cells for value in cell.values])
        values = values[np.isfinite(values)]
        if sum(np.isfinite(cell.mean) for cell in cells) < 2 or not np.ptp(values):
            continue
        pad = 0.06 * float(np.ptp(values))
        left, right = float(values.min()) - pad, float(values.max()) + pad

        def place(value: float, left: float = left, right: float = right) -> float:
            return round(float(np.clip(100 * (value - left) / (right - left), 0, 100)), 2)

        dots = []
        rows = zip(table.labels.short, cells, table.best(metric), table.rows, strict=True)
        for at, (label, cell, best, _) in enumerate(rows):
            if not np.isfinite(cell.mean):
                continue
            half = t_half_width(cell.count) * cell.std
            low, high = cell.mean - half, cell.mean + half
            cut = (bool(low < left), bool(high > right))
            ends = (place(low), place(high)) if np.isfinite(half) else (place(cell.mean),) * 2
            runs = [place(value) for value in cell.values if np.isfinite(value)]
            text = table.text_cell(at, metric).removeprefix("* ")
            dots.append(Dot(label, place(cell.mean), *ends, cut, runs, text, best))
        at_ticks = ticks(left, right, 3)
        texts = axis_texts(at_ticks)
        marks = [(place(t), typeset(text)) for t, text in zip(at_ticks, texts, strict=True)]
        found.append(DotPlot(metric, dots, marks))
    return found
