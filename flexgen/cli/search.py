"""`flexgen search 'model.lr=tag(log,interval(1e-4,1e-2))' …`: the best settings, by Optuna."""

import shlex
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from flexgen.cli.app import Command
from flexgen.runs.compose import task_overrides
from flexgen.runs.search import Search, parse_override

_OWN = ("trials", "metric", "last", "direction", "search_seed", "pruner", "pruner_warmup")


def command(argv: list[str]) -> Command:
    if {"-m", "--multirun"} & set(argv):
        raise ValueError("a search is no sweep; leave out -m, and choices are searched")
    space, rest = {}, []
    for word in argv:
        override = parse_override(word)
        if override is not None and override.is_sweep_override():
            space[override.get_key_element()] = override
        else:
            rest.append(word)
    # Last, for an experiment may be a grid by itself.
    return Command("search", [*rest, "hydra.mode=RUN"], partial(_search, space=space))


def _search(cfg: DictConfig, space: dict[str, Override]) -> None:
    fixed = [word for word in task_overrides() if word.partition("=")[0] not in _OWN]
    best = Search(
        Path(HydraConfig.get().runtime.output_dir), fixed, space, trials=cfg.trials,
        metric=cfg.metric, last=cfg.last, direction=cfg.direction, seed=cfg.search_seed,
        pruner=cfg.pruner, pruner_warmup=cfg.pruner_warmup,
    ).run()  # fmt: skip
    if best is None:
        print("some trials are at other processes; the last of them tells the best")
        return
    pruned = f", {best.pruned} pruned" if best.pruned else ""
    told = f"best of {best.trials} trials, {best.failed} of them failed{pruned}"
    print(f"{told}: number {best.number}")
    print(f"{cfg.metric}: {best.value:.6g}")
    print(f"flexgen train {shlex.join(best.overrides)}")
