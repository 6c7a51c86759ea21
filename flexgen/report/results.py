"""The sections of a page that show measurements: the result, the prior's agreement, the curves."""

from collections.abc import Iterator

import numpy as np
from safetensors import SafetensorError, safe_open

from flexgen.report.catalogue import (
    IN_OTHER_PANELS,
    PANELS,
    describe,
    mean_and_std,
    number,
    ordered,
    typeset,
)
from flexgen.report.chart import Line, chart
from flexgen.report.comparison import WHEN, Comparison, Point, signed
from flexgen.report.curves import Curve
from flexgen.report.markup import Html, join, tag
from flexgen.report.run import Run

CHIEF = (
    "pag/unit",
    "nll/samples",
    "emd/samples",
    "fid",
    "kid",
    "inception",
    "modes/captured",
    "modes/high_quality",
)
"""Metrics that get a tile, the first three that a run has."""

_BESIDE_PAG = (
    "pag/literal",
    "pag/kl",
    "pag/kl_mean",
    "reversal/error",
    "reversal/converged",
    "own/pag_reversed",
    "own/pag_true",
    "own/error",
)

_LAST = 5


def figure(metric: str, point: Point, when: str | None = None) -> Html:
    """A number that a script can find: `data-metric`, `data-value`, `data-when`, its interval."""
    return tag(
        "span",
        typeset(number(point.value)),
        data_metric=metric,
        data_value=repr(point.value),
        data_when=when,
        data_low=None if point.low is None else repr(point.low),
        data_high=None if point.high is None else repr(point.high),
        data_step=point.step,
    )


def final(run: Run, metric: str) -> Point | None:
    """The metric at the end of the run with its interval, None where it was never logged."""
    value = run.value(metric)
    if value is None:
        return None
    ends = [run.final.get(f"{metric}_{end}") for end in ("low", "high")]
    low, high = (end if end is not None and np.isfinite(end) else None for end in ends)
    return Point(value.mean, low, high, value.step)


def result(run: Run, comparison: Comparison | None) -> Html:
    """The headline: tiles, then before, after and control, or the final values."""
    warning = not run.finished and tag("p", f"This run is {run.status}.", class_="warning")
    if comparison is None:
        return join(warning, _tiles(run), tag("div", _final_table(run), class_="wide"))
    more = tag(
        "details",
        tag("summary", "Final value of every metric"),
        tag("div", tag("div", _final_table(run), class_="wide")),
    )
    return join(
        warning,
        tag("p", _sentence(comparison), class_="lead"),
        _compared_tiles(comparison),
        tag("div", _compared_table(comparison), class_="wide"),
        _notes([str(refit) for refit in comparison.refits] + list(comparison.notes)),
        more,
    )


def agreement(run: Run) -> Html | None:
    """PAG with its interval, and beside it what its reading needs; None where none was logged."""
    point = final(run, "pag/unit")
    if point is None:
        return None
    names = ["pag/unit", *(name for name in _BESIDE_PAG if name in run.final)]
    codes = _codes(run)
    return join(
        tag(
            "p",
            "How far the codes that data induce are from the prior: 0 nats is agreement, up to "
            "sampling error. The score belongs to the codes, so the optimiser, the reconstruction "
            "error and the score of the generator’s own reversed samples are read with it.",
        ),
        tag("dl", *(_fact(run, name) for name in names), class_="values"),
        codes and tag("p", codes, class_="quiet after-grid"),
    )


def _fact(run: Run, metric: str) -> Html:
    point, about = final(run, metric), describe(metric)
    assert point is not None
    return tag(
        "div",
        tag("dt", about.label, tag("small", about.note)),
        tag("dd", figure(metric, point), _below(point)),
    )


def curves(run: Run, comparison: Comparison | None) -> Html | None:
    """Every curve in small panels, the control's dashed; None for a run without curves."""
    marks = [
        (refit.step, "refit" if refit.kept else "refit, not kept")
        for refit in (comparison.refits if comparison else ())
    ]
    panels = [_panel(run, title, names, marks) for title, names in _panels(run)]
    if not panels:
        return None
    key = "Steps are generator steps. × marks a value that is not finite."
    if run.control is not None:
        key += " Dashed: the control, which trained as long from the old prior."
    return join(tag("p", key, class_="quiet"), tag("div", *panels, class_="figures"))


