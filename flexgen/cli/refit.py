"""`flexgen refit run=…`: learn the data-induced prior of a run and go on training from it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.runs.compose import plain, relocate, reversal_options, run_hydra, task_overrides
from flexgen.runs.errors import check_whole
from flexgen.runs.imports import importing

_REFIT = "flexgen.callbacks.PriorRefit"


def main(argv: list[str]) -> None:
    run_hydra("refit", argv, _refit, on_run=True)


def _refit(cfg: DictConfig) -> None:
    parent_dir, checkpoint, more = Path(cfg.run), cfg.checkpoint, check_whole("more", cfg.more, 0)
    refit: Any = OmegaConf.to_container(cfg.refit, resolve=True)
    run_dir = str(cfg.paths.run_dir)
    config = plain(cfg)
    refit["options"] = reversal_options(config, refit["options"])
    with importing():
        from flexgen.runs.build import find_checkpoint
        from flexgen.runs.fit import fit_with_control
    from flexgen.runs.trust import rebuilding
    from flexgen.training import load_checkpoint

    with rebuilding(parent_dir):
        parent = find_checkpoint(parent_dir, checkpoint)
        saved = load_checkpoint(parent)
        step = saved["flexgen"]["counters"]["generator_steps"]
        done = {at for state in saved["callbacks"].values() for at in state.get("done", ())}
        config = relocate(config, [(str(parent_dir), run_dir)])
        # The parent's own refits stay as far as they are part of the checkpoint: as its stages.
        for name, callback in list(config["callbacks"].items()):
            if callback and callback["_target_"] == _REFIT:
                callback["at"] = sorted(done.intersection(callback["at"]))
                if not callback["at"]:
                    del config["callbacks"][name]
        config["callbacks"][f"refit_{step}"] = refit | {
            "_target_": _REFIT,
            "at": [step],
        }
        config["steps"] = step + more
        fit_with_control(config, "refit", task_overrides(), parent)
