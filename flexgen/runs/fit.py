"""Train: from a configuration to a finished run directory."""

import contextlib
import json
import logging
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from flexgen.callbacks import Scheduled
from flexgen.runs.build import Parts, build, build_trainer, find_checkpoint
from flexgen.runs.cells import wants_several
from flexgen.runs.compose import is_sweep, load_config, relocate
from flexgen.runs.errors import check_whole, error_line, error_reason
from flexgen.runs.folder import alone, check_parent, write_config, write_final, write_provenance
from flexgen.runs.wandb_run import name_wandb, wandb_run
from flexgen.training import CSVLogger, LogPictures, find_checkpoints, load_checkpoint
from flexgen.training.checkpoint import set_aside_later

__all__ = ["fit", "fit_with_control", "resume"]


def fit_with_control(
    config: dict[str, Any], command: str, overrides: list[str], parent: Path | None = None
) -> Path:
    """Train; if `control` is set, train a control from just before the refit; write the report.

    A cell that has started before goes on. The control starts from the checkpoint that the first
    refit saved beforehand and makes as many steps with the old prior: same weights, optimizers,
    batches and generators' states.

    Returns:
        The run directory.
    """
    run_dir = Path(config["paths"]["run_dir"])
    if (run_dir / "cell.json").exists() and (run_dir / "config.yaml").exists():
        # Where the folder says no more than the command itself, it needs no trust.
        saved = load_config(run_dir, trust=True)
        name_wandb(config, command, saved)
        return resume(config if saved == config else load_config(run_dir))
    name_wandb(config, command)
    fit(config, command, overrides, parent)
    return _finish(config, run_dir)


def fit(
    config: dict[str, Any], command: str, overrides: list[str], parent: Path | None = None
) -> Path:
    """Start a run in `config["paths"]["run_dir"]`, from the checkpoint `parent` if given.

    Raises:
        FileExistsError: if the directory already holds a run.
        RuntimeError: if training fails; the message names the last whole checkpoint.
    """
    run_dir = Path(config["paths"]["run_dir"])
    _check(config)
    if _rank() > 0:
        return _train(config, build(config), parent)
    _refuse_second(run_dir)
    parts = build(config)
    with alone(run_dir):
        _refuse_second(run_dir)
        write_provenance(run_dir, command, overrides, config["seed"], parent)
        if parent is not None and (history := parent.parent.parent / "metrics.csv").is_file():
            shutil.copy(history, run_dir / "metrics.csv")
        # Last: killed before it, this is no run yet, and the same command starts it.
        write_config(run_dir, config)
        try:
            return _train(config, parts, parent)
        except Exception:
            if not parts.model.counters.batches:  # refused before its first step: no run either
                for name in ("config.yaml", "metrics.csv", "provenance.json"):
                    (run_dir / name).unlink(missing_ok=True)
            raise


def _refuse_second(run_dir: Path) -> None:
    if (run_dir / "config.yaml").exists():
        raise FileExistsError(
            f"{run_dir} already holds a run; go on with it by `flexgen resume run={run_dir}`, or "
            "choose another `paths.run_dir`"
        )


def resume(config: dict[str, Any], name: str | None = None) -> Path:
    """Go on with the run in `config["paths"]["run_dir"]` from its last checkpoint, or `name`.

    Raises:
        ValueError: if the checkpoint, or the one the run started from, is damaged or changed.
    """
    run_dir = Path(config["paths"]["run_dir"])
    _check(config)
    with _at_work(run_dir):
        check_parent(run_dir)
        about = json.loads((run_dir / "provenance.json").read_text())
        if (wandb := config["logger"].get("wandb")) and wandb["id"] is None:
            name_wandb(config, about["command"])
        checkpoint: Path | None = None
        if name or find_checkpoints(run_dir):
            checkpoint = find_checkpoint(run_dir, name)
            load_checkpoint(checkpoint)
        elif parent := about["parent"]:
            # Stopped before it saved anything: start again from where it started.
            checkpoint = Path(parent["checkpoint"])
        parts = build(config)
        if _rank() == 0:
            write_config(run_dir, config)
        return _finish(config, _train(config, parts, checkpoint))


def _finish(config: dict[str, Any], run_dir: Path) -> Path:
    before = sorted((run_dir / "checkpoints").glob("before_refit_step=*.ckpt"))
    if config.get("control") and before:
        control = _control(config, run_dir)
        if not (control_dir := run_dir / "control").joinpath("config.yaml").exists():
            fit(control, "control", [], before[0])
        elif not json.loads((control_dir / "provenance.json").read_text())["finished"]:
            with _at_work(control_dir):
                started = find_checkpoints(control_dir)
                _train(control, build(control), started[-1] if started else before[0])
    if _rank() > 0:
        return run_dir
    if config.get("report"):
        from flexgen.report import print_comparison, write_report

        if before:
            print_comparison(run_dir)
        print(f"report: {write_report(run_dir)}")
    print(f"run: {run_dir}")
    return run_dir


