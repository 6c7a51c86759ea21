"""What the commands print: a comparison, a table, a list of values."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from flexgen.report.catalogue import describe, number, ordered, why_undefined
from flexgen.report.comparison import compare
from flexgen.report.priors import PriorTable
from flexgen.report.run_files import RunFiles
from flexgen.report.summary import Table
from flexgen.report.table import table
from flexgen.untrusted import printable


def print_comparison(run_dir: str | Path) -> None:
    """Prints before, after and control of a run with a prior refit, nothing for other runs."""
    comparison = compare(RunFiles.load(run_dir))
    if comparison is not None:
        Console().print(comparison)


def print_values(values: Mapping[str, float], title: str = "") -> None:
    """Prints metrics with their labels under a title, intervals beside their metric."""
    ends = {f"{name}_{end}" for name in values for end in ("low", "high")}
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, title_justify="left")
    grid.add_column(Text(title), overflow="fold")
    grid.add_column("", justify="right", no_wrap=True)
    for name in ordered(set(values) - ends):
        low, high = (values.get(f"{name}_{end}") for end in ("low", "high"))
        text = number(values[name])
        if low is not None and high is not None:
            text += f"\n[{number(low, 3)}, {number(high, 3)}]"
        grid.add_row(Text(describe(name).heading), Text(text))
    Console().print(grid, *map(Text, why_undefined(values)), sep="\n")


def write_table(
    paths: str | Path | Iterable[str | Path], *, metrics: Sequence[str] | None = None,
    last: int = 1, comparison: bool = False, out: str | Path | None = None,
) -> list[Path]:  # fmt: skip
    """Prints :func:`flexgen.report.table` and saves it as text, CSV, LaTeX and a plot in the folder
    `out`, by default the first path; returns the files. Raises as that does."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    result = table(given, metrics=metrics, last=last, comparison=comparison)
    return _save(result, out if out is not None else given[0], "table")


def print_priors(compared: PriorTable, out: str | Path) -> list[Path]:
    """Prints a comparison of priors and saves it in the folder `out`; returns the files."""
    return _save(compared, out, "compare")


def _save(result: Table, folder: str | Path, name: str) -> list[Path]:
    console = Console()
    console.print(result)
    files = result.save(folder, name)
    where = printable(str(files[0].parent))
    # A name that is broken over lines cannot be copied.
    console.print(Text(f"{name}: {where}/{{{','.join(f.name for f in files)}}}"), soft_wrap=True)
    return files
