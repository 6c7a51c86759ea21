"""What the command line tells W&B: whose run it is, how it was set up and how it ended."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from flexgen.report import RunError, RunFiles, compare
from flexgen.report.catalogue import METRICS, describe, ordered
from flexgen.runs.errors import TrainingStopped
from flexgen.training import WandbLogger, rank

_BEST = {"lower": "min", "higher": "max"}


def name_wandb(config: dict[str, Any], command: str, saved: dict[str, Any] | None = None) -> None:
    """Give a run's W&B run its id, job type and group; `config` is saved with them.

    What is set stays in `train`; elsewhere it is the parent's, whose group alone is taken over, and
    the command is the job type. A run that has `saved` a configuration before keeps its id. Under
    `wandb agent` the agent gives the id, whatever else is asked for.
    """
    logger = config["logger"].get("wandb")
    if not logger:
        return
    if command == "control":
        # Made anew from its parent's configuration whenever it is resumed.
        logger["id"] = f"{logger['id']}-control"
    else:
        known = ((saved or {}).get("logger") or {}).get("wandb") or {}
        typed = logger["id"] if command == "train" else None
        if os.environ.get("WANDB_SWEEP_ID"):
            typed = os.environ.get("WANDB_RUN_ID") or typed
        logger["id"] = known.get("id") or typed or uuid.uuid4().hex[:12]
    if command != "train" or not logger["job_type"]:
        logger["job_type"] = command
    run_dir = Path(config["paths"]["run_dir"])
    if not logger["group"] and (run_dir / "cell.json").is_file():
        logger["group"] = run_dir.resolve().parent.name[:128]


@contextlib.contextmanager
def wandb_run(trainer: pl.Trainer, config: dict[str, Any]) -> Iterator[None]:
    """Start the W&B run of this job, if it has one, and finish it however the job ends: the next
    cell of a sweep, in the same process, has its own. A training that was stopped gives 130."""
    logger = next((one for one in trainer.loggers if isinstance(one, WandbLogger)), None)
    if logger is None or rank() > 0:
        yield
        return
    code = 1
    try:
        summaries = {m.name: _BEST[m.better] for m in METRICS.values() if m.better}
        logger.start(_shown(config), summaries)
        yield
        code = 0
    except TrainingStopped:
        code = 130
        raise
    finally:
        import wandb

        try:
            if wandb.run is not None:
                _summarise(logger, config)
        finally:
            wandb.finish(exit_code=code)


def _shown(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as W&B shows it: classes by their names, and `prior` to group by."""
    shown: dict[str, Any] = _by_class_name({k: v for k, v in config.items() if k != "logger"})
    callbacks = [callback for callback in shown["callbacks"].values() if callback]
    refits = [callback["prior"] for callback in callbacks if callback["class"] == "PriorRefit"]
    priors = [prior for prior in (shown["model"].get("prior"), *refits) if prior]
    return shown | {
        "prior": "+".join(prior["class"] for prior in priors) or None,
        "values_in_mean_of_last": config["logger"]["wandb"]["last"],
    }


def _by_class_name(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_class_name(item) for item in value]
    if not isinstance(value, dict):
        return value
    shown = {key: _by_class_name(item) for key, item in value.items() if not key.startswith("_")}
    target = value.get("_target_")
    return {"class": target.rpartition(".")[2], **shown} if target else shown


def _summarise(logger: WandbLogger, config: dict[str, Any]) -> None:
    """Write the summary and the tables from `metrics.csv`: W&B knows of a run that was resumed
    offline only the values since then."""
    run_dir, tables = Path(config["paths"]["run_dir"]), {}
    try:
        run = RunFiles.load(run_dir)
        # A control's curves complete the comparison of the run that it lies in.
        is_control = config["logger"]["wandb"]["job_type"] == "control"
        comparison = compare(RunFiles.load(run_dir.parent) if is_control else run)
    except RunError:
        return  # it stopped before it logged anything
    rows: list[list[Any]] = []
    for name in ordered(run.curves):
        metric, values = describe(name), run.curves[name].values
        last, tail = float(values[-1]), run.curves[name].tail(logger.last)
        if metric.better:
            best = {"lower": values.min, "higher": values.max}[metric.better]()
            ends = {_BEST[metric.better]: float(best), "last": last, "mean_of_last": tail.mean}
            logger.experiment.summary[name] = ends
        rows.append([name, metric.label, metric.better, last, tail.mean, tail.spread, tail.count])
    columns = ["metric", "label", "better", "last", "mean", "std", "evaluations"]
    tables["tables/metrics"] = columns, rows
    if comparison is not None:
        when = comparison.columns
        compared = [
            [name, *(at[w].value if w in at else None for w in when)]
            for name, at in comparison.points.items()
        ]
        tables["tables/comparison"] = ["metric", *when], compared
    logger.log_tables(run.counters, tables)
