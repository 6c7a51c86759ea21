"""`flexgen reverse run=…`: codes of data under a trained generator, saved and scored."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.cli.compose import plain, reversal_options, run_hydra


def main(argv: list[str]) -> None:
    run_hydra("reverse", argv, _reverse, on_run=True)


def _reverse(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg.reverse, resolve=True)
    checkpoint = cfg.checkpoint
    config = plain(cfg)
    asked["options"] = reversal_options(config, asked["options"])
    from flexgen.callbacks import ReversalScore
    from flexgen.callbacks.reversal import codes_path
    from flexgen.cli.build import load_trained
    from flexgen.report import print_values

    run_dir = Path(config["paths"]["run_dir"])
    parts = load_trained(config, run_dir, checkpoint)
    score = ReversalScore(**asked)
    values = score.run(parts.model, parts.data, run_dir)
    print_values(values, f"{parts.checkpoint}")
    print(f"codes: {codes_path(run_dir, parts.model.counters.generator_steps)}")
