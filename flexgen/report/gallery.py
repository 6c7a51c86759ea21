"""The images of a run over time, as a page shows them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flexgen.report.comparison import Comparison
from flexgen.report.run_files import RunFiles

SAMPLES = ("samples", "draws")
CODES = ("aggregate_posterior", "code_map", "spectrum", "disagreement", "reconstructions")

TITLES = {
    "samples": ("Samples", "Drawn from the prior that was in use, or from the density itself."),
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
    "reconstructions_level2": (
        "Reconstructions given level 2",
        "Data beside the output at the second level of their codes and what is above it alone.",
    ),
}


class Frame(NamedTuple):
    """One image of a strip: its file, a text for who does not see it, its step and its prior."""

    file: Path
    alt: str
    step: int
    prior: str


class Strip(NamedTuple):
    """The images of one kind: `title` and `about` say what they are."""

    kind: str
    title: str
    about: str
    frames: list[Frame]


def strips(run: RunFiles, comparison: Comparison | None, kinds: Iterable[str]) -> list[Strip]:
    """Images over time, the control's last one after them: of samples at most eight evenly spaced
    steps, of others four, with the first and last among them and the last one before a refit."""
    refit = next((r.step for r in comparison.refits if r.kept), None) if comparison else None
    found = []
    for kind in (kind for kind in kinds if kind in run.images):
        title, about = TITLES.get(kind, (kind.replace("_", " ").capitalize(), ""))
        files = run.images[kind]
        steps = _spread(list(files), 8 if kind == "samples" else 4, refit)
        frames = []
        for step in steps:
            prior = "" if refit is None else ("old prior" if step <= refit else "learned prior")
            frames.append(Frame(files[step], f"{title}, step {step}", step, prior))
        control = run.control.images.get(kind, {}) if run.control is not None else {}
        for step, file in list(control.items())[-1:]:
            frames.append(Frame(file, f"{title}, control, step {step}", step, "control"))
        if len(steps) < len(files):
            about += f" {len(steps)} of {len(files)} steps shown."
        found.append(Strip(kind, title, about, frames))
    return found


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
