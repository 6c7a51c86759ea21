"""`flexgen export run=…`: generator, encoder and prior as files for others."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.checks import check_integer
from flexgen.cli.app import Command
from flexgen.runs.compose import plain
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("export", argv, _export, on_run=True)


def _export(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    seed = check_integer("sample_seed", asked["sample_seed"], 0)
    config = plain(cfg)
    with importing():
        from flexgen.runs.export import export
        from flexgen.runs.run import Run
    run = Run(config, asked["checkpoint"])
    out = Path(asked["out"] or run.folder / "export" / str(asked["to"]))
    for line in export(run, asked["to"], out, list(asked["parts"]), seed):
        print(line)
    print(f"what it is and how it is used: {out / 'README.md'}")
