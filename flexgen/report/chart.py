"""Line charts as inline SVG: sharp at every size, and in the page's own light or dark colours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flexgen.report.catalogue import typeset
from flexgen.report.curves import Curve
from flexgen.report.markup import Html, join, tag

WIDTH, HEIGHT = 380, 232
LEFT, RIGHT, TOP, BOTTOM = 50.0, 368.0, 12.0, 186.0

_MOST_POINTS = 300
_BINS = 150

Scale = Callable[[np.ndarray | float], np.ndarray]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: what the legend calls it.
        steps: generator steps, `(n,)`.
        images: images seen, `(n,)`.
        values: `(n,)`; the line is broken at NaN.
        low: lower edge of a band around the line, `(n,)`, or None.
        high: upper edge of the band.
        style: a class of the style sheet: "series-0" …, with "control" or "reference".
        binned: whether each value is a mean over several logged ones.
    """

    label: str
    steps: np.ndarray
    images: np.ndarray
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    style: str
    binned: bool

    @classmethod
    def of(
        cls, label: str, curve: Curve, style: str, interval: tuple[Curve, Curve] | None = None
    ) -> "Line":
        """A line from a curve; more than 300 points become the means of 150 bins, with a band from
        the lowest to the highest value of each bin.

        Args:
            label: what the legend calls it.
            curve: the logged values.
            style: classes of the style sheet.
            interval: curves of the lower and upper ends of the metric's interval.
        """
        steps, images = curve.steps, curve.counters["images_seen"]
        if len(curve) > _MOST_POINTS:
            bins = np.array_split(np.arange(len(curve)), _BINS)
            values = np.array([_finite(curve.values[part]).mean() for part in bins])
            low = np.array([_finite(curve.values[part]).min() for part in bins])
            high = np.array([_finite(curve.values[part]).max() for part in bins])
            middle = [part[len(part) // 2] for part in bins]
            return cls(label, steps[middle], images[middle], values, low, high, style, True)
        if interval is None or not all(np.array_equal(end.rows, curve.rows) for end in interval):
            return cls(label, steps, images, curve.values, None, None, style, False)
        lower, upper = interval
        return cls(label, steps, images, curve.values, lower.values, upper.values, style, False)


def chart(
    lines: Sequence[Line],
    *,
    label: str,
    metrics: Sequence[str],
    marks: Sequence[tuple[int, str]] = (),
) -> Html:
    """Draws lines over generator steps, with the images seen below the steps.

    The vertical axis is logarithmic where all values are positive and span more than two decades.

    Args:
        lines: at least one; earlier ones are drawn on top.
        label: what a screen reader says.
        metrics: names under which the page's data holds the curves, for the pointer's read-out.
        marks: generator steps with a word each, drawn as vertical lines.
    """
    ys = np.concatenate(
        [part for line in lines for part in (line.values, line.low, line.high) if part is not None]
    )
    ys = ys[np.isfinite(ys)]
    if not len(ys):
        return tag("p", "No finite value was logged.", class_="empty")
    first, end = 0, max(1, *(int(line.steps[-1]) for line in lines))
    log = bool(ys.min() > 0 and ys.max() / ys.min() > 100)
    low, high = _limits(ys, log)

    def x(step: np.ndarray | float) -> np.ndarray:
        return LEFT + (np.asarray(step) - first) / (end - first) * (RIGHT - LEFT)

    def y(value: np.ndarray | float) -> np.ndarray:
        scaled = np.log10(value) if log else np.asarray(value)
        return BOTTOM - (scaled - low) / (high - low) * (BOTTOM - TOP)

    parts = [_y_axis(low, high, log, y), _x_axis(lines[0], end, x)]
    for step, word in marks:
        at, right = float(x(step)), x(step) > (LEFT + RIGHT) / 2
        parts.append(tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=TOP, y2=BOTTOM, class_="mark"))
        anchor, away = ("end", -4) if right else ("start", 4)
        parts.append(
            tag("text", word, x=f"{at + away:.1f}", y=TOP + 8, text_anchor=anchor, class_="word")
        )
    parts += [_drawn(line, x(line.steps), y) for line in reversed(lines)]
    parts.append(tag("line", y1=TOP, y2=BOTTOM, class_="cursor"))
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        class_="chart",
        data_metrics=" ".join(metrics),
        data_axis=f"{LEFT} {RIGHT} {first} {end}",
    )


