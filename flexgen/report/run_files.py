"""A run directory, read back: configuration, provenance, curves, final values, images and codes."""

import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np

from flexgen.files import open_file
from flexgen.report.catalogue import Metric, describe
from flexgen.report.curves import (
    STANDARD_ERRORS,
    Curve,
    Point,
    RunError,
    Value,
    read_curves,
    read_json,
    read_metrics_json,
    read_provenance,
    read_text,
)
from flexgen.run_notes import RunNote, read_notes
from flexgen.untrusted import parse_plain, printable

_MOST_BYTES = 2**24  # of a picture
_LOSSES = {
    "VAE": ("−ELBO, training", "with warm-up and free bits if any, nats per datum"),
    "VQVAE": ("−ELBO and commitment, training", "nats per datum"),
    "Autoencoder": ("Loss, training", "reconstruction and what regularises it"),
}
_WEIGHTED = ("−IW bound, training", "importance weighted, nats per datum")
_MARKERS = ("config.yaml", "provenance.json", "metrics.csv", "metrics.json")
_STEP = re.compile(r"step=(\d+)\.(png|safetensors|ckpt)")


@dataclass(frozen=True)
class RunFiles:
    """What a run directory says; `RunFiles.load` reads one.

    Args:
        final: metric name to its final value, from `metrics.json`, else the last one of the curve.
        images: kind ("samples", "code_map", …) to generator step to PNG file, in order of step; so
            are codes, NLL of each datum and checkpoints, without a kind.
        control: the run that trained as long from the old prior, where there is one.
        notes: what was left out on reading, one line each.
        unmeasured: what was not measured when it was to be, and why.
        pruned: whether it is a trial that its search ended early.
    """

    path: Path
    config: dict[str, Any]
    config_text: str
    provenance: dict[str, Any]
    curves: dict[str, Curve]
    final: dict[str, float]
    counters: dict[str, int]
    images: dict[str, dict[int, Path]]
    codes: dict[int, Path]
    nll: dict[int, Path]
    checkpoints: dict[int, Path]
    control: "RunFiles | None"
    notes: tuple[str, ...]
    unmeasured: tuple[RunNote, ...]
    pruned: bool = False

    @classmethod
    def load(cls, path: str | Path) -> "RunFiles":
        """Reads a run directory; the control in it as well.

        Raises:
            RunError: when it is not a run directory, a file of it is corrupt, or it has no metrics.
        """
        path = Path(path)
        _must_be_run(path)
        notes: list[str] = []
        config_text = read_text(path, "config.yaml")
        try:
            config = parse_plain(config_text)
        except ValueError as error:
            raise RunError(path, f"config.yaml is corrupt: {error}") from error
        provenance = read_provenance(path)
        curves, counters = read_curves(path, notes)
        final = {name: float(curve.values[-1]) for name, curve in curves.items()}
        if os.path.lexists(path / "metrics.json"):
            saved_counters, saved = read_metrics_json(path)
            final.update(saved)
            counters.update(saved_counters)
        if not final:
            raise RunError(
                path,
                "has no metrics: metrics.csv and metrics.json are missing or empty; the run "
                "stopped before it logged any, or logs to another logger than CSV",
            )
        control, unmeasured = None, []
        try:
            if _is_folder(path, path / "control", notes):
                control = cls.load(path / "control")
        except RunError as error:
            notes.append(f"control left out: {error.problem}")
        try:
            unmeasured = read_notes(path)
        except OSError as error:
            notes.append(f"notes.jsonl left out: {error.strerror}")
        images = {}
        for kind in _children(path, path / "images", notes):
            if kind.is_dir() and (files := _by_step(path, kind, "png", notes)):
                images[printable(kind.name)] = files
        return cls(
            path=path, config=config, config_text=config_text, provenance=provenance,
            curves=curves, final=final, counters=counters, images=images,
            codes=_by_step(path, path / "codes", "safetensors", notes),
            nll=_by_step(path, path / "nll", "safetensors", notes),
            checkpoints=_by_step(path, path / "checkpoints", "ckpt", notes), control=control,
            notes=tuple(map(printable, notes)), unmeasured=tuple(unmeasured),
            pruned=_cell_state(path) == "pruned",
        )  # fmt: skip

    def ends(self, last: int = 1) -> "RunFiles":
        """The run with the last so many points of its curves alone, and without its control."""
        return self._with({n: np.arange(len(curve))[-last:] for n, curve in self.curves.items()})

    def thinned(self, most: int = 150) -> "RunFiles":
        """The run with at most so many points of each curve, its ends among them, and without its
        control."""
        return self._with({
            name: np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))
            for name, curve in self.curves.items()
        })  # fmt: skip

    def _with(self, kept: dict[str, np.ndarray]) -> "RunFiles":
        curves = {name: self.curves[name].where(rows) for name, rows in kept.items()}
        return replace(self, curves=curves, control=None)

    def describe(self, metric: str) -> Metric:
        """What a metric is called in this run: the loss of an autoencoder by its own name."""
        model = self.config.get("model")
        model = model if isinstance(model, dict) else {}
        told = _LOSSES.get(str(model.get("_target_")).rpartition(".")[2])
        if metric != "loss/generator" or told is None:
            return describe(metric)
        several = str(model.get("importance_samples") or 1) != "1"
        label, note = _WEIGHTED if several else told
        return Metric(metric, label, "lower", note)

    @property
    def emd_is_noise(self) -> bool:
        """Whether the EMD of images is no further than that of two data samples: then it says
        nothing of the model, as an average image is near to all."""
        data = self.config.get("data")
        shape = data.get("shape") if isinstance(data, dict) else None
        ends = (self.final.get("emd/samples"), self.final.get("emd/floor"))
        known = isinstance(shape, list) and len(shape) == 3 and None not in ends
        return known and ends[0] <= ends[1]  # type: ignore[operator]

    @property
    def name(self) -> str:
        """The configured name, else the directory's."""
        return printable(str(self.config.get("name") or self.path.resolve().name))

    @property
    def overrides(self) -> list[str]:
        """The overrides of the command that made the run, such as "model=gan"."""
        return list(self.provenance["overrides"])

    @property
    def seed(self) -> int | None:
        """The run's seed, where it is known."""
        for source in (self.provenance, self.config):
            if isinstance(source.get("seed"), int):
                return int(source["seed"])
        return None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.provenance.get("finished") is not None

    @property
    def step(self) -> int:
        """The last known generator step."""
        return self.counters.get("generator_steps", 0)

    @property
    def status(self) -> str:
        """ "finished", or how far the run had come."""
        if self.finished:
            return "finished"
        goal = self.config.get("steps")
        of = f" of {goal:,}" if isinstance(goal, int) else ""
        return f"{'pruned' if self.pruned else 'unfinished'} at generator step {self.step:,}{of}"

    def value(self, metric: str, last: int = 1) -> Value | None:
        """The metric's mean over so many last evaluations, None where it was never logged."""
        if metric in self.curves:
            return self.curves[metric].tail(last)
        if metric in self.final:
            return Value(self.final[metric], float("nan"), 1, self.step)
        return None

    def nll_of_data(self, step: int) -> tuple[dict[int, float], str]:
        """NLL of each held-out datum by its index, as measured at a step, and with what settings;
        empty where not saved.

        Raises:
            RunError: when the file is damaged.
        """
        if step not in self.nll:
            return {}, ""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self.nll[step]
        try:
            with open_file(path, within=self.path) as file:
                content = file.read(_MOST_BYTES)
            found = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            pairs = zip(found["index"].tolist(), found["nll"].tolist(), strict=True)
            settings = header.get("__metadata__", {}).get("settings", "")
            return {int(index): float(nll) for index, nll in pairs}, settings
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise RunError(self.path, f"{path.name} of nll/ is damaged: {error}") from error

    def point(self, metric: str) -> Point | None:
        """The metric at the end of the run with its interval, None where it was never logged."""
        value = self.value(metric)
        if value is None:
            return None
        ends = (self.final.get(f"{metric}_{end}", np.nan) for end in ("low", "high"))
        error = self.final.get(STANDARD_ERRORS.get(metric, ""), np.nan)
        low, high, known = (end if np.isfinite(end) else None for end in (*ends, error))
        return Point(value.mean, low, high, value.step, known)


