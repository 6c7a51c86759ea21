"""`flexgen refit run=…`: learn the data-induced prior of a run and go on training from it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.cli.compose import plain, run_hydra, task_overrides


def main(argv: list[str]) -> None:
    run_hydra("refit", argv, _refit, on_run=True)


def _refit(cfg: DictConfig) -> None:
    parent_dir, checkpoint, more = Path(cfg.run), cfg.checkpoint, cfg.more
    refit: Any = OmegaConf.to_container(cfg.refit, resolve=True)
    run_dir = str(cfg.paths.run_dir)
    config = plain(cfg)
    from flexgen.cli.compose import relocate
    from flexgen.cli.fit import fit_with_control
    from flexgen.training import latest_checkpoint, load_checkpoint

    parent = (
        parent_dir / "checkpoints" / checkpoint if checkpoint else latest_checkpoint(parent_dir)
    )
    step = load_checkpoint(parent)["flexgen"]["counters"]["generator_steps"]
    config = relocate(config, [(str(parent_dir), run_dir)])
    config["callbacks"][f"refit_{step}"] = refit | {
        "_target_": "flexgen.callbacks.PriorRefit",
        "at": [step],
    }
    config["steps"] = step + more
    fit_with_control(config, "refit", task_overrides(), parent)
