"""Runs side by side: grouped by their settings, mean and standard deviation over seeds."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flexgen.checks import check_integer
from flexgen.report.catalogue import choose, why_undefined
from flexgen.report.comparison import PAIRS, compare
from flexgen.report.curves import RunError, Value, read_provenance
from flexgen.report.labels import name_bases
from flexgen.report.run_files import RunFiles, find_runs
from flexgen.report.summary import Cell, Row, Table
from flexgen.untrusted import printable

_HOW = re.compile(r"(logger|report|threads|trainer|callbacks\.pruning)(\.(?!precision)|$)")
# The seed is what a table averages over; where a run writes changes nothing in it.
_NO_SETTING = re.compile(r"seed$|paths\.|hydra[./]")


def table(
    paths: str | Path | Iterable[str | Path], *, metrics: Sequence[str] | None = None,
    last: int = 1, comparison: bool = False,
) -> Table:  # fmt: skip
    """Groups runs by their overrides less the seed and summarises their metrics over the seeds.

    An override that a run does not have takes the value of the run's configuration, or "default"
    where the key chose a group and the configuration does not tell which. Runs without overrides
    are told apart by their name. Unfinished and unreadable runs are listed, and are in no mean.

    A refit's settings are its parent's, and its own with the prefix "refit:".

    Args:
        paths: run directories, or folders of them such as a multirun's.
        metrics: names or globs ("modes/*"); None for the headline metrics that are present.
        last: a run's value is the mean over so many last evaluations; adversarial runs swing.
        comparison: one row each for before, after and control of the runs with a prior refit
            (`flexgen.report.compare`), instead of the end of every run; `last` must be 1.

    Raises:
        ValueError: for an unknown metric or `last` out of range.
        RunError: when a path holds no run, or no run can be read.
    """
    if check_integer("last", last) != 1 and comparison:
        raise ValueError(f"`last` must be 1 with `comparison`, got {last}")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise ValueError("`paths` must name at least one run directory, got none")
    found = dict.fromkeys(run for path in given for run in find_runs(path))
    runs, left_out = each(found, lambda run: run if comparison else run.ends(last))
    return summarise(Path(given[0]), runs, left_out, metrics, last, comparison)


Taken = TypeVar("Taken")


def each(paths: Iterable[Path], take: Callable[[RunFiles], Taken]) -> tuple[list[Taken], list[str]]:
    """What is taken of each run, one at a time in memory, and why the others cannot be read."""
    found, left_out = [], []
    for path in paths:
        try:
            found.append(take(RunFiles.load(path)))
        except RunError as error:
            left_out.append(str(error))
        except Exception as error:  # one damaged run must not take the others with it
            left_out.append(f"{path}: cannot be read: {type(error).__name__}: {error}")
    return found, left_out


def summarise(
    root: Path, runs: Sequence[RunFiles], left_out: Sequence[str],
    metrics: Sequence[str] | None = None, last: int = 1, comparison: bool = False,
) -> Table:  # fmt: skip
    """As :func:`table`, of runs that were read."""
    if not runs:
        raise RunError(root, f"no run can be read; {'; '.join(left_out)}")
    unfinished = [run for run in runs if not run.finished]
    left_out = [*left_out, *(f"{run.path} ({' '.join(run.overrides) or run.name}): {run.status}"
                             for run in unfinished)]  # fmt: skip
    present = {name for run in runs for name in (*run.final, *run.curves)}
    chosen = choose(metrics, present)
    noise = [run for run in runs if run.emd_is_noise] if metrics is None else []
    if 2 * len(noise) > len(runs) and len(chosen) > 1:
        chosen = [name for name in chosen if name != "emd/samples"]
    priors = [(run.config.get("model") or {}).get("prior") or {} for run in runs]
    named, notes = name_bases(_settings(runs), priors)
    if "emd/samples" in present - {*chosen} and noise:
        notes.append(
            f"EMD is left out: in {len(noise)} of {len(runs)} runs it is not above that of two "
            "data samples (emd/floor), and tells nothing; metrics=[emd/samples] shows it"
        )
    groups: dict[tuple[tuple[str, str], ...], list[tuple[RunFiles, dict[str, Value]]]] = {}
    for run, settings in zip(runs, named, strict=True):
        for extra, values in _measured(run, chosen, last, comparison, notes):
            group = groups.setdefault(tuple({**settings, **extra}.items()), [])
            if run.finished:
                group.append((run, values))
    if not groups:
        raise RunError(root, "no run here has a prior refit to compare")
    rows = tuple(_row(dict(key), members, chosen, last, notes) for key, members in groups.items())
    told = (tuple(map(printable, lines)) for lines in (left_out, dict.fromkeys(notes)))
    return Table(rows, tuple(chosen), last, *told)


def _measured(
    run: RunFiles, metrics: Sequence[str], last: int, comparison: bool, notes: list[str]
) -> Iterator[tuple[dict[str, str], dict[str, Value]]]:
    if not comparison:
        found = {metric: run.value(metric, last) for metric in metrics}
        yield {}, {metric: value for metric, value in found.items() if value is not None}
        return
    compared = compare(run)
    if compared is None:
        notes.append(f"{run.path} has no prior refit")
        return
    if not compared.kept:
        notes.append(f"{run.path}: no refit was kept, its after is the old prior")
    asked = {metric: at for metric, at in compared.points.items() if metric in metrics}
    for when in compared.columns:
        points = {metric: at[when] for metric, at in asked.items() if when in at}
        values = {m: Value(at.value, float("nan"), 1, at.step) for m, at in points.items()}
        yield {"when": when}, values
    for old, new in PAIRS:
        both = {metric: at for metric, at in asked.items() if {old, new} <= at.keys()}
        if both:
            yield (
                {"when": f"{new} − {old}"},
                {
                    metric: Value(at[new].value - at[old].value, float("nan"), 1, at[new].step)
                    for metric, at in both.items()
                },
            )
        if (pair := compared.paired.get((old, new))) is not None:
            notes.append(f"{run.path}: −log p(x), {new} less {old}: {pair}, n = {pair.n}")


def _row(
    settings: dict[str, str], members: list[tuple[RunFiles, dict[str, Value]]],
    metrics: Sequence[str], last: int, notes: list[str],
) -> Row:  # fmt: skip
    label = ", ".join(settings.values())
    seeds = tuple(run.seed for run, _ in members)
    if len(set(seeds)) < len(seeds):
        notes.append(f"{label}: a seed appears twice, so the runs are not independent")
    cells = {}
    for metric in metrics:
        values = [(run, found[metric]) for run, found in members if metric in found]
        for run, value in values:
            if np.isnan(value.mean):
                notes.append(f"{run.path}: {', '.join(why_undefined({metric: value.mean}))}")
            elif not np.isfinite(value.mean):
                notes.append(f"{run.path}: {metric} is {value.mean}")
            if value.count < last and metric in run.curves:
                notes.append(f"{run.path}: {metric} has {value.count} of {last} evaluations")
        spreads = [value.spread for _, value in values]
        spread = float(np.mean(spreads)) if last > 1 and spreads else float("nan")
        cells[metric] = Cell(tuple(value.mean for _, value in values), spread)
    ranked = "−" not in settings.get("when", "")
    return Row(settings, tuple(run.path for run, _ in members), seeds, cells, ranked)


def _settings(runs: Sequence[RunFiles]) -> list[dict[str, str]]:
    """Each run's value of every key that any run overrides."""
    parsed = [_with_inherited(run.provenance) for run in runs]
    keys = list(dict.fromkeys(key for overrides in parsed for key in overrides))
    settings = [
        {key: _setting(run, key, overrides.get(key)) for key in keys}
        for run, overrides in zip(runs, parsed, strict=True)
    ]
    if "name" not in keys and not all(parsed):
        names = ["" if overrides else run.name for run, overrides in zip(runs, parsed, strict=True)]
        settings = [{"name": name} | own for name, own in zip(names, settings, strict=True)]
    return settings


