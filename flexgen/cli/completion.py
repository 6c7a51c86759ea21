"""Tab completion: commands, their own keys, and the values that these take."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flexgen._conf import conf_dir

WITHOUT_GROUPS = {"table", "report", "dashboard", "compare", "reverse_generator"}
"""Roots whose keys stand in their own YAML alone, which Hydra has nothing to add to."""

ON_RUN = {"run", "checkpoint", "trust"}
_BOOLEAN = ("true", "false")
_METHODS = ("auto", "lbfgs", "adam", "rmsprop", "gd")
_VALUES: dict[str, Sequence[str]] = {
    "trust": _BOOLEAN, "split": ("train", "validation", "test"), "space": ("base", "code"),
    "method": _METHODS, "loss": ("mse", "bce"), "init": ("auto", "normal", "bank", "encoder"),
    "precision": ("auto", "float32", "plain"), "constraint": ("auto", "clip", "moments"),
    "norm": ("eval", "batch"), "device": ("auto", "cpu", "cuda"), "data": ("folder", "array"),
    "direction": ("minimize", "maximize"), "interpolate": ("slerp", "linear"),
    "pruner": ("median", "percentile", "successive_halving", "hyperband", "null"),
    "codes": ("reversal", "encoder"), "source": ("posterior", "encoder", "reversal", "prior"),
    "group_by": ("prior", "seed", "model.objective.class", "data.name"),
}  # fmt: skip
_TYPED = {
    "table": ("runs", "out"), "report": ("runs",), "compare": ("priors", "out"),
    "reverse_generator": ("generator", "data", "path", "out", "encoder"),
}  # fmt: skip
_BY_METRIC = {("search", "metric"), ("table", "metrics")}


def complete(root: str, word: str) -> list[str]:
    """What a word of a command may become: keys of its root's YAML, or a key's values."""
    key, equals, _ = word.partition("=")
    found = _values(root, key) if equals else _keys(root)
    return [text for text in found if text.startswith(word)]


def root_of(command: str, words: Sequence[str]) -> str:
    """The name of the YAML that a command begins with."""
    generator = any(word.startswith("generator=") for word in words)
    return "reverse_generator" if command == "reverse" and generator else command


def _keys(root: str) -> Iterator[str]:
    yield from (f"{key}=" for key in _TYPED.get(root, ()))
    if root in ("resume", "evaluate", "reverse", "refit", "sample", "compare"):
        yield from (f"{key}=" for key in sorted(ON_RUN))
    yield from (f"{key}=" for key, _ in _leaves(_yaml(root)))


def _values(root: str, key: str) -> Iterator[str]:
    if (root, key) in _BY_METRIC:
        from flexgen.report.catalogue import METRICS

        yield from (f"{key}={name}" for name in METRICS)
    elif root == "compare" and key == "priors":
        names = sorted(path.stem for path in (conf_dir() / "prior").glob("*.yaml"))
        yield from (f"{key}={name}" for name in ("own", "base", *names))
    elif isinstance(dict(_leaves(_yaml(root))).get(key), bool):
        yield from (f"{key}={value}" for value in _BOOLEAN)
    elif (end := key.rpartition(".")[2]) in _VALUES and (end != "data" or "generator" in root):
        yield from (f"{key}={value}" for value in _VALUES[end])


def _yaml(root: str) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((conf_dir() / f"{root}.yaml").read_text("utf-8"))
    return {key: value for key, value in found.items() if key not in ("defaults", "hydra")}


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def take_run(line: list[str]) -> list[str]:
    """Take what names a run out of a line's words but the last, as Hydra knows no such keys; and
    nothing where there is no run yet."""
    taken = [word for word in line[:-1] if word.partition("=")[0] in ON_RUN]
    os.environ["COMP_LINE"] = " ".join(word for word in line if word not in taken)
    runs = [word.partition("=")[2] for word in taken if word.startswith("run=")]
    return taken if runs and all((Path(run) / "config.yaml").is_file() for run in runs) else []
