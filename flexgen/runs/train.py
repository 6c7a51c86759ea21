"""Train: from a configuration to a finished run directory."""

import contextlib
import copy
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flexgen.callbacks import Scheduled
from flexgen.checks import check_integer
from flexgen.report import write_report
from flexgen.run_notes import on_run, rewind_notes
from flexgen.runs.build import build_trainer
from flexgen.runs.compose import is_sweep
from flexgen.runs.devices import wants_several
from flexgen.runs.errors import TrainingStopped, error_line, error_reason
from flexgen.runs.folder import (
    alone,
    check_parent,
    find_checkpoint,
    note_resume,
    read_provenance,
    write_config,
    write_final,
    write_provenance,
)
from flexgen.runs.preconditions import (
    Fingerprint,
    check_recorded,
    check_same_data,
    new_settings,
    record_data,
)
from flexgen.runs.run import Run
from flexgen.runs.saved_config import load_config, relocate
from flexgen.runs.stopping import StopOnSignal
from flexgen.runs.trust import confine, remember_data
from flexgen.runs.wandb_run import name_wandb, wandb_run
from flexgen.training import CSVLogger, LogPictures, find_checkpoints, load_checkpoint, rank
from flexgen.training.checkpoint import set_aside_later


def train(
    config: dict[str, Any], *, command: str = "train", overrides: Sequence[str] | None = None,
    parent: Path | None = None,
) -> Run:  # fmt: skip
    """Train a run, measure it on its schedule and write its report, all in `paths.run_dir`.

    If `control` is set, train a control too: it starts from the checkpoint that the first refit
    saved beforehand and makes as many steps with the old prior, from the same weights, optimizers,
    batches and generators' states. A cell of a sweep that has started before goes on.

    Args:
        config: plain values, as :func:`flexgen.runs.compose.compose` gives; left as it is.
        command: what the run notes as its origin.
        overrides: by which tables tell runs apart; None: those in `config`, which `compose` noted.
        parent: a checkpoint to start from; None: the weights that the seed gives.

    Raises:
        ValueError: if the configuration cannot be trained.
        FileExistsError: if the folder already holds a run.
        RuntimeError: if training fails; the message names the last whole checkpoint.
        TrainingStopped: if a signal, such as Ctrl-C, stopped it before its end; it has saved.
    """
    config = copy.deepcopy(config)
    noted = config.pop("overrides", [])
    run_dir = Path(config["paths"]["run_dir"])
    if (run_dir / "cell.json").exists() and (run_dir / "config.yaml").exists():
        # Where the folder says no more than the command itself, it needs no trust.
        before = load_config(run_dir, trust=True)
        name_wandb(config, command, before)
        # How it is trained and logged may change from one command to the next.
        how = {key: config[key] for key in ("logger", "threads", "trainer")}
        return resume(config if before | how == config else load_config(run_dir) | how)
    name_wandb(config, command)
    _check(config)
    if rank() > 0:
        run = Run(config).build()
        _fit(run, parent)
        return _finish(run)
    _refuse_second(run_dir)
    fresh = not run_dir.is_dir() or not any(run_dir.iterdir())
    run = Run(config).build()
    if parent is not None:
        saved = load_checkpoint(parent)
        check_recorded(parent.parent.parent, config, run.data)
        check_same_data(config, run.data, saved)
        _tell(new_settings(config, saved, same_run=False))
    with _leaving_nothing(run_dir, run, fresh), alone(run_dir):
        _refuse_second(run_dir)
        words = list(noted if overrides is None else overrides)
        write_provenance(
            run_dir, command, words, config["seed"], parent, record_data(config, run.data)
        )
        if command == "train":  # another's run that is gone on from is no word of the user's own
            remember_data(config)
        if parent is not None and (history := parent.parent.parent / "metrics.csv").is_file():
            shutil.copy(history, run_dir / "metrics.csv")
        # Last: killed before it, this is no run yet, and the same command starts it.
        write_config(run_dir, config)
        _fit(run, parent)
    return _finish(run)


@contextlib.contextmanager
def _leaving_nothing(run_dir: Path, run: Run, fresh: bool) -> Iterator[None]:
    """Remove what a run that was refused before its first step has left; of a folder that is not
    `fresh`, what makes it a run."""
    try:
        yield
    except Exception:
        if not run.model.counters.batches:
            for name in ("config.yaml", "metrics.csv", "provenance.json"):
                (run_dir / name).unlink(missing_ok=True)
            if fresh:
                shutil.rmtree(run_dir, ignore_errors=True)
        raise


