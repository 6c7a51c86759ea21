"""The cells of a `-m` sweep: known by their overrides, entered again where they stopped."""

import itertools
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from flexgen.files import open_lock, remove_empty, try_lock
from flexgen.run_notes import on_run
from flexgen.runs.compose import config_dirs, quoted
from flexgen.runs.devices import keep_to_one_device, wants_several
from flexgen.runs.errors import MeasurementFailed, TrainingStopped, TrialPruned, error_line
from flexgen.runs.grid_position import position
from flexgen.runs.imports import importing

_STATE = "cell.json"


@dataclass
class Cell:
    """A folder below the sweep's, with a file `cell.json`: overrides, state and error.

    States are `new`, `running`, `stopped`, `failed`, `pruned` and `finished`. A cell that is
    `running` while nobody holds its lock was killed. `entry` is of the command that is at work.
    """

    folder: Path
    overrides: list[str]
    entry: str

    @classmethod
    def claim(cls, sweep: Path, number: int, overrides: list[str], entry: str) -> "Cell":
        """The cell of these overrides: the one that is there, else a new one.

        A cell of an earlier command that was told another logger, threads or trainer is the same.
        Its folder is `number`, or the first after it that is free: a grid that has grown since
        counts its cells anew. Processes that enter a sweep at once agree.
        """
        there = {path: _read(path) for path in sweep.glob(f"*/{_STATE}")}
        apart = {path: set(overrides) ^ set(about["overrides"]) for path, about in there.items()}
        same = [p for p, words in apart.items() if not words or _is_how(words, there[p], entry)]
        if same:
            return cls(min(same, key=lambda path: len(apart[path])).parent, overrides, entry)
        for free in itertools.count(number):
            folder = sweep / str(free)
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "config.yaml").exists() and not (folder / _STATE).exists():
                continue  # a run that is no cell
            cell = cls(folder, overrides, entry)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".cell") as beside:
                beside.write(json.dumps(cell._about("new")))
                beside.flush()
                try:
                    os.link(beside.name, folder / _STATE)
                except FileExistsError:
                    if set(_read(folder / _STATE)["overrides"]) != set(overrides):
                        continue
            return cell
        raise AssertionError

    @property
    def state(self) -> str:
        return str(_read(self.folder / _STATE)["state"])

    def write(self, state: str, error: str | None = None) -> None:
        from flexgen.runs.folder import write_json

        write_json(self.folder / _STATE, self._about(state, error))

    def run(self, task: Callable[[], Any]) -> BaseException | None:
        """Do `task` unless it is finished, or another process is at it; keep what became of it.

        Returns the exception that it failed with; what is no failure, a wish to stop, is raised.
        """
        with open_lock(self.folder / "cell.lock") as lock:
            # A process of the cell's own holds it on if this one is killed.
            os.set_inheritable(lock.fileno(), True)
            if not try_lock(lock):
                _say(self, "another process is at it")
                return None
            if (state := self.state) in ("finished", "pruned"):
                _say(self, f"{state} before")
                return None
            self.write("running")
            if (place := position(self.folder.parent, self.overrides)) is not None:
                print(place, file=sys.stderr)
            try:
                task()
            except TrialPruned as pruned:
                self.write("pruned")
                _say(self, str(pruned))
                return None
            except Exception as error:
                # Entered again, it would train no step and measure nothing.
                state = "finished" if isinstance(error, MeasurementFailed) else "failed"
                self.write(state, error_line(error))
                _say(self, f"{state}: {error_line(error)}")
                return error
            except BaseException:
                self.write("stopped")
                raise
            self.write("finished")
        return None

    def _about(self, state: str, error: str | None = None) -> dict[str, Any]:
        return {"overrides": self.overrides, "state": state, "error": error, "entry": self.entry}


class SweepFolder(Callback):
    """Fixes the sweep's folder before its cells are composed, and knows it afterwards.

    Hydra resolves it for each cell: experiments would be scattered over folders named after each,
    and a worker elsewhere would count from its own working directory.
    """

    known: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.known = Path(config.hydra.sweep.dir).absolute()
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(SweepFolder.known)}")


class SweepReport(Callback):
    """Prints the table of a sweep's runs and writes their page when the last cell has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from flexgen.report import RunError, write_reports, write_table

        folder = Path(config.hydra.sweep.dir)
        try:
            write_table(folder)
            if config.get("report"):
                print(f"report: {write_reports(folder)[0]}")
        except RunError as error:
            print(f"no table of the sweep: {error}", file=sys.stderr)


class SayOnce(logging.Filter):
    """Lets a line about data through once: cells of a sweep, and a control run, say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if line in self.said:
            return False
        if record.name.startswith("flexgen.data."):
            self.said.add(line)
        return True


def run_cell(task: Callable[[DictConfig], Any], cfg: DictConfig, entry: str) -> None:
    """Run what Hydra's launcher started in this process; a failure is kept in the cell's file."""
    asked = HydraConfig.get()
    sweep = Path(asked.sweep.dir)
    cell = Cell.claim(sweep, int(asked.job.num), list(asked.overrides.task), entry)
    cfg.paths.run_dir = str(cell.folder)
    try:
        cell.run(lambda: task(cfg))
    except BaseException:
        print(f"the sweep goes on with the same command and {_again(sweep)}", file=sys.stderr)
        raise