def ticks(low: float, high: float, count: int = 5) -> np.ndarray:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `count`."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next((m for m in (1, 2, 5) if m * power >= rough * 0.999), 10)
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step + 0.0


def compact(value: float) -> str:
    """A count in few characters: 1500 is "1.5k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite if len(finite) else np.array([np.nan])


def _limits(ys: np.ndarray, log: bool) -> tuple[float, float]:
    if log:
        low, high = np.log10(ys.min()), np.log10(ys.max())
    else:
        low, high = ys.min(), ys.max()
        if 0 <= low < 0.5 * high:
            low = 0.0
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - (0 if low == 0 and not log else pad)), float(high + pad)


def _y_axis(low: float, high: float, log: bool, y: Scale) -> Html:
    if log:
        decades = np.arange(np.ceil(low), np.floor(high) + 1)
        values = 10.0 ** decades[:: 1 + len(decades) // 7]
        texts = [compact(value) for value in values]
    else:
        values = ticks(low, high)
        step = np.diff(values).min(initial=high - low)
        decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        large = np.abs(values).max(initial=0) >= 10_000 and step >= 10
        texts = [compact(value) if large else f"{value:.{decimals}f}" for value in values]
    parts = []
    for value, text in zip(values, texts, strict=True):
        at = f"{float(y(value)):.1f}"
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", typeset(text), x=LEFT - 7, y=at, dy="0.32em", text_anchor="end"))
    return join(*parts)


def _x_axis(line: Line, end: int, x: Scale) -> Html:
    parts = [
        tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"),
        tag("text", "steps", x=LEFT - 12, y=BOTTOM + 17, text_anchor="end", class_="unit"),
        tag("text", "images", x=LEFT - 12, y=BOTTOM + 33, text_anchor="end", class_="unit"),
    ]
    # The origin is the start of training: no step, no image.
    known_steps, known_images = np.append(0, line.steps), np.append(0, line.images)
    for step in ticks(0, end, 4):
        at = f"{float(x(step)):.1f}"
        seen = float(np.interp(step, known_steps, known_images))
        anchor = "end" if float(at) > RIGHT - 8 else "middle"
        parts.append(tag("line", x1=at, x2=at, y1=BOTTOM, y2=BOTTOM + 4, class_="axis"))
        parts.append(tag("text", compact(step), x=at, y=BOTTOM + 17, text_anchor=anchor))
        if step <= known_steps[-1]:
            parts.append(
                tag(
                    "text",
                    compact(seen),
                    x=at,
                    y=BOTTOM + 33,
                    text_anchor=anchor,
                    class_="unit",
                )
            )
    return join(*parts)


def _drawn(line: Line, xs: np.ndarray, y: Scale) -> Html:
    parts = []
    for piece in _pieces(line.values):
        if line.low is not None and line.high is not None and len(piece) > 1:
            edge = np.concatenate([line.high[piece], line.low[piece][::-1]])
            if np.isfinite(edge).all():
                points = _points(np.concatenate([xs[piece], xs[piece][::-1]]), y(edge))
                parts.append(tag("polygon", points=points, class_="band"))
        parts.append(tag("path", d=f"M{_points(xs[piece], y(line.values[piece]))}", class_="line"))
    if len(line.values) <= 40:
        for i in np.flatnonzero(np.isfinite(line.values)):
            low, high = (None if e is None else e[i] for e in (line.low, line.high))
            if low is not None and high is not None and np.isfinite([low, high]).all():
                at = f"{xs[i]:.1f}"
                ends = {"y1": f"{float(y(low)):.1f}", "y2": f"{float(y(high)):.1f}"}
                parts.append(tag("line", x1=at, x2=at, **ends, class_="whisker"))
            parts.append(
                tag("circle", cx=f"{xs[i]:.1f}", cy=f"{float(y(line.values[i])):.1f}", r=2.6)
            )
    parts += [
        tag("text", "×", x=f"{xs[i]:.1f}", y=BOTTOM - 3, text_anchor="middle", class_="lost")
        for i in np.flatnonzero(~np.isfinite(line.values))
    ]
    return tag("g", *parts, class_=line.style)


def _pieces(values: np.ndarray) -> list[np.ndarray]:
    """Indices of the stretches without NaN."""
    finite = np.isfinite(values)
    cuts = np.flatnonzero(np.diff(finite.astype(int))) + 1
    return [part for part in np.split(np.arange(len(values)), cuts) if finite[part].all()]


def _points(xs: np.ndarray, ys: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
