"""The page of a run: one HTML file that holds everything it shows."""

import json
import shlex
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flexgen.files import open_file, write_text
from flexgen.report.catalogue import CHIEF, IN_OTHER_PANELS, PANELS, ordered, why_undefined
from flexgen.report.chart import Chart, Line
from flexgen.report.comparison import Comparison, compare
from flexgen.report.curves import Point, RunError
from flexgen.report.gallery import CODES, SAMPLES, strips
from flexgen.report.run_files import RunFiles
from flexgen.report.templating import render

_BESIDE_PAG = (
    "pag/literal", "pag/kl", "pag/kl_mean", "reversal/error", "reversal/converged",
    "own/pag_reversed", "own/pag_true", "own/error",
)  # fmt: skip
_LAST = 5
_MOST_HEADER = 2**20  # bytes that describe codes


class Key(NamedTuple):
    """One entry of a panel's legend; the control's has no metric."""

    style: str
    label: str
    metric: str | None
    point: Point


class Panel(NamedTuple):
    """A chart with its legend and, where there is a band, what the band is."""

    title: str
    chart: Chart
    keys: list[Key]
    note: str


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into the run directory; returns its path.

    The page holds its images, charts, style and script itself and requests nothing. Figures carry
    `data-metric`, `data-value` and, where a refit is compared, `data-when`; the same values are
    JSON in the element `flexgen-data`.

    Raises:
        RunError: when the directory cannot be read as a run.
    """
    return write_page(RunFiles.load(run_dir))


def write_page(run: RunFiles) -> Path:
    """As :func:`write_report`, of a run that was read."""
    target = run.path / "report.html"
    try:
        write_text(target, page(run), lasting=False)
    except OSError as error:
        raise RunError(run.path, f"has no report: {error}") from error
    return target


def page(run: RunFiles) -> str:
    """The page's HTML."""
    comparison = compare(run)
    two = {m for m, at in comparison.points.items() if len(at) > 1} if comparison else run.final
    in_tiles = [m for m in CHIEF if m in two and not (m == "emd/samples" and run.emd_is_noise)]
    agreement = ["pag/unit", *(name for name in _BESIDE_PAG if name in run.final)]
    codes = [*CODES, *sorted(set(run.images) - {*CODES, *SAMPLES})]  # unknown kinds come last
    kinds = {"samples": SAMPLES, "codes": codes}
    galleries = {name: strips(run, comparison, some) for name, some in kinds.items()}
    return render(
        "run.html", title=run.name, run=run, comparison=comparison,
        verdict=" ".join(comparison.verdict) if comparison else "", tiles=in_tiles[:3], scale=scale,
        metrics=ordered(set(run.final) - IN_OTHER_PANELS), last=_LAST,
        agreement=agreement if "pag/unit" in run.final else [],
        described_codes=_described_codes(run), panels=list(_panels(run, comparison)),
        galleries={name: shown for name, shown in galleries.items() if shown},
        describe=run.describe, facts=_facts(run), command=command(run), provenance=_provenance(run),
        data=data(run, comparison),
        undefined=why_undefined({name: value for name, value in run.final.items()
                                 if name not in IN_OTHER_PANELS}),
    )  # fmt: skip


def data(run: RunFiles, comparison: Comparison | None) -> dict[str, Any]:
    """What the page shows, for scripts: final values, the comparison and the curves as drawn."""
    curves = {"run": run.curves} | ({"control": run.control.curves} if run.control else {})

    def drawn(line: Line) -> dict[str, Any]:
        where = {"generator_steps": line.steps, "images_seen": line.images}
        return where | {"values": line.values, "binned": line.binned}

    points = comparison.points if comparison else {}
    return {
        "name": run.name, "status": run.status, "finished": run.finished, "seed": run.seed,
        "overrides": run.overrides, "counters": run.counters, "final": run.final,
        "refits": [vars(refit) for refit in comparison.refits] if comparison else [],
        "comparison": {m: {when: vars(p) for when, p in at.items()} for m, at in points.items()},
        "labels": {metric: run.describe(metric).label for metric in run.curves},
        "undefined": {
            metric: run.describe(metric).undefined
            for metric, curve in run.curves.items() if np.isnan(curve.values).any()
        },
        "curves": {
            who: {metric: drawn(Line.of(curve)) for metric, curve in found.items()}
            for who, found in curves.items()
        },
    }  # fmt: skip


def command(run: RunFiles) -> str:
    """The command line that makes the run again, in a folder of its own, from whatever folder."""
    about = run.provenance
    words = [str(about.get("command") or "train")]
    if isinstance(parent := about.get("parent"), dict) and words == ["refit"]:
        name = Path(str(parent.get("checkpoint"))).name
        words += [f"run={parent.get('run')}", f"checkpoint={name}"]
    words += [word for word in run.overrides if not word.startswith("paths.run_dir=")]
    if isinstance(folders := about.get("config_dirs"), list):
        words += [f"--config-dir={folder}" for folder in folders]
    return shlex.join(["flexgen", *words])


