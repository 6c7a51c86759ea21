"""`flexgen reverse`: codes of a run's own data, scored; or of any images under any generator."""

import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.checks import check_integer
from flexgen.cli.app import Command, explain
from flexgen.runs.compose import plain
from flexgen.runs.imports import importing

_TYPED = dict.fromkeys(("generator", "path", "encoder")) | {"data": "folder", "out": "codes"}


def command(argv: list[str]) -> Command | None:
    """Dispatch by `run=` and `generator=`, of which there must be one; None: help was asked for."""
    keys = {word.partition("=")[0] for word in argv}
    if "-sc" in argv or ("run" in keys and "generator" not in keys):
        return Command("reverse", argv, _reverse, on_run=True)
    if {"--help", "-h"} & keys:
        print(_help(), end="")
        return None
    if "run" in keys:
        raise ValueError(
            "give run= for a FlexGen run's own data, or generator= for other data, not both"
        )
    if "generator" not in keys:
        raise ValueError(
            "which generator? give run=PATH of a FlexGen run, or generator=FILE data=folder "
            "path=IMAGES; `flexgen reverse --help` explains both"
        )
    return Command("reverse_generator", argv, _find_codes, verbatim=_TYPED)


def _reverse(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg.reverse, resolve=True)
    check_integer("n", asked["n"], 1)
    config = plain(cfg)
    with importing():
        from flexgen.callbacks import ReversalScore
        from flexgen.codes import codes_path
        from flexgen.report import print_values
        from flexgen.runs.run import Run

    run = Run(config, cfg.checkpoint)
    typed = {name: value for name, value in asked["options"].items() if value is not None}
    score = ReversalScore(**asked | {"options": run.reversal_options | typed})
    score.check(run.latent, run.data)
    print_values(score.run(run.model, run.data, run.folder), f"{run.checkpoint}")
    print(f"codes: {codes_path(run.folder, run.model.counters.generator_steps)}")


def _find_codes(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    for name in ("generator", "path"):
        if not asked[name]:
            whose = "" if name == "generator" else ", of your own data: data=folder or data=array"
            raise ValueError(f"`{name}` has no value; give {name}=… on the command line{whose}")
    with importing():
        from flexgen.analysis.reverse_files import find_codes

    try:
        find_codes(asked)
    except KeyboardInterrupt:
        print(
            f"flexgen reverse: stopped; what is done lies in {asked['out']}, and the same command "
            "goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)


def _help() -> str:
    shown = [explain(name) for name in ("reverse_generator", "reverse")]
    return (
        "Two commands in one; every key is given as key=value, one below another as "
        "reverse.steps=500.\n\n" + "\n\n".join(shown) + "\nWith run=, --help adds what the run's "
        "own configuration holds.\n"
    )