def _at_work(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Process zero is the only one of its rank in a run directory; the others belong to it."""
    return alone(run_dir) if _rank() == 0 else contextlib.nullcontext()


def _check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run before anything is written.

    Raises:
        ValueError: naming the key and the remedy.
    """
    check_whole("steps", config["steps"], 1)
    if check_whole("seed", config["seed"], 0) >= 2**32:
        raise ValueError(f"`seed` must be below 2**32, got {config['seed']}")
    if config.get("threads") is not None:
        check_whole("threads", config["threads"], 1)
    for key in ("fast_dev_run", "max_steps", "min_steps", "min_epochs"):
        if config["trainer"].get(key) not in (None, False, -1):
            raise ValueError(
                f"`trainer.{key}` is not for a run, which ends by its generator steps; set steps="
                f"{int(config['trainer'][key])}"
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
    name_wandb(moved, "control")
    return moved | {"control": False, "report": False}


def _train(config: dict[str, Any], parts: Parts, checkpoint: Path | None) -> Path:
    model, run_dir = parts.model, Path(config["paths"]["run_dir"])
    model.schedule.end = config["steps"]
    for callback in parts.callbacks.values():
        if isinstance(callback, Scheduled):
            callback.check(model, parts.data)
    with _quiet():
        signals = _StopOnSignal()
        # First, for a refit at the start is long enough to be stopped.
        trainer = build_trainer(config, [signals, *parts.callbacks.values(), LogPictures()])
    step = 0
    if checkpoint is not None:
        counters = load_checkpoint(checkpoint)["flexgen"]["counters"]
        parts.data.position, step = counters["batches"], counters["generator_steps"]
        if step >= config["steps"]:
            model.counters.load_state_dict(counters)
            write_final(run_dir, model.counters.axes())
            print(f"already at step {step}; ask for more with steps={2 * step}")
            return run_dir
        if _rank() == 0 and checkpoint.parent.parent == run_dir:
            for left in set_aside_later(checkpoint):
                print(f"{left.name}: later than step {step}, set aside", file=sys.stderr)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(step)
    with wandb_run(trainer, config):
        try:
            with _quiet():
                trainer.fit(model, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
        except Exception as error:
            # What it holds of an optimizer is first used in the first step.
            foreseen = (
                ValueError,
                OSError,
                FloatingPointError,
                *([RuntimeError] if signals.begun else []),
            )
            unused = model.counters.generator_steps <= step
            if checkpoint and unused and not isinstance(error, foreseen):
                raise ValueError(
                    f"checkpoint {checkpoint} does not fit the run's configuration "
                    f"({error_reason(error)}); restore them, or go on from an earlier one with "
                    "`checkpoint=…`"
                ) from error
            if not unused and (saved := find_checkpoints(run_dir)):
                hint = (
                    f"the last whole checkpoint is {saved[-1]}; go on with "
                    f"flexgen resume run={run_dir}"
                )
                raise RuntimeError(f"{error_line(error)}; {hint}") from error
            raise
        finally:
            signals.restore()
        if model.counters.generator_steps < config["steps"]:
            found = [path.name for path in find_checkpoints(run_dir)[-1:]] or ["no checkpoint yet"]
            print(
                f"stopped at step {model.counters.generator_steps} of {config['steps']}, saved "
                f"{found[0]}; go on with: flexgen resume run={run_dir}",
                file=sys.stderr,
            )
            signals.pass_on()
            sys.exit(130)
    if _rank() == 0:
        write_final(run_dir, model.counters.axes())
    return run_dir


class _StopOnSignal(pl.Callback):
    """The first signal stops before the next step and saves; the second stops at once.

    Signals are Ctrl-C, SIGTERM and what schedulers send before the time is up, SIGUSR1 and SIGUSR2.
    Lightning installs handlers of its own when a fit begins, so these go in after them.
    """

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}
        self._received = 0
        self.begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.begun = True

        def stop(number: int, frame: Any) -> None:
            if pl_module.stop_requested:
                raise KeyboardInterrupt
            pl_module.stop_requested = True
            self._received = number
            print("stopping: saving first; once more to stop at once", file=sys.stderr)

        # Outside the main thread, as under some launchers, the launcher handles signals.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                self._old[number] = signal.signal(number, stop)

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        """Now that all is saved, give SIGUSR2 to submitit, which queues the job again."""
        handler = self._old.get(self._received)
        if self._received == signal.SIGUSR2 and callable(handler):
            handler(signal.SIGUSR2, None)


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


def _rank() -> int:
    """Which process this is: the others of a run train, and leave files to process zero."""
    return getattr(rank_zero_only, "rank", 0)