def resume(config: dict[str, Any], checkpoint: str | None = None) -> Run:
    """Go on with the run in `config["paths"]["run_dir"]` from its last checkpoint, or a named one.

    Raises:
        ValueError: if the checkpoint, or the one the run started from, is damaged or changed.
        TrainingStopped: if a signal stopped it before its end.
    """
    run_dir = Path(config["paths"]["run_dir"])
    _check(config)
    with _at_work(run_dir):
        check_parent(run_dir)
        about = read_provenance(run_dir)
        if (wandb := config["logger"].get("wandb")) and wandb["id"] is None:
            name_wandb(config, about["command"])
        start, own = None, bool(checkpoint or find_checkpoints(run_dir))
        if own:
            start = find_checkpoint(run_dir, checkpoint)
        elif parent := about["parent"]:
            # Stopped before it saved anything: start again from where it started.
            start = Path(parent["checkpoint"])
        saved = None if start is None else load_checkpoint(start)
        changed = [] if saved is None else new_settings(config, saved, same_run=own)
        run = Run(config).build()
        check_recorded(run_dir, config, run.data)
        if saved is not None:
            check_same_data(config, run.data, saved)
        if rank() == 0:
            _tell(changed)
            note_resume(run_dir, start, changed)
            write_config(run_dir, config)
        _fit(run, start)
        return _finish(run)


def _resume_by(config: dict[str, Any]) -> str:
    """The command that goes on with a run; one with code of the user's own wants to be trusted."""
    run_dir = Path(config["paths"]["run_dir"])
    try:
        confine(copy.deepcopy(config), run_dir)
    except ValueError:
        return on_run("resume", run_dir, "trust=true")
    return on_run("resume", run_dir)


def _tell(lines: list[str]) -> None:
    for line in lines:
        print(f"flexgen: {line}", file=sys.stderr)


def _refuse_second(run_dir: Path) -> None:
    if (run_dir / "config.yaml").exists():
        raise FileExistsError(
            f"{run_dir} already holds a run; go on with it by `{on_run('resume', run_dir)}`, or "
            "choose another `paths.run_dir`"
        )


def _finish(run: Run) -> Run:
    """The control, if there is to be one, and the report."""
    config, run_dir = run.config, run.folder
    before = sorted((run_dir / "checkpoints").glob("before_refit_step=*.ckpt"))
    if config.get("control") and before:
        control = _control(config, run_dir)
        if not (control_dir := run_dir / "control").joinpath("config.yaml").exists():
            train(control, command="control", overrides=[], parent=before[0])
        elif not read_provenance(control_dir)["finished"]:
            name_wandb(control, "control")
            with _at_work(control_dir):
                started = find_checkpoints(control_dir)
                _fit(Run(control).build(), started[-1] if started else before[0])
    if config.get("report") and rank() == 0:
        write_report(run_dir)
    # What saved nothing is known from memory alone.
    return Run(config) if find_checkpoints(run_dir) else run


def _at_work(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Process zero is the only one of its rank in a run directory; the others belong to it."""
    return alone(run_dir) if rank() == 0 else contextlib.nullcontext()


_WHY_NONE = "a run measures by its callbacks, logs by its loggers and reads one endless stream"
_WITHOUT_EFFECT = {
    "callbacks", "check_val_every_n_epoch", "limit_predict_batches", "limit_test_batches",
    "limit_val_batches", "log_every_n_steps", "logger", "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler", "val_check_interval",
}  # fmt: skip


def _check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run, before anything is written."""
    check_integer("steps", config["steps"], 1)
    if check_integer("seed", config["seed"], 0) >= 2**32:
        raise ValueError(f"`seed` must be below 2**32, got {config['seed']}")
    if config.get("threads") is not None:
        check_integer("threads", config["threads"], 1)
    for name, schedule in config["model"].items():
        end = (schedule or {}).get("steps") if name.endswith("scheduler") else None
        if isinstance(end, int) and end < config["steps"] and rank() == 0:
            _tell([f"the step size stays as it is after step {end}, where its schedule ends; "
                   f"model.{name}.steps={config['steps']} stretches it"])  # fmt: skip
    for key in ("fast_dev_run", "max_steps", "min_steps", "min_epochs"):
        if config["trainer"].get(key) not in (None, False, -1):
            raise ValueError(
                f"`trainer.{key}` is not for a run, which ends by its generator steps; set steps="
                f"{int(config['trainer'][key])}"
            )
    for key in sorted(_WITHOUT_EFFECT & config["trainer"].keys()):
        raise ValueError(
            f"`trainer.{key}` has no effect: {_WHY_NONE}; leave it out, and set the keys of "
            "`callbacks`, `logger` and `data`"
        )
    accelerator = config["trainer"]["accelerator"]
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"`trainer.accelerator={accelerator}` but torch sees no GPU; set `trainer=cpu`, or "
            "install a torch build that matches the driver"
        )
    on_gpus = accelerator != "cpu" and torch.cuda.is_available()
    if config["trainer"].get("sync_batchnorm") and not on_gpus:
        raise ValueError(
            "`trainer.sync_batchnorm=true` needs GPUs, torch has no such layer for the CPU; leave "
            "it out, or set trainer=ddp"
        )
    if is_sweep() and wants_several(config["trainer"]):
        raise ValueError(
            "a cell of this sweep would be several processes, and each would run the sweep; start "
            "each cell by itself, without -m"
        )


