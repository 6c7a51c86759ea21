"""Pages for several runs: one each, and an index for a folder of runs."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flexgen.files import write_text
from flexgen.report.curves import RunError
from flexgen.report.gallery import TITLES
from flexgen.report.page import write_page, write_report
from flexgen.report.run_files import RunFiles, find_runs
from flexgen.report.sweep_charts import dot_plots, groupings
from flexgen.report.table import each, summarise
from flexgen.report.templating import render

_AGREEMENT = ("posterior/pag", "posterior/energy", "elbo/marginal_kl")
_MOST_PICTURES = 60  # an index with more is slow to open


def write_reports(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Writes a page for every run; for a folder of runs, an index `report.html` in it as well.

    A run that cannot be read does not keep the others from their pages. Returns these, a folder's
    index before those of its runs.

    Raises:
        RunError: after all pages are written, for the first named run that cannot be read, or a
            folder without a readable run.
    """
    pages: list[Path] = []
    failed: list[RunError] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        try:
            runs = find_runs(path)
            pages += [write_report(path)] if runs == [path] else _folder(path, runs)
        except RunError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return pages


def _folder(root: Path, paths: list[Path]) -> list[Path]:
    def written(run: RunFiles) -> RunFiles:
        write_page(run)
        return run.thinned()

    runs, left_out = each(paths, written)
    summary = summarise(root, runs, left_out)
    words = [set(run.overrides) for run in runs]
    shared = set.intersection(*words) if len(words) > 1 else set()
    shown = [_entry(run, root, shared) for run in runs]
    for entry in shown[_MOST_PICTURES:]:
        entry["samples"] = entry["posterior"] = None
    names = {run.name for run in runs}
    heading = f"{names.pop()}, {root.resolve().name}" if len(names) == 1 else root.resolve().name
    title, about = TITLES["aggregate_posterior"]
    rows: list[dict[str, Any]] = []
    for row in summary.rows:
        cells = {m: {"mean": c.mean, "std": c.std, "n": c.count} for m, c in row.cells.items()}
        rows.append(row.settings | cells)
    grouped = groupings(summary, runs)
    drawn = {
        str(i): {
            label: {
                m: {"generator_steps": line.steps, "values": line.values} for m, line in of.items()
            }
            for label, of in grouping.lines.items()
        }
        for i, grouping in enumerate(grouped)
    }
    with tempfile.TemporaryDirectory() as folder:
        drawn_table = summary.plot(Path(folder) / "table.png").read_bytes()
    text = render(
        "index.html", title=heading, table=summary, runs=shown, labels=summary.labels,
        groupings=grouped, plots=dot_plots(summary),
        picture=drawn_table if len(summary.rows) > 1 else b"",
        pictured=_MOST_PICTURES, posteriors=[entry for entry in shown if entry["posterior"]],
        posterior_title=title, posterior_about=about,
        data={"rows": rows, "curves": {}, "labels": {}, "grouped": drawn},
    )  # fmt: skip
    write_text(root / "report.html", text, lasting=False)
    return [root / "report.html", *(run.path / "report.html" for run in runs)]


def _entry(run: RunFiles, root: Path, shared: set[str]) -> dict[str, Any]:
    """What an index shows of a run: its page, its last pictures and how far its codes agree."""
    samples, posterior = (
        next(reversed(run.images.get(kind, {}).values()), None)
        for kind in ("samples", "aggregate_posterior")
    )
    return {
        "name": " ".join(word for word in run.overrides if word not in shared) or run.name,
        "page": run.path.relative_to(root) / "report.html", "status": run.status,
        "samples": samples, "posterior": posterior,
        "agreement": [(metric, run.final[metric]) for metric in _AGREEMENT if metric in run.final],
    }  # fmt: skip