def find_runs(path: str | Path) -> list[Path]:
    """The run directory itself, or all run directories below, in natural order (2 before 10).

    A job that failed before it wrote anything but Hydra's own folder is found too, so that it can
    be listed. Nothing inside a run (its control, for one) is a run of its own here.

    Raises:
        RunError: when there is none.
    """
    path = Path(path)
    if not path.is_dir():
        _must_be_run(path)
    found = sorted(_walk(path), key=_natural)
    if not found:
        raise RunError(path, "has no run directory in it (a folder with config.yaml); name one")
    return found


def _walk(path: Path) -> Iterator[Path]:
    if any(os.path.lexists(path / marker) for marker in _MARKERS):
        yield path
        return
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # so that it is told with the runs that cannot be read
        yield path
        return
    nested = [run for name in names if name[0] != "." for run in _walk(path / name)]
    yield from nested or ([path] if ".hydra" in names else [])


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _cell_state(run: Path) -> str:
    """What became of a run that is a cell of a sweep or a trial of a search; else empty."""
    try:
        return str(read_json(run, "cell.json").get("state", ""))
    except RunError:
        return ""


def _missing(path: Path) -> list[str]:
    return [n for n in ("config.yaml", "provenance.json") if not os.path.lexists(path / n)]


def _must_be_run(path: Path) -> None:
    if not path.exists():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise RunError(path, f"does not exist{hint}")
    missing = _missing(path)
    if not missing:
        return
    problem = f"is not a run directory ({' and '.join(missing)} missing)"
    above = next((folder for folder in path.resolve().parents if not _missing(folder)), None)
    below = sorted(_walk(path), key=_natural) if path.is_dir() else []
    below = [run for run in below if run != path]
    if above:
        problem += f"; it lies in the run {above}"
    elif below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        problem += f"; runs below it: {', '.join(map(str, below[:3]))}{more}"
    raise RunError(path, problem)


