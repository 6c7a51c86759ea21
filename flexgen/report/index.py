"""Pages for several runs: one each, and an index for a folder of runs."""

from collections.abc import Iterable
from pathlib import Path

from flexgen.report import sections
from flexgen.report.catalogue import describe, mean_and_std, number, typeset
from flexgen.report.curves import RunError
from flexgen.report.markup import Html, document, image, join, link, tag
from flexgen.report.page import save, write_report
from flexgen.report.run import Run, find_runs
from flexgen.report.summary import Table
from flexgen.report.table import table


def write_reports(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Writes a page for every run; for a folder of runs, an index `report.html` in it as well.

    A run that cannot be read does not keep the others from their pages.

    Args:
        paths: run directories, or folders of them such as a multirun's.

    Returns:
        The pages, a folder's index before those of its runs.

    Raises:
        RunError: after all pages are written, for the first named run that cannot be read, or a
            folder without a readable run.
    """
    pages: list[Path] = []
    failed: list[RunError] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        try:
            runs = find_runs(path)
            if runs == [path]:
                pages.append(write_report(path))
            else:
                pages += _folder(path, runs)
        except RunError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return pages


def _folder(root: Path, runs: list[Path]) -> list[Path]:
    summary = table(runs)
    pages, found = [], []
    for path in runs:
        try:
            page = write_report(path)
        except RunError:
            continue  # the table lists it among the runs left out
        pages.append(page)
        found.append((Run.load(path), page.relative_to(root)))
    words = [set(run.overrides) for run, _ in found]
    shared = set.intersection(*words) if len(words) > 1 else set()
    cards, posteriors = [], []
    for run, page in found:
        name = " ".join(word for word in run.overrides if word not in shared) or run.name
        cards.append(_card(run, name, page))
        posteriors += _posterior(run, name)
    title, about = sections.TITLES["aggregate_posterior"]
    body = join(
        tag("header", tag("div", "FlexGen runs", class_="brand"), tag("h1", root.resolve().name)),
        tag(
            "main",
            tag("section", tag("h2", "Groups"), _groups(summary)),
            tag("section", tag("h2", "Runs"), tag("div", *cards, class_="strip runs")),
            bool(posteriors)
            and tag(
                "section",
                tag("h2", title),
                tag("p", about, class_="quiet"),
                tag("div", *posteriors, class_="strip large"),
            ),
        ),
        sections.footer(),
    )
    content = {
        "rows": [{**row.settings, **_means(summary, i)} for i, row in enumerate(summary.rows)]
    }
    text = document(
        f"{root.resolve().name} · FlexGen", body, {**content, "curves": {}, "labels": {}}
    )
    return [save(root / "report.html", text), *pages]


def _means(summary: Table, row: int) -> dict[str, dict[str, float]]:
    cells = summary.rows[row].cells
    return {m: {"mean": c.mean, "std": c.std, "n": c.count} for m, c in cells.items()}


def _groups(summary: Table) -> Html:
    about = [describe(metric) for metric in summary.metrics]
    heads = [*summary.keys, "n", *(f"{metric.label} {metric.arrow}" for metric in about)]
    rows = []
    for row in summary.rows:
        cells = [tag("th", row.settings[key]) for key in summary.keys]
        cells.append(tag("td", len(row.runs)))
        for metric in summary.metrics:
            cell = row.cells[metric]
            mean, std = mean_and_std(cell.mean, cell.std)
            value = tag("span", typeset(mean), data_metric=metric, data_value=repr(cell.mean))
            cells.append(tag("td", *([value, std and f" ± {std}"] if cell.count else ["–"])))
        rows.append(tag("tr", *cells))
    grid = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", text) for text in heads))),
        tag("tbody", *rows),
    )
    notes = [*summary.notes, *(f"Not in the means: {line}" for line in summary.left_out)]
    return join(
        tag("p", summary.caption, class_="quiet"),
        tag("div", grid, class_="wide"),
        tag("ul", *(tag("li", line) for line in notes), class_="notes"),
    )


def _posterior(run: Run, name: str) -> list[Html]:
    """The last picture of a run's aggregate posterior, with how far it is from the prior."""
    pictures = list(run.images.get("aggregate_posterior", {}).values())
    if not pictures:
        return []
    values = [
        f"{describe(metric).label} {typeset(number(run.final[metric]))}"
        for metric in ("posterior/pag", "posterior/energy", "elbo/marginal_kl")
        if metric in run.final
    ]
    shown = image(pictures[-1], f"aggregate posterior of {name}")
    caption = tag("figcaption", tag("b", name), *(f" · {value}" for value in values))
    return [tag("figure", shown, caption)]


def _card(run: Run, name: str, page: Path) -> Html:
    samples = list(run.images.get("samples", {}).values())
    return tag(
        "figure",
        bool(samples) and image(samples[-1], f"samples of {name}"),
        tag("figcaption", tag("a", name, href=link(page)), f" · {run.status}"),
    )
