"""A table of groups of runs: as text, CSV, LaTeX and a plot."""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from flexgen.files import write_atomically, write_text
from flexgen.report.catalogue import PALETTE, describe, mean_and_std, plus_minus
from flexgen.report.curves import mean_std
from flexgen.report.labels import Labels
from flexgen.report.latex import PREAMBLE, heading, label, latex_escape, one_line, value
from flexgen.untrusted import printable


@dataclass(frozen=True)
class Cell:
    """One metric over the runs of a group that logged it: a value each, and the mean of their
    spreads over the last evaluations, NaN for one."""

    values: tuple[float, ...]
    spread: float

    @property
    def count(self) -> int:
        """Number of runs with a value."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the runs, NaN without any."""
        return mean_std(self.values)[0]

    @property
    def std(self) -> float:
        """Sample standard deviation over the runs (ddof = 1), NaN for fewer than two."""
        return mean_std(self.values)[1]


@dataclass(frozen=True)
class Row:
    """The finished runs that differ in nothing but the seed; `settings` are values by override key,
    the same keys in every row of a table, and `cells` are by metric. A row that is not `ranked`, a
    difference or a floor, is never the best."""

    settings: dict[str, str]
    runs: tuple[Path, ...]
    seeds: tuple[int | None, ...]
    cells: dict[str, Cell]
    ranked: bool = True


