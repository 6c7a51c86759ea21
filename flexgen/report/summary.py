"""A table of groups of runs: as text, CSV, LaTeX and a plot."""

import csv
import io
import re
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
    the same keys in every row of a table, and `cells` are by metric."""

    settings: dict[str, str]
    runs: tuple[Path, ...]
    seeds: tuple[int | None, ...]
    cells: dict[str, Cell]


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
    def caption(self) -> str:
        """What the numbers are, and the settings that all rows share."""
        several = f"the mean of its last {self.last} evaluations"
        value = several if self.last > 1 else "its last evaluation"
        text = f"Mean ± sample standard deviation over n runs; the value of a run is {value}."
        if self.last > 1:
            text += " In brackets: the standard deviation of those evaluations within a run."
        same = self.rows[0].settings.items()
        shared = ", ".join(f"{key}={text}" for key, text in same if key not in self.keys)
        return f"{text} All runs: {shared}." if shared else text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        names = [[row.settings[key] for key in self.keys] for row in self.rows]
        heads, below = self.keys, list[str]()
        widest = max((self._width(metric) for metric in self.metrics), default=0)
        if _width_of(heads, names) + widest > options.max_width:  # rich would cut every column
            below = [
                f"{number}: {', '.join(f'{key}={row.settings[key]}' for key in self.keys)}"
                for number, row in enumerate(self.rows, 1)
            ]
            heads, names = ["row"], [[str(number)] for number in range(1, len(self.rows) + 1)]
        for metrics in self._fitting(options.max_width - _width_of(heads, names)):
            grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
            for key in heads:
                grid.add_column(Text(key), no_wrap=True)
            grid.add_column("n", justify="right")
            for metric in metrics:
                grid.add_column(Text(describe(metric).heading), justify="right", no_wrap=True)
            for row, name in zip(self.rows, names, strict=True):
                cells = [*name, str(len(row.seeds))]
                cells += [self._text_cell(row, metric) for metric in metrics]
                grid.add_row(*map(Text, cells))
            yield grid
        yield from map(Text, below)
        yield Text(self.caption, style="dim")
        for line in self.notes:
            yield Text(f"Note: {line}")
        for line in self.left_out:
            yield Text(f"{self.without}: {line}", style="yellow")

    def text(self, width: int = 120) -> str:
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
        """A booktabs `tabular`; caption and runs left out stand above it as comments."""
        lines = [f"% {_one_line(text)}" for text in (self.caption, *self.notes)]
        lines += [f"% {self.without.lower()}: {_one_line(text)}" for text in self.left_out]
        lines += [f"\\begin{{tabular}}{{{'l' * len(self.keys)}r{'c' * len(self.metrics)}}}"]
        heads = [*map(latex_escape, self.keys), "$n$"]
        heads += [latex_escape(describe(metric).heading) for metric in self.metrics]
        lines += ["\\toprule", " & ".join(heads) + r" \\", "\\midrule"]
        for row in self.rows:
            cells = [latex_escape(row.settings[key]) for key in self.keys] + [str(len(row.seeds))]
            cells += [_latex_cell(row.cells[metric]) for metric in self.metrics]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Draws one panel a metric: mean, standard deviation and every run; writes a PNG."""
        names = [" · ".join(row.settings[key] for key in self.keys) for row in self.rows]
        return draw_panels(path, names, self.rows, self.metrics)

    def save(self, folder: str | Path, name: str = "table") -> list[Path]:
        """Writes `name.txt`, `name.csv`, `name.tex` and `name.png` into the folder."""
        folder = Path(folder)
        files = [folder / f"{name}.{ending}" for ending in ("txt", "csv", "tex", "png")]
        for path, text in zip(files, (self.text(), self.csv(), self.latex()), strict=False):
            write_text(path, text)
        write_atomically(files[-1], self.plot)
        return files

    def _text_cell(self, row: Row, metric: str) -> str:
        cell = row.cells[metric]
        if not cell.count:
            return "–"
        text = plus_minus(cell.mean, cell.std)
        if not np.isnan(cell.spread):
            text += f" [{mean_and_std(cell.mean, cell.spread)[1]}]"
        return text if cell.count == len(row.seeds) else f"{text} (n={cell.count})"

    def _width(self, metric: str) -> int:
        cells = [len(self._text_cell(row, metric)) for row in self.rows]
        return 3 + max(len(describe(metric).heading), *cells)

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


def _width_of(heads: Sequence[str], names: Sequence[Sequence[str]]) -> int:
    """Of the columns that name the rows, and of their n."""
    columns = zip(heads, *names, strict=True)
    return 6 + sum(3 + max(map(len, column)) for column in columns)


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

    with matplotlib.rc_context():
        # A `matplotlibrc` of the working directory may be anybody's, and names are no formulas.
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        across = min(4, max(1, len(metrics)))
        down = max(1, -(-len(metrics) // across))
        size = (1.5 + 2.8 * across, 0.4 + (0.8 + 0.3 * len(rows)) * down)
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
            panel.set_title(describe(metric).heading, fontsize=10)
            panel.grid(axis="x", alpha=0.25)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
            panel.margins(x=0.12)
        for panel in panels[len(metrics) :]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(max(1, len(rows)) - 0.5, -0.5)
        if note:
            figure.supxlabel(note, fontsize=9)
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

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after \\ and \midrule they would begin an argument
} | {character: f"\\{character}" for character in "&%$#_{}"}  # fmt: skip


def latex_escape(text: str) -> str:
    """The text with LaTeX's special characters made plain, on one line."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _latex_cell(cell: Cell) -> str:
    if not cell.count:
        return "--"
    if not np.isfinite(cell.mean):
        return str(cell.mean)
    text = plus_minus(cell.mean, cell.std).replace("±", r"\pm")
    return "$" + re.sub(r"e(?:\+|(-))0*(\d+)", r" \\times 10^{\1\2}", text) + "$"
