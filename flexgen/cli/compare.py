"""`flexgen compare run=…`: one trained generator under several priors, side by side."""

import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flexgen.checks import check_integer
from flexgen.cli.app import Command
from flexgen.runs.compose import compose_prior, plain
from flexgen.runs.imports import importing

_ENTRY = re.compile(r"([\w/-]+)\s*(?:\(([^()]*)\))?")
_COMMA = re.compile(r"(?:[^,()\[\]{}]|\([^)]*\)|\[[^]]*\]|\{[^}]*\})+")


def command(argv: list[str]) -> Command:
    return Command("compare", argv, _compare, on_run=True, verbatim={"priors": "", "out": ""})


def _compare(cfg: DictConfig) -> None:
    n, n_fit, seeds, split = cfg.n, cfg.n_fit, cfg.seeds, cfg.split
    for name, value, least in (("n", n, 2), ("n_fit", n_fit, 10), ("seeds", seeds, 2)):
        check_integer(name, value, least)
    if not isinstance(cfg.nll, bool):
        raise ValueError(f"`nll` must be true or false, got {cfg.nll}")
    if split not in ("validation", "test"):
        raise ValueError(
            f"`split` must be validation or test, got {split!r}; training data are the floor, and "
            "what priors learn from"
        )
    config = plain(cfg)
    asked = _read(cfg.priors, config)
    with importing():
        from flexgen.analysis.comparison import Comparison, NamedPrior, default_priors
        from flexgen.report import print_priors
        from flexgen.runs.run import Run

    run = Run(config, cfg.checkpoint)
    asked = asked or _read(",".join(default_priors(run.latent)), config)
    comparison = Comparison(
        run, n=n, n_fit=n_fit, seeds=seeds, split=split, nll=cfg.nll,
        cache_dir=Path(config["paths"]["cache_dir"]) / "classifiers",
    )  # fmt: skip
    try:
        for i, prior in enumerate(asked, 1):
            told = comparison.add(NamedPrior(**prior))
            print(f"[{i}/{len(asked)}] {prior['label']}: {told}", file=sys.stderr)
    finally:
        # What was measured before a Ctrl-C is worth keeping.
        print_priors(comparison.table(), Path(cfg.out) if cfg.out else run.folder / "comparison")
    comparison.check()


def _read(text: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The priors that a text names, each as the arguments of a `NamedPrior`."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    words = _COMMA.findall(text)
    if ",".join(words) != text:
        raise _mistyped(text)
    return [_entry(word.strip(), config) for word in words]


def _entry(word: str, config: dict[str, Any]) -> dict[str, Any]:
    found = _ENTRY.fullmatch(word)
    if found is None:
        raise _mistyped(word)
    name, options = found[1], _COMMA.findall(found[2] or "")
    if name in ("own", "base") and not options:
        return {"label": word}
    options = [option.strip() for option in options]
    names_base = any("base" in option.partition("=")[0] for option in options)
    prior = compose_prior(config, name, options)
    return {"label": word, "config": prior, "names_base": names_base}


def _mistyped(text: str) -> ValueError:
    return ValueError(
        "`priors` must be names with options in parentheses, as in "
        f"'priors=own,masked(rate=0.5)', got {text!r}"
    )