@dataclass(frozen=True)
class Table:
    """Groups of runs, in their order, with mean ± sample standard deviation over seeds.

    A run's value is the mean over its `last` evaluations. `left_out` are the runs that are in no
    mean and why, `notes` what else to know, one line each.
    """

    without: ClassVar[str] = "Not in the means"

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    last: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The settings that tell the rows apart; the others stand in the caption."""
        keys = list(self.rows[0].settings)
        return [key for key in keys if len({row.settings[key] for row in self.rows}) > 1]

    @property
    def labels(self) -> Labels:
        """The rows' names by these settings."""
        return Labels.of([row.settings for row in self.rows], self.keys)

    def best(self, metric: str) -> list[bool]:
        """Of each row whether its mean is the best of a metric that has a better direction."""
        sign = {"lower": 1.0, "higher": -1.0}.get(describe(metric).better, np.nan)
        means = [sign * row.cells[metric].mean if row.ranked else np.nan for row in self.rows]
        known = {mean for mean in means if np.isfinite(mean)}
        return [len(known) > 1 and mean == min(known) for mean in means]

    @property
    def caption(self) -> str:
        """What the numbers are, and the settings that all rows share."""
        several = f"the mean of its last {self.last} evaluations"
        value = several if self.last > 1 else "its last evaluation"
        text = f"Mean ± sample standard deviation over n runs; the value of a run is {value}."
        if any(len(row.seeds) == 1 for row in self.rows):
            text += " One run has no deviation."
        if self.last > 1:
            text += " In brackets: the standard deviation of those evaluations within a run."
        if any(any(self.best(metric)) for metric in self.metrics):
            text += " *: the best mean of a column, which may lie within the spread of others."
        same = self.rows[0].settings.items()
        shared = ", ".join(f"{key}={text}" for key, text in same if key not in self.keys)
        return f"{text} All runs: {shared}." if shared else text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        labels = self.labels
        widest = max([len(labels.head), *map(len, labels.short)])
        room = min(widest, max(_LEAST_LABEL, options.max_width * 2 // 5)) if self.keys else 0
        for metrics in self._fitting(options.max_width - room - 9):
            grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
            if room:
                grid.add_column(Text(labels.head), width=room, overflow="fold")
            for metric in metrics:
                width = self._width(metric) - _GAP
                grid.add_column(Text(describe(metric).heading), justify="right", width=width)
            grid.add_column("n", justify="right")
            for at, row in enumerate(self.rows):
                cells = [self.text_cell(at, metric) for metric in metrics]
                name = [labels.short[at]] if room else []
                grid.add_row(*map(Text, [*name, *cells, str(len(row.seeds))]))
            yield grid
        yield from map(Text, labels.legend)
        yield Text(self.caption, style="dim")
        for line in self.notes:
            yield Text(f"Note: {line}")
        for line in self.left_out:
            yield Text(f"{self.without}: {line}", style="yellow")

    def text(self, width: int = 80) -> str:
        """The table as plain text; metrics that do not fit into `width` columns go below."""
        stream = io.StringIO()
        Console(file=stream, width=width, color_system=None).print(self)
        return stream.getvalue()

    def csv(self) -> str:
        """Full precision, one line a group: settings, n, seeds, and four columns a metric (mean,
        std, number of runs, spread within a run)."""
        keys = list(self.rows[0].settings)
        parts = ("mean", "std", "n", "spread")
        names = [f"{metric} {part}" for metric in self.metrics for part in parts]
        lines: list[list[object]] = [[*keys, "n", "seeds", *names]]
        for row in self.rows:
            line: list[object] = [row.settings[key] for key in keys]
            line += [len(row.seeds), " ".join(str(seed) for seed in row.seeds)]
            for cell in (row.cells[metric] for metric in self.metrics):
                std = "" if cell.count < 2 else cell.std
                spread = "" if self.last == 1 or np.isnan(cell.spread) else cell.spread
                line += [cell.mean if cell.count else "", std, cell.count, spread]
            lines.append(line)
        return csv_text(lines)

    def latex(self) -> str:
        """A booktabs `tabular` for each block of metrics that fits a page; caption and runs left
        out stand above as comments."""
        caption = self.caption.replace("*: the best", "Bold: the best")
        lines = [PREAMBLE, caption, *self.notes]
        lines += [f"{self.without.lower()}: {text}" for text in self.left_out]
        labels = self.labels
        lines = [f"% {one_line(text)}" for text in (*lines, *labels.legend)]
        widest = max([len(labels.head), *map(len, labels.short)]) if self.keys else 0
        long = widest > _LEAST_LABEL
        kind = (r"p{0.3\linewidth}" if long else "l") if self.keys else ""
        named = label if long else latex_escape
        for metrics in self._fitting(_LATEX_WIDTH - (21 if long else widest)):
            lines += [rf"\begin{{tabular}}{{{kind}r{'c' * len(metrics)}}}", r"\toprule"]
            heads = [named(labels.head)] if self.keys else []
            heads += ["$n$", *(heading(self._heading(metric)) for metric in metrics)]
            lines += [" & ".join(heads) + r" \\", r"\midrule"]
            for at, row in enumerate(self.rows):
                name = [named(labels.short[at])] if self.keys else []
                cells = [
                    value(cell.mean, cell.std, bold=self.best(m)[at]) if cell.count else "--"
                    for m, cell in ((m, row.cells[m]) for m in metrics)
                ]
                lines.append(" & ".join([*name, str(len(row.seeds)), *cells]) + r" \\")
            lines += [r"\bottomrule", r"\end{tabular}", "", r"\medskip", ""]
        return "\n".join(lines[:-3]) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Draws one panel a metric: mean, standard deviation and every run; writes a PNG."""
        labels = self.labels
        head = f"rows: {labels.head}; " if self.keys else ""
        note = f"{head}diamond and bar: mean ± standard deviation of the runs, which are the dots"
        return draw_panels(path, labels.short, self.rows, self.metrics, note=note)

    def save(self, folder: str | Path, name: str = "table") -> list[Path]:
        """Writes `name.txt`, `name.csv`, `name.tex` and `name.png` into the folder."""
        folder = Path(folder)
        files = [folder / f"{name}.{ending}" for ending in ("txt", "csv", "tex", "png")]
        for path, text in zip(files, (self.text(), self.csv(), self.latex()), strict=False):
            write_text(path, text)
        write_atomically(files[-1], self.plot)
        return files

    def text_cell(self, at: int, metric: str) -> str:
        """The mean of a row with its deviation, marked where it is the best."""
        row, best = self.rows[at], self.best(metric)
        cell = row.cells[metric]
        text = plus_minus(cell.mean, cell.std) if cell.count else "–"
        if not np.isnan(cell.spread):
            text += f" [{mean_and_std(cell.mean, cell.spread)[1]}]"
        if 0 < cell.count < len(row.seeds):
            text += f" (n={cell.count})"
        return f"* {text}" if best[at] else text

    def _heading(self, metric: str) -> list[str]:
        """A metric's heading in at most two lines, which are no wider than they must be."""
        text = describe(metric).heading
        width = max(len(self.text_cell(at, metric)) for at in range(len(self.rows)))
        broken = max(map(len, text.split())) > _LEAST_LABEL  # a word that no column is as wide as
        while len(lines := textwrap.wrap(text, width, break_long_words=broken)) > 2 or (
            lines[-1] in ("↓", "↑")
        ):
            width += 1
        return lines

    def _width(self, metric: str) -> int:
        cells = (self.text_cell(at, metric) for at in range(len(self.rows)))
        return _GAP + max(map(len, [*self._heading(metric), *cells]))

    def _fitting(self, width: int) -> Iterator[list[str]]:
        """The metrics in blocks that fit into the width."""
        block: list[str] = []
        used = 0
        for metric in self.metrics:
            needed = self._width(metric)
            if block and used + needed > width:
                yield block
                block, used = [], 0
            block.append(metric)
            used += needed
        yield block


_GAP = 3  # between two columns
_LEAST_LABEL = 28  # columns of a terminal that the rows' names may always take
_LATEX_WIDTH = 63  # characters across a page, without the column n


def draw_panels(
    path: str | Path, names: Sequence[str], rows: Sequence[Row], metrics: Sequence[str], *,
    error: Callable[[Cell], float] = lambda cell: cell.std, floor: Row | None = None,
    note: str = "",
) -> Path:  # fmt: skip
    """Draws one panel a metric, with the values of each row, their mean and its error; a PNG.

    The error is half the length of the mean's bar, of which there is none for NaN. A floor is drawn
    as a line in each panel, the rows then in one colour; a note stands below the panels.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context():
        # A `matplotlibrc` of the working directory may be anybody's, and names are no formulas.
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        across = min(4, max(1, len(metrics)))
        down = max(1, -(-len(metrics) // across))
        names = [textwrap.fill(name, 30) for name in names]
        lines = sum(1.6 + name.count("\n") for name in names)
        widest = max((len(line) for name in names for line in name.split("\n")), default=0)
        size = (0.6 + 0.075 * widest + 2.7 * across, 0.5 + (0.8 + 0.18 * lines) * down)
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
        for panel, metric in zip(panels, metrics, strict=False):
            for place, row in enumerate(rows):
                cell = row.cells[metric]
                colour = PALETTE[0] if floor else PALETTE[place % len(PALETTE)]
                half = error(cell)
                xerr = None if np.isnan(half) else half
                panel.plot(cell.values, [place] * cell.count, "o", color=colour, alpha=0.3, ms=4)
                panel.errorbar(cell.mean, place, xerr=xerr, fmt="D", color=colour, ms=5, capsize=3)
            if floor and floor.cells[metric].count:
                panel.axvline(floor.cells[metric].mean, color=PALETTE[1], ls="--", lw=1)
            panel.set_title(textwrap.fill(describe(metric).heading, 30), fontsize=10)
            panel.grid(axis="x", alpha=0.25)
            panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
            panel.margins(x=0.12)
        for panel in panels[len(metrics) :]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(max(1, len(rows)) - 0.5, -0.5)
        if note:
            figure.supxlabel(textwrap.fill(note, int(14 * size[0])), fontsize=9)
        FigureCanvasAgg(figure).print_png(str(path))
        return Path(path)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """The lines as CSV; text that a spreadsheet would compute has an apostrophe in front.

    It takes what begins with `=`, `+`, `-` or `@` for a formula, unless that is a number.
    """
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(map(_as_text, lines))
    return stream.getvalue()


def _as_text(cells: Sequence[object]) -> Iterator[object]:
    for cell in cells:
        text = printable(cell) if isinstance(cell, str) else ""
        if text.startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text):
            text = f"'{text}"
        yield text or cell


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE)
