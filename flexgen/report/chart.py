"""Line charts as inline SVG: sharp at every size, and in the page's own light or dark colours."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexgen.report.catalogue import typeset
from flexgen.report.curves import Curve

_MOST_POINTS = 300
_BINS = 150
_MOST_DOTS = 40


@dataclass(frozen=True)
class Line:
    """One line of a chart: all arrays `(n,)`; broken at NaN; `low` and `high` edge a band.

    `style` is a class of the style sheet, "series-0" …, with "control" or "reference"; in a
    `binned` line each value is a mean over several logged ones.
    """

    steps: np.ndarray
    images: np.ndarray
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    style: str
    binned: bool

    @classmethod
    def of(cls, curve: Curve, style: str = "", interval: Sequence[Curve] = ()) -> "Line":
        """A line from a curve, and from those of the ends of its interval; more than 300 points
        become the means of 150 bins, with a band from the lowest to the highest value of each."""
        steps, images = curve.steps, curve.counters["images_seen"]
        if len(curve) > _MOST_POINTS:
            ends = np.linspace(0, len(curve), _BINS + 1).astype(int)
            bins = [curve.values[a:b] for a, b in itertools.pairwise(ends)]
            finite = [
                v[np.isfinite(v)] if np.isfinite(v).any() else np.array([np.nan]) for v in bins
            ]
            mean, lowest, highest = np.array([(v.mean(), v.min(), v.max()) for v in finite]).T
            middle = (ends[:-1] + ends[1:]) // 2
            return cls(steps[middle], images[middle], mean, lowest, highest, style, True)
        sides = [end.values for end in interval if np.array_equal(end.rows, curve.rows)]
        low, high = (sides[0], sides[1]) if len(sides) == 2 else (None, None)
        return cls(steps, images, curve.values, low, high, style, False)

    def pieces(self) -> list[np.ndarray]:
        """Indices of the stretches of finite values."""
        finite = np.isfinite(self.values)
        cuts = np.flatnonzero(np.diff(finite.astype(int))) + 1
        return [part for part in np.split(np.arange(len(finite)), cuts) if finite[part].all()]

    def non_finite_steps(self) -> np.ndarray:
        """The generator steps whose value is not finite."""
        return self.steps[~np.isfinite(self.values)]


class Chart:
    """Lines over generator steps with the images seen below them, placed for `chart.svg`.

    The vertical axis is logarithmic where all values are positive and span more than two decades.
    Earlier lines are drawn on top; a screen reader says the label; the pointer's read-out finds the
    curves by `metrics`; `marks` are steps with a word each, drawn as vertical lines.
    """

    size = (380, 232)
    frame = (50.0, 368.0, 12.0, 186.0)  # left, right, top, bottom

    def __init__(
        self, lines: Sequence[Line], *, label: str, metrics: Sequence[str],
        marks: Sequence[tuple[int, str]] = (),
    ) -> None:  # fmt: skip
        self.lines, self.label, self.metrics, self.marks = lines, label, metrics, marks
        parts = [part for line in lines for part in (line.values, line.low, line.high)]
        values = np.concatenate([part for part in parts if part is not None])
        values = values[np.isfinite(values)]
        self.drawable = len(values) > 0
        self.end = max(1, *(int(line.steps[-1]) for line in lines))
        self.log = self.drawable and bool(values.min() > 0 and values.max() / values.min() > 100)
        self._low, self._high = _limits(values, self.log) if self.drawable else (0.0, 1.0)

    def x(self, step: float) -> float:
        """Where a generator step is, from the left."""
        return round(float(self._x(step)), 1)

    def y(self, value: float) -> float:
        """Where a value is, from the top."""
        return round(float(self._y(value)), 1)

    def _x(self, step: Any) -> Any:
        left, right, _, _ = self.frame
        return left + step / self.end * (right - left)

    def _y(self, value: Any) -> Any:
        _, _, top, bottom = self.frame
        height = ((np.log10(value) if self.log else value) - self._low) / (self._high - self._low)
        return bottom - height * (bottom - top)

    def y_ticks(self) -> list[tuple[float, str]]:
        """Heights and texts of the horizontal lines."""
        if self.log:
            decades = np.arange(np.ceil(self._low), np.floor(self._high) + 1)
            values = 10.0 ** decades[:: 1 + len(decades) // 7]
            texts = [compact(value) for value in values]
        else:
            values = ticks(self._low, self._high)
            texts = axis_texts(values, self._high - self._low)
        return [(self.y(value), typeset(text)) for value, text in zip(values, texts, strict=True)]

    def x_ticks(self) -> list[tuple[float, str, str]]:
        """Places of round steps, the steps, and the images seen by then where they are known."""
        # The origin is the start of training: no step, no image.
        steps, images = (np.append(0, part) for part in (self.lines[0].steps, self.lines[0].images))
        at = ticks(0, self.end, 4)
        seen = np.interp(at, steps, images, right=np.nan)
        texts = ["" if np.isnan(count) else compact(float(count)) for count in seen]
        return [(self.x(t), compact(t), text) for t, text in zip(at, texts, strict=True)]

    def band(self, line: Line, piece: np.ndarray) -> str:
        """The outline of the band around a piece, empty where there is none."""
        if line.low is None or line.high is None or len(piece) < 2:
            return ""
        edge = np.concatenate([line.high[piece], line.low[piece][::-1]])
        if not np.isfinite(edge).all():
            return ""
        return self.points(np.concatenate([line.steps[piece], line.steps[piece][::-1]]), edge)

    def dots(self, line: Line) -> tuple[str, str]:
        """Paths of a short line's values and of their intervals, `M x,y` each; or empty."""
        if len(line.values) > _MOST_DOTS:
            return "", ""
        known = np.isfinite(line.values)
        dots = "".join(f"M{at}h0" for at in self._places(line.steps[known], line.values[known]))
        if line.low is None or line.high is None:
            return dots, ""
        known = known & np.isfinite(line.low) & np.isfinite(line.high)
        ends = (self._places(line.steps[known], end[known]) for end in (line.low, line.high))
        return dots, "".join(f"M{low}L{high}" for low, high in zip(*ends, strict=True))

    def points(self, steps: np.ndarray, values: np.ndarray) -> str:
        """Places of values, `x,y` each."""
        return " ".join(self._places(steps, values))

    def _places(self, steps: np.ndarray, values: np.ndarray) -> list[str]:
        x, y = np.round(self._x(steps), 1).tolist(), np.round(self._y(values), 1).tolist()
        return [f"{a},{b}" for a, b in zip(x, y, strict=True)]


def ticks(low: float, high: float, count: int = 5) -> np.ndarray:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `count`."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next((m for m in (1, 2, 5) if m * power >= rough * 0.999), 10)
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step + 0.0


def axis_texts(values: np.ndarray, width: float = 1.0) -> list[str]:
    """Round numbers of an axis of some width as text, with as many decimals as tell them apart."""
    gaps = np.diff(values)
    step = gaps[gaps > 0].min(initial=width) or 1.0
    decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
    large = np.abs(values).max(initial=0) >= 10_000 and step >= 10
    return [compact(value) if large else f"{value:.{decimals}f}" for value in values]


def compact(value: float) -> str:
    """A count in few characters: 1500 is "1.5k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _limits(ys: np.ndarray, log: bool) -> tuple[float, float]:
    low, high = ys.min(), ys.max()
    if log:
        low, high = np.log10(low), np.log10(high)
    elif 0 <= low < 0.5 * high:
        low = 0.0
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - (0 if low == 0 and not log else pad)), float(high + pad)