def scale(at: dict[str, Point]) -> Callable[[float], float]:
    """Places the values of one metric on a line, in per cent of its length, from zero on: so that a
    difference looks no larger than it is."""
    ends = [e for p in at.values() for e in (p.value, p.low, p.high) if e is not None]
    finite = [end for end in ends if np.isfinite(end)] or [0.0]
    low = min(0.0, *finite)
    width = (max(finite) - low) or 1.0
    return lambda value: round(4 + 92 * (value - low) / width, 2)


def _described_codes(run: RunFiles) -> str:
    """What the last saved codes say about how they were found."""
    if not run.codes:
        return ""
    step, path = list(run.codes.items())[-1]
    try:
        with open_file(path, within=run.path) as file:
            content = file.read(min(int.from_bytes(file.read(8), "little"), _MOST_HEADER))
        about = dict(json.loads(content).get("__metadata__") or {})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"The codes of step {step:,} cannot be read: {error}"
    return f"Codes saved at step {step:,}" + (
        f": {_pairs(dict(sorted(about.items())))}." if about else ", without a description."
    )


def _panels(run: RunFiles, comparison: Comparison | None) -> Iterator[Panel]:
    """The known panels that have a curve of two points, then every other metric by itself."""
    marks = [
        (refit.step, "refit" if refit.kept else "refit, not kept")
        for refit in (comparison.refits if comparison else ())
    ]
    drawn = {name for name, curve in run.curves.items() if len(curve) > 1} - IN_OTHER_PANELS
    drawn = {name for name in drawn if not name.startswith("refit/")}
    for title, names in PANELS:
        found = tuple(name for name in names if name in drawn)
        if found and found != ("emd/floor",):
            yield _panel(run, title, found, marks)
    known = {name for _, names in PANELS for name in names}
    for name in ordered(drawn - known):
        if name.removesuffix("_low").removesuffix("_high") not in drawn - {name}:
            yield _panel(run, run.describe(name).label, (name,), marks)


def _panel(
    run: RunFiles, title: str, names: tuple[str, ...], marks: list[tuple[int, str]]
) -> Panel:
    """Each metric of a panel with the control's beside it, dashed."""
    lines, keys = [], []
    alone = sum(not name.endswith("floor") for name in names) == 1
    for i, name in enumerate(names):
        style = "reference" if name.endswith("floor") else f"series-{i % 4}"
        point = run.point(name)
        assert point is not None
        ends = [run.curves[end] for end in (f"{name}_low", f"{name}_high") if end in run.curves]
        lines.append(Line.of(run.curves[name], style, ends))
        keys.append(Key(style, run.describe(name).label, name, point))
        if run.control is None or name not in run.control.curves or style == "reference":
            continue
        # By itself the control has a colour of its own; among several lines it keeps the metric's.
        style = "series-control control" if alone else f"{style} control"
        curve = run.control.curves[name]
        lines.append(Line.of(curve, style))
        end = Point(float(curve.values[-1]), None, None, int(curve.steps[-1]))
        keys.append(Key(style, "control", None, end))
    note = "Line: mean of each of 150 bins; band: lowest to highest." if lines[0].binned else ""
    if not note and lines[0].low is not None:
        note = "Band: 95 % bootstrap interval."
    chart = Chart(lines, label=f"{title} over generator steps", metrics=names, marks=marks)
    return Panel(title, chart, keys, note)


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    facts = [("Status", run.status), ("Seed", "unknown" if run.seed is None else str(run.seed))]
    for key, name in (("generator_steps", "Generator steps"), ("images_seen", "Images seen")):
        if key in run.counters:
            facts.append((name, f"{run.counters[key]:,}"))
    return [*facts, *(("Duration", text) for text in [_duration(run)] if text)]


def _provenance(run: RunFiles) -> list[tuple[str, Any]]:
    """Where the run came from and what it left."""
    rows: list[tuple[str, Any]] = [("Directory", run.path)]
    for key in ("started", "finished", "commit", "parent", "machine", "versions"):
        about = run.provenance.get(key)
        rows.append((key.capitalize(), _pairs(about) if isinstance(about, dict) else about))
    if run.checkpoints:
        last = list(run.checkpoints)[-1]
        rows.append(("Checkpoints", f"{len(run.checkpoints)}, the last at step {last:,}"))
    rows += [("Left out", note) for note in run.notes]
    return [(name, text) for name, text in rows if text]


def _pairs(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)


def _duration(run: RunFiles) -> str:
    try:
        times = [datetime.fromisoformat(str(run.provenance[k])) for k in ("started", "finished")]
        seconds = int((times[1] - times[0]).total_seconds())
    except (KeyError, TypeError, ValueError):
        return ""
    if seconds < 0:  # the clock was set back
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