def _sentence(comparison: Comparison) -> str:
    first = next((r for r in comparison.refits if r.kept), comparison.refits[-1])
    if comparison.kept:
        text = f"At step {first.step:,} the run replaced its prior by one learned from codes."
    else:
        text = f"The prior learned at step {first.step:,} was not kept: the old one went on."
    chief = [m for m in CHIEF if {"before", "after"} <= comparison.points.get(m, {}).keys()]
    for metric in chief[:2]:
        at = comparison.points[metric]
        text += f" {describe(metric).label} went from {number(at['before'].value)}"
        text += f" to {number(at['after'].value)}"
        text += f" (control: {number(at['control'].value)})." if "control" in at else "."
    return text


def _tiles(run: Run) -> Html | None:
    tiles = []
    for metric in [name for name in CHIEF if run.value(name) is not None][:3]:
        point = final(run, metric)
        assert point is not None
        shown = tag("span", figure(metric, point), class_="big")
        floor = run.value("emd/floor") if metric == "emd/samples" else None
        below = point.interval or (f"noise floor {number(floor.mean)}" if floor else "")
        tiles.append(_tile(metric, shown, tag("span", below, class_="range")))
    return tag("div", *tiles, class_="tiles") if tiles else None


def _compared_tiles(comparison: Comparison) -> Html | None:
    chief = [m for m in CHIEF if len(comparison.points.get(m, {})) > 1][:3]
    tiles = [_tile(metric, _dots(metric, comparison.points[metric])) for metric in chief]
    return tag("div", *tiles, class_="tiles") if tiles else None


def _tile(metric: str, *content: Html) -> Html:
    about = describe(metric)
    better = f"; {about.better} is better" if about.better else ""
    name = tag("span", about.label, class_="name")
    small = tag("span", about.note + better, class_="about")
    return tag("div", name, small, *content, class_="tile")


def _dots(metric: str, at: dict[str, Point]) -> Html:
    """Before, after and control as dots with their intervals on one scale."""
    ends = [e for p in at.values() for e in (p.value, p.low, p.high) if e is not None]
    finite = [end for end in ends if np.isfinite(end)] or [0.0]
    low = min(0.0, *finite)  # from zero, so that a difference looks no larger than it is
    width = (max(finite) - low) or 1.0

    def place(value: float) -> float:
        return 4 + 92 * (value - low) / width

    parts: list[Html] = []
    for when, point in ((when, at[when]) for when in WHEN if when in at):
        marks = []
        if point.low is not None and point.high is not None:
            start, end = place(point.low), place(point.high)
            style = f"left:{start:.2f}%;width:{end - start:.2f}%"
            marks.append(tag("i", class_="span", style=style))
        if np.isfinite(point.value):
            marks.append(tag("i", class_="dot", style=f"left:{place(point.value):.2f}%"))
        parts += [
            tag("span", when, class_="who"),
            tag("span", *marks, class_=f"track {when}"),
            tag("span", typeset(number(point.value)), _below(point), class_="value"),
        ]
    return tag("div", *parts, class_="dots", aria_hidden="true")


def _compared_table(comparison: Comparison) -> Html:
    columns = comparison.columns
    with_delta = "control" in columns
    head = [tag("th", "Metric"), *(tag("th", when) for when in columns)]
    head += [tag("th", "after − control", class_="delta")] if with_delta else []
    rows = []
    for metric, at in comparison.points.items():
        about = describe(metric)
        cells = [tag("th", f"{about.label}\u00a0{about.arrow}", tag("small", about.note))]
        cells += [tag("td", *_cell(metric, at.get(when), when)) for when in columns]
        if with_delta:
            difference = comparison.difference(metric)
            cells.append(
                tag("td", "–" if difference is None else signed(difference), class_="delta")
            )
        rows.append(tag("tr", *cells))
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))


def _cell(metric: str, point: Point | None, when: str) -> Iterator[object]:
    if point is None:
        yield "–"
        return
    yield figure(metric, point, when)
    yield _below(point)


