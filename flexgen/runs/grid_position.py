"""Which cell of a sweep is at work, of how many, and how long the others will take."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from hydra.errors import HydraException

from flexgen.runs.compose import grid


class Position(NamedTuple):
    """The place of a cell in the grid, from 1 on, of `total`; the overrides that are its own, and
    the seconds that are left of the sweep, NaN before any of its cells has ended."""

    number: int
    total: int
    own: list[str]
    seconds_left: float

    def __str__(self) -> str:
        left = "" if math.isnan(self.seconds_left) else f", {duration(self.seconds_left)} left"
        return f"cell {self.number} of {self.total} [{' '.join(self.own)}]{left}"


def position(sweep: Path, overrides: Sequence[str]) -> Position | None:
    """The place of a cell in the grid that Hydra noted in the sweep's `multirun.yaml`; None where
    that does not tell.

    What is left takes as long for each cell as those did that ended since the command began.
    """
    noted = sweep / "multirun.yaml"
    try:
        asked = yaml.safe_load(noted.read_text(encoding="utf-8"))["hydra"]
        words = [f"{k}={v}" for k, v in (asked["sweeper"].get("params") or {}).items()]
        last = {word.partition("=")[0]: word for word in (*words, *asked["overrides"]["task"])}
        cells = [set(cell) for cell in grid(last.values())]
        words = _words(overrides)
        number = cells.index(set(words)) + 1
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError, HydraException):
        return None
    from flexgen.report.table import is_how

    common = set.intersection(*cells) if len(cells) > 1 else set()
    began, ended, settled = noted.stat().st_mtime, 0, 0
    for path in sweep.glob("*/cell.json"):
        about = json.loads(path.read_text(encoding="utf-8"))
        lately = path.stat().st_mtime >= began
        if about["state"] == "finished" or (about["state"] == "failed" and lately):
            ended += lately
            there = set(_words(about["overrides"]))
            settled += any(all(map(is_how, there ^ cell)) for cell in cells)
    left = (time.time() - began) / ended * (len(cells) - settled) if ended else math.nan
    return Position(number, len(cells), [word for word in words if word not in common], left)


def _words(overrides: Sequence[str]) -> list[str]:
    """The overrides of a cell as :func:`grid` has them: Hydra writes `~key` as `~key=null`."""
    return [w.removesuffix("=null") if w.startswith("~") else w for w in overrides]


def duration(seconds: float) -> str:
    """A time for people: "40 s", "3 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
