"""`flexgen train`: compose a configuration and train it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flexgen.cli.compose import is_sweep, plain, run_hydra, task_overrides
from flexgen.cli.sweep import keep_to_one_device, run_apart


def main(argv: list[str]) -> None:
    run_hydra("train", argv, _train)


def _train(cfg: DictConfig) -> None:
    config = plain(cfg)
    if is_sweep():
        if str(config["trainer"]["strategy"]).startswith("ddp"):
            run_apart(Path(config["paths"]["run_dir"]), task_overrides())
            return
        keep_to_one_device(config["trainer"], HydraConfig.get().job.num)
    # torch and Lightning take seconds to import: not before the configuration is known to be right.
    from flexgen.cli.fit import fit_with_control

    fit_with_control(config, "train", task_overrides())
