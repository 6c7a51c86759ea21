"""Several priors of one generator as a table: text, CSV, LaTeX and a plot with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flexgen.files import write_text
from flexgen.report.catalogue import ordered
from flexgen.report.curves import t_half_width
from flexgen.report.summary import Cell, Row, Table, csv_text, draw_panels
from flexgen.untrusted import printable

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class PriorRow:
    """What was measured under one prior, labelled as it was asked for, or why it could not be.

    `values` are metrics of each set of samples, those of all sets together in the first alone;
    where data stand in the place of samples (`is_data`) they are the floor of every metric.
    """

    label: str
    values: Sequence[dict[str, float]]
    failed: str | None = None
    is_data: bool = False


@dataclass(frozen=True)
class PriorTable(Table):
    """Priors with mean ± sample standard deviation and a 95 % interval over sets of samples."""

    without = "Not measured"

    measured: tuple[PriorRow, ...]
    about: str

    @classmethod
    def of(cls, measured: Sequence[PriorRow], about: str) -> "PriorTable":
        """The table of what was measured, in this order."""
        measured = [replace(row, label=printable(row.label)) for row in measured]
        metrics = ordered({name for row in measured for values in row.values for name in values})
        rows = []
        for row in measured:
            values = {m: tuple(v[m] for v in row.values if m in v) for m in metrics}
            cells = {metric: Cell(found, float("nan")) for metric, found in values.items()}
            rows.append(Row({"prior": row.label}, (), tuple(range(len(row.values))), cells,
                            not row.is_data))  # fmt: skip
        failed = tuple(f"{row.label}: {row.failed}" for row in measured if row.failed)
        return cls(tuple(rows), tuple(metrics), 1, failed, (), tuple(measured), about)

    @property
    def caption(self) -> str:
        """What the numbers are, and how wide their intervals."""
        n = max(len(row.values) for row in self.measured)
        return (
            f"Mean ± sample standard deviation over n sets of samples; the {_CONFIDENCE:.0%} "
            f"t-interval of a mean over {n} is ± {t_half_width(n):.2f} of that. {self.about}"
        )

    def csv(self) -> str:
        """Full precision, one line a prior: sets, why it failed, and five columns a metric."""
        parts = ("mean", "std", "low", "high", "n")
        names = [f"{metric} {part}" for metric in self.metrics for part in parts]
        lines: list[list[object]] = [["prior", "sets", "failed", *names]]
        for row, measured in zip(self.rows, self.measured, strict=True):
            line: list[object] = [measured.label, len(row.seeds), measured.failed or ""]
            for cell in (row.cells[metric] for metric in self.metrics):
                numbers = (cell.mean, cell.std, *interval(cell), cell.count)
                line += ["" if np.isnan(value) else value for value in numbers]
            lines.append(line)
        return csv_text(lines)

    def sets(self) -> str:
        """As CSV, one line a prior and set: the values that the means are of."""
        lines: list[list[object]] = [["prior", "seed", *self.metrics]]
        for row in self.measured:
            for seed, values in enumerate(row.values):
                lines.append([row.label, seed, *(values.get(m, "") for m in self.metrics)])
        return csv_text(lines)

    def plot(self, path: str | Path) -> Path:
        """Draws one panel a metric: mean, interval and every set; the floor as a line."""
        floor = next(row for row, m in zip(self.rows, self.measured, strict=True) if m.is_data)
        rows = [row for row in self.rows if row is not floor and row.seeds]
        several = {m for m in self.metrics if sum(row.cells[m].count > 0 for row in rows) > 1}
        metrics = [m for m in self.metrics if m in several and not m.startswith("samples/")]
        return draw_panels(
            path, [row.settings["prior"] for row in rows], rows, metrics, floor=floor,
            error=lambda cell: t_half_width(cell.count) * cell.std,
            note="mean and 95 % interval over sets of samples; dashed: training data",
        )  # fmt: skip

    def save(self, folder: str | Path, name: str = "compare") -> list[Path]:
        """As :meth:`Table.save`, and the value of every set in `name_sets.csv`."""
        files = super().save(folder, name)
        every = Path(folder) / f"{name}_sets.csv"
        write_text(every, self.sets())
        return [*files, every]


def interval(cell: Cell) -> tuple[float, float]:
    """Student's interval for the mean over the sets, NaN for fewer than two."""
    half = t_half_width(cell.count) * cell.std
    return cell.mean - half, cell.mean + half
