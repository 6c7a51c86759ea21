"""Weights & Biases: one run for a run directory, by FlexGen's own counters."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import loggers
from pytorch_lightning.utilities import rank_zero_only

from flexgen.checks import check_integer
from flexgen.training.counters import Counters

_LONGEST = {"name": 128, "group": 128, "project": 128, "id": 128, "job_type": 64, "tags": 64}
_FORBIDDEN = frozenset("/\\#?%:")


_VARIABLES = {"group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "id": "WANDB_RUN_ID",
              "tags": "WANDB_TAGS", "entity": "WANDB_ENTITY"}  # fmt: skip
"""By which W&B takes what its logger is not given."""


def _check(**init: Any) -> None:
    """Refuse what the server would refuse in the end, when an offline run is sent to it."""
    if "resume" in init:
        raise ValueError(
            "`logger.wandb.resume` is set already: `flexgen resume` goes on in the same W&B run; "
            "leave it out"
        )
    for key in (*_LONGEST, "entity"):
        given, source = init.get(key), f"logger.wandb.{key}"
        if given is None and (variable := _VARIABLES.get(key)):
            given, source = os.environ.get(variable) or None, variable
            given = given.split(",") if given and key == "tags" else given
        for text in given if isinstance(given, Sequence) and key == "tags" else [given]:
            if text is None:
                continue
            longest = _LONGEST.get(key, 128)
            if not 0 < len(str(text)) <= longest:
                raise ValueError(
                    f"W&B takes 1 to {longest} characters for `{source}`, got "
                    f"{len(str(text))} ({str(text)[:20]!r}…)"
                )
            wrong = sorted(_FORBIDDEN & {*str(text)})
            if key in ("project", "id", "entity") and wrong:
                other = "; an account or a team is `logger.wandb.entity`"
                raise ValueError(
                    f"`{source}` must have none of {''.join(sorted(_FORBIDDEN))}, got "
                    f"{wrong[0]!r} in {text!r}{'' if key == 'entity' else other}"
                )


class WandbLogger(loggers.WandbLogger):
    """Lightning's W&B logger with `generator_steps` as the axis of every curve.

    Each row holds every step counter beside its values. Lightning's own logger adds
    `trainer/global_step`, which counts the steps of all optimizers; this one leaves it out.

    Args:
        save_dir: the run directory; W&B's files go into `wandb/` there.
        name: of the W&B run; None: the last two parts of the run directory's path.
        last: the summary of a metric holds the mean of its last so many values.
        offline: whether to write to disk alone; `WANDB_MODE=offline` does the same.
        **init: passed on to `wandb.init`, such as `project`, `group`, `job_type`, `id`.

    Raises:
        ValueError: if `last` is under 1, or for what W&B's server refuses: a name, group, project
            or id of more than 128 characters, a job type or a tag of more than 64, and a project
            or an id with one of `/\\#?%:`. Names made of folders are cut to fit.
    """

    def __init__(
        self, save_dir: str, *, name: str | None = None, last: int = 5, offline: bool = False,
        **init: Any,
    ) -> None:  # fmt: skip
        self.last = check_integer("last", last, 1, "set `logger.wandb.last`")
        where = Path(save_dir).resolve()
        name = name or f"{where.parent.name}/{where.name}"[-_LONGEST["name"] :]
        _check(name=name, **init)
        # W&B would have git look at this folder and at the working directory, which can configure
        # it to start programs, and send source code; the commit is in provenance.json.
        os.environ |= {"WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true"}
        super().__init__(name, save_dir, offline=offline, resume="allow", **init)
        # W&B warns of this setting whenever it is passed, and Lightning always passes it.
        self._wandb_init.pop("anonymous", None)

    def start(self, config: Mapping[str, Any], summaries: Mapping[str, str]) -> None:
        """Start the W&B run, or go on with it, and say how its metrics are to be shown.

        Args:
            config: what the run is; nested keys are shown with dots between them.
            summaries: metric name to "min" or "max", whichever is its best value.

        Raises:
            RuntimeError: if W&B does not start, for want of an account say.
            ValueError: for a setting that W&B does not know.
        """
        import wandb

        try:
            run = self.experiment
        except wandb.Error as error:
            why = " ".join(str(error).split())
            login = "run `wandb login`, or " if "key" in why.lower() or "login" in why else ""
            raise RuntimeError(
                f"W&B did not start ({why}); {login}write to disk alone with WANDB_MODE=offline"
            ) from error
        except ValueError as error:
            settings: Any = error  # pydantic's, by which W&B checks them
            if type(error).__name__ != "ValidationError":
                raise
            first = settings.errors()[0]
            key = ".".join(map(str, first["loc"])).removeprefix("run_")
            raise ValueError(
                f"`logger.wandb.{key}` cannot be {first['input']!r}: {first['msg']}"
            ) from error
        run.config.update(dict(config), allow_val_change=True)
        for axis in Counters().axes():
            run.define_metric(axis, hidden=True)
        run.define_metric("*", step_metric="generator_steps", overwrite=True)
        for name, best in summaries.items():
            run.define_metric(name, step_metric="generator_steps", summary=f"{best},last")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values as one row; `metrics` hold the step counters, so `step` says nothing new."""
        self.experiment.log(dict(metrics))

    @rank_zero_only
    def log_pictures(self, axes: Mapping[str, int], pictures: Mapping[str, Path]) -> None:
        """Log PNG files under their names, at the counters' values `axes`."""
        import wandb
        from PIL import Image

        for path in pictures.values():
            Image.open(path, formats=["PNG"]).close()  # W&B would open any, EPS by Ghostscript
        images = {name: wandb.Image(str(path)) for name, path in pictures.items()}
        self.experiment.log({**axes, **images})

    @rank_zero_only
    def log_tables(
        self, axes: Mapping[str, int], tables: Mapping[str, tuple[Sequence[str], list[list[Any]]]]
    ) -> None:
        """Log tables, each as its columns and its rows, at the counters' values `axes`."""
        import wandb

        media = {n: wandb.Table(list(columns), rows) for n, (columns, rows) in tables.items()}
        self.experiment.log({**axes, **media})


class LogPictures(pl.Callback):
    """Sends W&B every `images/*/step=….png` that another callback wrote at this step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that is resumed has already sent those of its checkpoint's step.
        self._done_at = pl_module.counters.generator_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step = pl_module.counters.generator_steps
        if step == self._done_at or pl_module.counters.critic_phase:
            return
        self._done_at = step
        wandb = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not wandb:
            return
        found = Path(trainer.default_root_dir).glob(f"images/*/step={step:08d}.png")
        if pictures := {f"images/{path.parent.name}": path for path in sorted(found)}:
            for logger in wandb:
                logger.log_pictures(pl_module.counters.axes(), pictures)
