"""The sections of a page that show the run itself: head, images, configuration, provenance."""

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np

from flexgen.report.comparison import Comparison
from flexgen.report.markup import Html, image, join, tag
from flexgen.report.run import Run

SAMPLES = ("samples", "draws")
CODES = ("aggregate_posterior", "code_map", "spectrum", "disagreement", "reconstructions")

TITLES = {
    "samples": ("Samples", "Drawn from the prior that was in use."),
    "draws": ("Draws from the likelihood", "x from p(x|z) at the codes of the samples’ means."),
    "aggregate_posterior": (
        "Aggregate posterior and prior",
        "Codes of held-out data, each drawn from its posterior, over draws from the prior (grey), "
        "and both in the base space of a flow; the plane is the codes’ two largest principal "
        "components.",
    ),
    "code_map": ("Map of the codes", "t-SNE of the codes of data, coloured by class."),
    "spectrum": ("Singular values of the codes", "Codes of data beside draws from the prior."),
    "disagreement": (
        "Where prior and codes disagree",
        "Samples of the prior draws that lie farthest from the codes of data.",
    ),
    "reconstructions": ("Reconstructions", "Data beside the output at their codes."),
}


def header(run: Run, shown: Sequence[tuple[str, str]]) -> Html:
    """Name, overrides and the chief facts of the run, and links to the sections."""
    facts = [("Status", run.status), ("Seed", "unknown" if run.seed is None else str(run.seed))]
    names = {"generator_steps": "Generator steps", "images_seen": "Images seen"}
    facts += [
        (text, f"{run.counters[key]:,}") for key, text in names.items() if key in run.counters
    ]
    facts += [("Duration", text) for text in [_duration(run)] if text]
    return tag(
        "header",
        tag("div", "FlexGen run", class_="brand"),
        tag("h1", run.name),
        bool(run.overrides)
        and tag("ul", *(tag("li", tag("code", text)) for text in run.overrides), class_="chips"),
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
        tag("nav", *(tag("a", title, href=f"#{name}") for name, title in shown)),
    )


def footer() -> Html:
    """What the page is."""
    return tag(
        "footer",
        "Written by flexgen report. Everything on this page is in this file; it asks for nothing "
        "from the network.",
    )


def gallery(run: Run, comparison: Comparison | None, kinds: Iterable[str]) -> Html | None:
    """Images over time, the control's last one after them; None where there are none.

    Samples show at most eight evenly spaced steps, the other kinds four, with the first and last
    among them and the last one before a refit. Kinds that are not known follow the codes.
    """
    wanted = list(kinds)
    if "samples" not in wanted:
        wanted += sorted(set(run.images) - {*wanted, "samples"})
    blocks = []
    for kind in (kind for kind in wanted if kind in run.images):
        title, about = TITLES.get(kind, (kind.replace("_", " ").capitalize(), ""))
        files = run.images[kind]
        refit = next((r.step for r in comparison.refits if r.kept), None) if comparison else None
        steps = _spread(list(files), 8 if kind == "samples" else 4, refit)
        figures = []
        for step in steps:
            prior = "" if refit is None else ("old prior" if step <= refit else "learned prior")
            figures.append(_figure(image(files[step], f"{title}, step {step}"), step, prior))
        control = run.control.images.get(kind, {}) if run.control is not None else {}
        if control:
            step, file = list(control.items())[-1]
            shown = image(file, f"{title}, control, step {step}")
            figures.append(_figure(shown, step, "control"))
        more = f" {len(steps)} of {len(files)} steps shown." if len(steps) < len(files) else ""
        blocks.append(
            join(
                kind != "samples" and tag("h3", title),
                tag("p", about + more, class_="quiet"),
                tag("div", *figures, class_="strip" if kind == "samples" else "strip large"),
            )
        )
    return join(*blocks) if blocks else None


def configuration(run: Run) -> Html:
    """The command that makes the run again, and its whole configuration."""
    return join(
        _copyable("command", command(run), "wrap"),
        tag(
            "details",
            tag("summary", "config.yaml"),
            tag("div", _copyable("config", run.config_text)),
        ),
    )


def command(run: Run) -> str:
    """The command line of the run."""
    name = str(run.provenance.get("command") or "train")
    return " ".join(["flexgen", *map(shlex.quote, [name, *run.overrides])])


def provenance(run: Run) -> Html:
    """Where the run came from and what it left."""
    source = run.provenance
    rows = [("Directory", str(run.path)), ("Started", source.get("started"))]
    rows += [("Finished", source.get("finished")), ("Commit", source.get("commit"))]
    for key, label in (("parent", "Parent"), ("machine", "Machine"), ("versions", "Versions")):
        about = source.get(key)
        text = about if not isinstance(about, dict) else _pairs(about)
        rows.append((label, text))
    if run.checkpoints:
        last = list(run.checkpoints)[-1]
        rows.append(("Checkpoints", f"{len(run.checkpoints)}, the last at step {last:,}"))
    rows += [("Left out", note) for note in run.notes]
    shown = [tag("tr", tag("th", key), tag("td", text)) for key, text in rows if text]
    return tag("table", tag("tbody", *shown), class_="left")


def _figure(shown: Html, step: int, about: str) -> Html:
    words = tag("b", f"step {step:,}")
    return tag("figure", shown, tag("figcaption", words, about and f" · {about}"))


def _spread(steps: list[int], count: int, refit: int | None) -> list[int]:
    """At most `count` of the steps, evenly spaced, with the first, the last and the refit's."""
    if len(steps) <= count:
        return steps
    chosen = {steps[i] for i in np.linspace(0, len(steps) - 1, count).round().astype(int)}
    before = [step for step in steps if refit is not None and step <= refit]
    if before and before[-1] not in chosen:
        inner = chosen - {steps[0], steps[-1]}
        chosen.remove(min(inner, key=lambda step: abs(step - before[-1])))
        chosen.add(before[-1])
    return sorted(chosen)


def _copyable(name: str, text: str, style: str | None = None) -> Html:
    return tag(
        "div",
        tag("pre", tag("code", text, id=name), class_=style),
        tag("button", "Copy", type="button", data_copy=name),
        class_="code",
    )


def _pairs(about: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)


def _duration(run: Run) -> str:
    try:
        times = [datetime.fromisoformat(str(run.provenance[k])) for k in ("started", "finished")]
        seconds = int((times[1] - times[0]).total_seconds())
    except (KeyError, TypeError, ValueError):
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