def _below(point: Point) -> Html | None:
    return tag("small", point.interval) if point.interval else None


def _final_table(run: Run) -> Html:
    rows = []
    for metric in ordered(set(run.final) - IN_OTHER_PANELS):
        point, tail = final(run, metric), run.value(metric, _LAST)
        assert point is not None
        assert tail is not None
        swing = " ± ".join(filter(None, mean_and_std(tail.mean, tail.spread)))
        about = describe(metric)
        cells = [
            tag("th", f"{about.label}\u00a0{about.arrow}", tag("small", about.note or metric)),
            tag(
                "td",
                figure(metric, point),
                _below(point),
            ),
            tag("td", typeset(swing) if tail.count > 1 else "–"),
            tag("td", f"{point.step:,}"),
        ]
        rows.append(tag("tr", *cells))
    heads = ("Metric", "last", f"mean ± std of the last {_LAST}", "at step")
    head = tag("tr", *(tag("th", text) for text in heads))
    return tag("table", tag("thead", head), tag("tbody", *rows))


def _codes(run: Run) -> str | None:
    """What the last saved codes say about how they were found."""
    if not run.codes:
        return None
    step, file = list(run.codes.items())[-1]
    try:
        with safe_open(file, framework="np") as content:
            about = content.metadata() or {}
    except (SafetensorError, OSError) as error:
        return f"The codes of step {step:,} cannot be read: {error}"
    text = ", ".join(f"{key} {value}" for key, value in sorted(about.items()))
    return f"Codes saved at step {step:,}" + (f": {text}." if text else ", without a description.")


def _panels(run: Run) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The known panels that have a curve of two points, then every other metric by itself."""
    drawn = {name for name, curve in run.curves.items() if len(curve) > 1} - IN_OTHER_PANELS
    drawn = {name for name in drawn if not name.startswith("refit/")}
    for title, names in PANELS:
        found = tuple(name for name in names if name in drawn)
        if found and found != ("emd/floor",):
            yield title, found
    known = {name for _, names in PANELS for name in names}
    for name in ordered(drawn - known):
        if name.removesuffix("_low").removesuffix("_high") not in drawn - {name}:
            yield describe(name).label, (name,)


def _panel(run: Run, title: str, names: tuple[str, ...], marks: list[tuple[int, str]]) -> Html:
    lines, keys = [], []
    alone = sum(not name.endswith("floor") for name in names) == 1
    for i, name in enumerate(names):
        label = describe(name).label
        style = "reference" if name.endswith("floor") else f"series-{i % 4}"
        point = final(run, name)
        assert point is not None
        lines.append(Line.of(label, run.curves[name], style, _ends(run.curves, name)))
        keys.append(tag("span", label, " ", tag("b", figure(name, point)), class_=style))
        if run.control is None or name not in run.control.curves or style == "reference":
            continue
        # By itself the control has a colour of its own; among several lines it keeps the metric's.
        style = "series-control control" if alone else f"{style} control"
        curve = run.control.curves[name]
        lines.append(Line.of(f"{label}, control", curve, style))
        last = tag("b", typeset(number(float(curve.values[-1]))))
        keys.append(tag("span", "control ", last, class_=style))
    binned = "Line: mean of each of 150 bins; band: lowest to highest." if lines[0].binned else ""
    if not binned and lines[0].low is not None:
        binned = "Band: bootstrap interval."
    return tag(
        "figure",
        tag("figcaption", tag("div", title, class_="top"), tag("div", *keys, class_="key")),
        chart(lines, label=f"{title} over generator steps", metrics=names, marks=marks),
        binned and tag("p", binned),
        class_="panel",
    )


def _ends(curves: dict[str, Curve], name: str) -> tuple[Curve, Curve] | None:
    if f"{name}_low" in curves and f"{name}_high" in curves:
        return curves[f"{name}_low"], curves[f"{name}_high"]
    return None


def _notes(lines: list[str]) -> Html:
    return tag(
        "ul", *(tag("li", line[:1].upper() + line[1:] + ".") for line in lines), class_="notes"
    )