def _with_inherited(about: dict[str, Any], most: int = 20) -> dict[str, str]:
    """The overrides of a run; those of a refit are its parent's, and its own on top."""
    # At most so many parents are read: a run that names itself as its parent has no end of them.
    own = _parse(about["overrides"])
    parent = (about.get("parent") or {}).get("run")
    if about.get("command") != "refit" or not isinstance(parent, str) or not most:
        return own
    try:
        inherited = _with_inherited(read_provenance(Path(parent)), most - 1)
    except ValueError:  # among them a path that is none
        return own
    return inherited | {f"refit:{key}": value for key, value in own.items() if key != "run"}


def is_how(override: str) -> bool:
    """Whether an override says how a run is trained and logged, and not what: it is no setting."""
    return bool(_HOW.match(override.lstrip("+~").partition("=")[0]))


def _parse(overrides: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for override in (word for word in overrides if not is_how(word)):
        key, _, value = override.partition("=")
        parsed[key.lstrip("+~")] = "removed" if key.startswith("~") else value
    return {key: value for key, value in parsed.items() if not _NO_SETTING.match(key)}


def _setting(run: RunFiles, key: str, override: str | None) -> str:
    """The configuration's value rather than the text typed, so that 1e-3 and 0.001 are one."""
    value: Any = run.config
    for part in key.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    if isinstance(value, dict) or (override is not None and ("${" in override)):
        return "default" if override is None else override
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))