def train_cell(config: dict[str, Any], overrides: list[str], number: int) -> bool:
    """Train a cell of a sweep or a trial of a search, by the configuration that its overrides gave.

    Returns whether it was trained by this process; else it was by a `flexgen` of its own.
    """
    trainer = config["trainer"]
    if wants_several(trainer):
        run_apart(Path(config["paths"]["run_dir"]), overrides)
        return False
    keep_to_one_device(trainer, number)
    with importing():
        from flexgen.runs.train import train
    train(config, overrides=overrides)
    return True


def raise_failures(sweep: Path, entry: str) -> None:
    """Tell of the cells that failed under the command `entry`, each with what is its own.

    Raises:
        RuntimeError: if there are any; with the error, if there is one.
        MeasurementFailed: if all are whole, and of some, of whatever command, not all is measured.
    """
    found = _cells(sweep)
    words = [set(about["overrides"]) for about in found.values()]
    common = set.intersection(*words) if len(words) > 1 else set()
    failed, unmeasured = [], []
    for number, about in found.items():
        own = " ".join(word for word in about["overrides"] if word not in common)
        line = f"cell {number} [{own}] {about['error']}"
        if about["state"] == "failed" and about["entry"] == entry:
            failed.append(line)
        elif about["state"] == "finished" and about["error"] is not None:
            unmeasured.append(line)
    lines = failed + unmeasured
    if len(lines) > 1:
        for line in lines:
            print(line, file=sys.stderr)
    error = f"{lines[0]}; " if len(lines) == 1 else ""
    if failed:
        raise RuntimeError(
            f"cells failed: {len(failed)}; {error}to try again: the same command with "
            f"{_again(sweep)}"
        )
    if unmeasured:
        raise MeasurementFailed(
            f"cells trained but not all measured: {len(unmeasured)}; {error}to measure one again: "
            f"{on_run('evaluate', Path(os.path.relpath(sweep)))}/NUMBER"
        )


def remove_empty_sweep(sweep: Path) -> None:
    """Remove the folder of a sweep that has no cell: it was refused before the first."""
    if sweep.is_dir() and {path.name for path in sweep.iterdir()} <= {"multirun.yaml"}:
        (sweep / "multirun.yaml").unlink(missing_ok=True)
        remove_empty(sweep, above=Path.cwd())


def sweep_stopped(sweep: Path, entry: str, error: Exception) -> RuntimeError:
    """What to tell when the launcher ended before its cells, for a worker was killed say: the
    error, with the numbers of the cells that the command `entry` began and did not finish."""
    of_entry = {n: about for n, about in _cells(sweep).items() if about["entry"] == entry}
    left = [number for number, about in of_entry.items() if about["state"] != "finished"]
    cells = f"cells begun and not finished: {', '.join(left)}; " if left else ""
    told = textwrap.shorten(error_line(error), 240, placeholder=" …")
    return RuntimeError(f"{told}; {cells}to go on: the same command with {_again(sweep)}")


def run_apart(run_dir: Path, overrides: list[str]) -> None:
    """Train a cell by a `flexgen` of its own; what it says is in its `log.txt`.

    Lightning starts the further processes of a run by the command line of the first, which for a
    sweep is the whole grid, and leaves a process group behind that the next cell cannot use.

    Raises:
        RuntimeError: if it fails, with the last line that it said.
        MeasurementFailed: if it was trained, and not all could be measured.
        TrainingStopped: if it was stopped.
    """
    words = ["train", *overrides, "hydra.mode=RUN", f"hydra.run.dir={quoted(run_dir)}"]
    words += [f"--config-dir={folder}" for folder in config_dirs()]
    with (run_dir / "log.txt").open("a+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "flexgen", *words], stdout=log, stderr=log, close_fds=False
        )
        old = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = child.wait()
        except KeyboardInterrupt:
            status = child.wait()  # Ctrl-C has reached it too, and it saves first
        finally:
            signal.signal(signal.SIGTERM, old)
        log.seek(0)
        said = [line for line in log if line.strip()]
    last = said[-1].strip() if said else f"ended with status {status}"
    if status == 130:
        raise TrainingStopped(last)
    if status == 3:
        raise MeasurementFailed(last)
    if status:
        raise RuntimeError(last)


def _read(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(about["overrides"], list) and {"state", "error", "entry"} <= about.keys():
            return about
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is damaged; remove it with its folder, and the cell starts anew")


def _cells(sweep: Path) -> dict[str, dict[str, Any]]:
    """What the files of a sweep's cells say, by number."""
    paths = sorted(sweep.glob(f"*/{_STATE}"), key=lambda p: (len(p.parent.name), p.parent.name))
    return {path.parent.name: _read(path) for path in paths}


def _is_how(words: set[str], about: dict[str, Any], entry: str) -> bool:
    """Whether overrides that a cell lacks or has more tell a grid's cells apart no further."""
    from flexgen.report.table import is_how

    # In one grid `threads=1,2` are two cells.
    return about["entry"] != entry and all(map(is_how, words))


def _say(cell: Cell, what: str) -> None:
    print(f"cell {cell.folder.name} [{' '.join(cell.overrides)}] {what}", file=sys.stderr)


def _again(sweep: Path) -> str:
    return f"hydra.sweep.dir={shlex.quote(os.path.relpath(sweep))}"
