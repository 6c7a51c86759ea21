"""`flexgen train`: compose a configuration and train it."""

from omegaconf import DictConfig

from flexgen.cli.compose import plain, run_hydra, task_overrides


def main(argv: list[str]) -> None:
    run_hydra("train", argv, _train)


def _train(cfg: DictConfig) -> None:
    config = plain(cfg)
    # torch and Lightning take seconds to import: not before the configuration is known to be right.
    from flexgen.cli.fit import fit_with_control

    fit_with_control(config, "train", task_overrides())
