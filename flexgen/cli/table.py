"""`flexgen table multirun/…`: mean ± std over seeds, as text, CSV, LaTeX and a plot."""

import sys

from omegaconf import DictConfig

from flexgen.checks import check_integer
from flexgen.cli.app import Command
from flexgen.runs.imports import importing

_FLAGS = {"--metrics", "--last", "--comparison", "--out"}  # as of version 0.1


def command(argv: list[str]) -> Command:
    words = _from_flags(argv)
    return Command("table", words, _table, on_folders=True, groups=False, verbatim={"out": None})


def _table(cfg: DictConfig) -> None:
    check_integer("last", cfg.last, 1)
    if not isinstance(cfg.comparison, bool):
        raise ValueError(f"`comparison` must be true or false, got {cfg.comparison!r}")
    with importing():
        from flexgen.report import write_table

    metrics = [cfg.metrics] if isinstance(cfg.metrics, str) else cfg.metrics and list(cfg.metrics)
    write_table(
        list(cfg.runs), metrics=metrics, last=cfg.last, comparison=cfg.comparison, out=cfg.out
    )


def _from_flags(argv: list[str]) -> list[str]:
    """The same words with `last=5` for `--last 5`, which goes in the next version."""
    words, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in _FLAGS:
            words.append(flag + equals + value)
            continue
        key, values = flag.removeprefix("--"), [value] if equals else []
        most = {"metrics": len(rest), "comparison": 0}.get(key, 1)
        while not equals and len(values) < most and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        text = {"metrics": f"[{','.join(values)}]", "comparison": "true"}.get(key, "".join(values))
        words.append(f"{key}={text}")
        print(f"flexgen table: {flag} is deprecated, say {words[-1]}", file=sys.stderr)
    return words