def _control(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The same run in `control/`, without the refits."""
    moved = relocate(config, [(str(run_dir), str(run_dir / "control"))])
    moved["callbacks"] = {
        name: callback
        for name, callback in moved["callbacks"].items()
        if callback is None or callback["_target_"] != "flexgen.callbacks.PriorRefit"
    }
    if progress := moved["callbacks"].get("progress"):
        progress["label"] = "control"
    return moved | {"control": False, "report": False}


def _fit(run: Run, checkpoint: Path | None) -> None:
    """Make the steps that are left from a checkpoint, or all."""
    config, model, data, run_dir = run.config, run.model, run.data, run.folder
    model.schedule.end = config["steps"]
    for callback in run.callbacks.values():
        if isinstance(callback, Scheduled):
            callback.check(model, data)
    with _quiet():
        signals = StopOnSignal()
        own = [LogPictures(), Fingerprint(config, data)]
        # First, for a refit at the start is long enough to be stopped.
        trainer = build_trainer(config, [signals, *run.callbacks.values(), *own])
    step = 0
    if checkpoint is not None:
        saved = load_checkpoint(checkpoint)
        counters = saved["flexgen"]["counters"]
        data.position, step = counters["batches"], counters["generator_steps"]
        if step >= config["steps"] and not _unmeasured(run, saved):
            model.counters.load_state_dict(counters)
            write_final(run_dir, model.counters.axes())
            print(f"already at step {step}; ask for more with steps={2 * step}")
            return
        if rank() == 0 and checkpoint.parent.parent == run_dir:
            for left in set_aside_later(checkpoint):
                print(f"{left.name}: later than step {step}, set aside", file=sys.stderr)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(step)
    if rank() == 0:
        rewind_notes(run_dir, step)
    with wandb_run(trainer, config):
        try:
            with _quiet():
                trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as ended:
            # Lightning makes one of a KeyboardInterrupt, and would end a notebook's kernel.
            if isinstance(ended.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from ended
            raise
        except Exception as error:
            foreseen: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError)
            if signals.begun:  # what it holds of an optimizer is first used in the first step
                foreseen = (*foreseen, RuntimeError)
            unused = model.counters.generator_steps <= step
            if checkpoint and unused and not isinstance(error, foreseen):
                raise ValueError(
                    f"checkpoint {checkpoint} does not fit the run's configuration "
                    f"({error_reason(error)}); restore them, or go on from an earlier one with "
                    "`checkpoint=…`"
                ) from error
            if not unused and (there := find_checkpoints(run_dir)):
                raise RuntimeError(
                    f"{error_line(error)}; the last whole checkpoint is {there[-1]}; go on with "
                    f"{_resume_by(config)}"
                ) from error
            raise
        finally:
            signals.restore()
        if (step := model.counters.generator_steps) < (model.schedule.end or 0):
            found = [path.name for path in find_checkpoints(run_dir)[-1:]] or ["no checkpoint yet"]
            stopped = TrainingStopped(
                f"stopped at step {step} of {config['steps']}, saved {found[0]}; go on with: "
                f"{_resume_by(config)}"
            )
            stopped.signal = signals.received
            raise stopped
    if rank() == 0:
        write_final(run_dir, model.counters.axes())


def _unmeasured(run: Run, saved: dict[str, Any]) -> bool:
    """Whether a run was killed at its last step, after it had saved and before it had measured."""
    step = saved["flexgen"]["counters"]["generator_steps"]
    return step == run.config["steps"] and any(
        measurement.is_due(step, step) and state.get("acted_at") != step
        for measurement in run.measurements.values()
        if (state := saved["callbacks"].get(measurement.state_key)) is not None
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice, which is about its own loop and loaders, off the screen."""
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", module="lightning_fabric")
            yield
    finally:
        lightning.setLevel(level)
