"""Learn the data-induced prior of a trained run, and go on from it as another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexgen.checks import check_integer
from flexgen.runs.folder import find_checkpoint
from flexgen.runs.run import Run
from flexgen.runs.saved_config import relocate
from flexgen.runs.train import train
from flexgen.runs.trust import rebuilding
from flexgen.training import load_checkpoint

_REFIT = "flexgen.callbacks.PriorRefit"


def refit(
    config: dict[str, Any], parent_dir: Path, how: dict[str, Any], *, more: int,
    checkpoint: str | None = None, overrides: Sequence[str] = (),
) -> Run:  # fmt: skip
    """Train a run that starts from another's checkpoint with a refit of its prior.

    Args:
        config: the parent's, with `paths.run_dir` of the new run.
        how: arguments of :class:`flexgen.callbacks.PriorRefit`, plain values; those of `options`
            that are None are as the parent's own reversal has them, and so are `sigma` and
            `posterior` as its posterior score has them.
        more: generator steps after the refit.
        checkpoint: of the parent: the name of one in its `checkpoints/`, or a path; None: the last.
        overrides: by which tables tell runs apart.

    Raises:
        ValueError: if the parent cannot be rebuilt, or not be trained with such a prior.
        TrainingStopped: if a signal stopped it before its end.
    """
    check_integer("more", more, 1, "it is the steps after the refit")
    run_dir = config["paths"]["run_dir"]
    own = (config["callbacks"].get("reversal") or {}).get("options", {})
    asked = {name: value for name, value in how["options"].items() if value is not None}
    score = config["callbacks"].get("posterior_score") or {}
    how = how | {
        "options": own | asked,
        "sigma": how["sigma"] or score.get("sigma"),
        "posterior": score.get("options", {}) | (how["posterior"] or {}),
    }
    with rebuilding(parent_dir):
        parent = find_checkpoint(parent_dir, checkpoint)
        saved = load_checkpoint(parent)
        step = saved["flexgen"]["counters"]["generator_steps"]
        done = {at for state in saved["callbacks"].values() for at in state.get("done", ())}
        if step in done:
            raise ValueError(
                f"the run refitted its prior at step {step} already, of which {parent.name} is; "
                f"start from another, such as checkpoint=before_refit_step={step:08d}.ckpt"
            )
        config = relocate(config, [(str(parent_dir), run_dir)])
        config["paths"]["run_dir"] = run_dir
        # The parent's own refits stay as far as they are part of the checkpoint: as its stages.
        for name, callback in list(config["callbacks"].items()):
            if callback and callback["_target_"] == _REFIT:
                callback["at"] = sorted(done.intersection(callback["at"]))
                if not callback["at"]:
                    del config["callbacks"][name]
        config["callbacks"][f"refit_{step}"] = how | {"_target_": _REFIT, "at": [step]}
        config["steps"] = step + more
        return train(config, command="refit", overrides=overrides, parent=parent)