def _is_folder(run: Path, path: Path, notes: list[str]) -> bool:
    """Whether a folder is there; a link, or what is none, is noted."""
    if path.is_dir() and not path.is_symlink():
        return True
    if os.path.lexists(path):
        what = "a link" if path.is_symlink() else "no folder"
        notes.append(f"{path.relative_to(run)} is {what} and is left out")
    return False


def _children(run: Path, folder: Path, notes: list[str]) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if _is_folder(run, folder, notes) else []
    except OSError as error:
        notes.append(f"{folder.relative_to(run)} is left out: {error.strerror}")
        return []


def _by_step(run: Path, folder: Path, ending: str, notes: list[str]) -> dict[int, Path]:
    """The files of a folder by their steps; what only has the name of one is noted."""
    files = {}
    for path in _children(run, folder, notes):
        match = _STEP.fullmatch(path.name)
        if match is None or match[2] != ending:
            continue
        try:
            with open_file(path, within=run) as file:
                if ending == "png" and not _is_png(file):
                    raise OSError(errno.EINVAL, "it is not a whole PNG of at most 16 MB")
        except OSError as error:
            reason = "it is a link" if path.is_symlink() else error.strerror
            notes.append(f"{path.relative_to(run)} is left out: {reason}")
        else:
            files[int(match[1])] = path
    return dict(sorted(files.items()))


def _is_png(file: IO[bytes]) -> bool:
    start, size = file.read(8), file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 12))
    return start == b"\x89PNG\r\n\x1a\n" and b"IEND" in file.read() and size <= _MOST_BYTES
