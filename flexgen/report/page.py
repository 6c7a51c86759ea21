"""The page of a run: one HTML file that holds everything it shows."""

from pathlib import Path
from typing import Any

from flexgen.files import write_atomically
from flexgen.report import results, sections
from flexgen.report.catalogue import describe
from flexgen.report.chart import Line
from flexgen.report.comparison import Comparison, compare
from flexgen.report.markup import document, join, tag
from flexgen.report.run import Run


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into the run directory, beside the files that it shows.

    The page holds its images, charts, style and script itself and requests nothing. Figures carry
    `data-metric`, `data-value` and, where a refit is compared, `data-when`; the same values are
    JSON in the element `flexgen-data`.

    Returns:
        The page.

    Raises:
        RunError: when the directory cannot be read as a run.
    """
    run = Run.load(run_dir)
    return save(run.path / "report.html", page(run))


def save(target: Path, text: str) -> Path:
    """Writes the text, whole or not at all."""
    write_atomically(target, lambda beside: beside.write_text(text, encoding="utf-8"))
    return target


def page(run: Run) -> str:
    """The page's HTML."""
    comparison = compare(run)
    parts = [
        ("result", "Result", results.result(run, comparison)),
        ("agreement", "Prior agreement", results.agreement(run)),
        ("curves", "Curves", results.curves(run, comparison)),
        ("samples", "Samples", sections.gallery(run, comparison, sections.SAMPLES)),
        ("codes", "Codes", sections.gallery(run, comparison, sections.CODES)),
        ("configuration", "Configuration", sections.configuration(run)),
        ("provenance", "Provenance", sections.provenance(run)),
    ]
    shown = [(name, title, content) for name, title, content in parts if content]
    body = join(
        sections.header(run, [(name, title) for name, title, _ in shown]),
        tag(
            "main",
            *(tag("section", tag("h2", title), content, id=name) for name, title, content in shown),
        ),
        sections.footer(),
    )
    return document(f"{run.name} · FlexGen", body, data(run, comparison))


def data(run: Run, comparison: Comparison | None) -> dict[str, Any]:
    """What the page shows, for scripts: final values, the comparison and the curves as drawn."""
    curves = {"run": run.curves} | ({"control": run.control.curves} if run.control else {})
    return {
        "name": run.name,
        "status": run.status,
        "finished": run.finished,
        "seed": run.seed,
        "overrides": run.overrides,
        "counters": run.counters,
        "final": run.final,
        "refits": [vars(refit) for refit in comparison.refits] if comparison else [],
        "comparison": _points(comparison),
        "labels": {metric: describe(metric).label for metric in run.curves},
        "curves": {
            who: {
                metric: {
                    "generator_steps": line.steps.tolist(),
                    "images_seen": line.images.tolist(),
                    "values": line.values.tolist(),
                    "binned": line.binned,
                }
                for metric, curve in found.items()
                for line in [Line.of(metric, curve, "")]
            }
            for who, found in curves.items()
        },
    }


def _points(comparison: Comparison | None) -> dict[str, dict[str, dict[str, Any]]]:
    if comparison is None:
        return {}
    return {
        metric: {when: vars(point) for when, point in at.items()}
        for metric, at in comparison.points.items()
    }
