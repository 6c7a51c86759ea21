"""A command as a Hydra application: its configuration from the words that were typed."""

import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexgen._conf import conf_dir
from flexgen.runs.cells import SweepFolder, raise_failures, run_cell, sweep_stopped
from flexgen.runs.compose import is_sweep
from flexgen.runs.errors import TrainingStopped
from flexgen.runs.saved_config import load_config

__all__ = ["explain", "run_hydra"]

# Of Hydra's flags those with a value.
_WITH_VALUE = {"--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"}


def run_hydra(
    command: str,
    argv: list[str],
    task: Callable[[DictConfig], Any],
    *,
    on_run: bool = False,
    on_folders: bool = False,
    groups: bool = True,
    verbatim: dict[str, Any] | None = None,
) -> None:
    """Compose the configuration of `command` from `argv` and call `task` with it.

    Args:
        command: the name of its root YAML.
        argv: Hydra's overrides and flags.
        task: what to do with the configuration; with `-m` it is called for each cell.
        on_run: whether the command works on a run: then `run=PATH` is taken from `argv` and the
            configuration starts from the one which that run saved.
        on_folders: whether it works on the folders in `argv`, `PATH …` or `runs=[PATH,…]`, which
            become the list `runs`.
        groups: whether it takes groups of the YAML, such as `prior=normal`; `--help` then lists
            them.
        verbatim: keys that Hydra must not read, for they are paths or share a group's name, with
            their defaults; taken from `argv` as they were typed.

    Raises:
        Exception: whatever `task` raises; with `-m`, after the other cells have run.
        SystemExit: with status 130, if a training was asked to stop.
    """
    if {"--help", "-h"} & set(argv):
        print(explain(command))
        if not groups:
            return
    if on_run:
        argv = _take_run(command, argv)
    taken, argv = _take(argv, verbatim or {})
    if on_folders:
        taken["runs"], argv = _take_folders(command, argv)
    ConfigStore.instance().store(name="typed", node=OmegaConf.create(taken), package="_global_")
    # Hydra would print its own version of an error and exit; FlexGen tells it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    # Completion is installed for the program, not for one of its commands.
    sys.argv = ["flexgen" if "-sc" in argv else f"flexgen {command}", *_flags_first(argv)]

    failed: list[Exception] = []
    entry = uuid.uuid4().hex

    # A launcher may call it in another process: what becomes of a cell is kept in files.
    def cell(cfg: DictConfig) -> None:
        sys.argv = typed  # what further processes of the trainer are started by
        try:
            if is_sweep():
                run_cell(task, cfg, entry)
            else:
                task(cfg)
        except TrainingStopped as stopped:
            _exit_stopped(stopped)
        except Exception as error:
            if is_sweep():
                raise
            failed.append(error)  # Hydra would print more

    # hydra.main names the job after the module of its function.
    cell.__module__ = "__main__"
    SweepFolder.known = None
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(cell)()
    except (HydraException, OmegaConfBaseException) as error:
        if "sweep type : INTERVAL" in str(error):
            raise ValueError(
                "an interval has no grid; `flexgen search` draws from it, a sweep takes a=1,2 or "
                "range(…)"
            ) from error
        raise
    except Exception as error:
        if SweepFolder.known is None:
            raise
        raise sweep_stopped(SweepFolder.known, entry, error) from error
    if failed:
        raise failed[0]
    if SweepFolder.known:
        raise_failures(SweepFolder.known, entry)


def explain(command: str) -> str:
    """What a command does and its own keys, as the comments of its root YAML say."""
    first, _, rest = (conf_dir() / f"{command}.yaml").read_text().partition("\n")
    keys = rest.partition("_self_\n")[2].partition("\nhydra:")[0].strip("\n")
    return f"{first.removeprefix('# ')}\n\n{keys}\n" if keys else f"{first.removeprefix('# ')}\n"


def _exit_stopped(stopped: TrainingStopped) -> None:
    print(stopped, file=sys.stderr)
    # Now that all is saved, give SIGUSR2 to submitit, which queues the job again.
    if stopped.signal == signal.SIGUSR2 and callable(handler := signal.getsignal(signal.SIGUSR2)):
        handler(signal.SIGUSR2, None)
    sys.exit(130)


def _take_run(command: str, argv: list[str]) -> list[str]:
    """Take `run=`, `checkpoint=` and `trust=` out of `argv`: in a path Hydra takes `=` amiss."""
    paths, rest = _take(argv, {"run": "", "checkpoint": "", "trust": "false"})
    if paths["trust"] not in ("true", "false"):
        raise ValueError(f"`trust` must be true or false, got {paths['trust']!r}")
    saved: dict[str, Any] = {}
    if paths["run"]:
        run_dir = Path(paths["run"]).resolve()
        # Tab completion builds nothing, and waits for no import.
        trust = paths["trust"] == "true" or "-sc" in argv
        saved = load_config(run_dir, trust) | {"run": str(run_dir)}
    elif not any(word.startswith("-") for word in argv):
        raise ValueError(f"which run? give run=PATH, as in `flexgen {command} run=runs/…`")
    saved["checkpoint"] = paths["checkpoint"] or None
    ConfigStore.instance().store(name="saved", node=OmegaConf.create(saved), package="_global_")
    return rest


def _take_folders(command: str, argv: list[str]) -> tuple[list[str], list[str]]:
    """Take `runs=` and what is no key out of `argv`: the folders, and the other words.

    A word with `=` in it is a folder if it is there, or if what stands before the `=` could be no
    key; a key of the command's is none unless there is a `/` in it.
    """
    keys = OmegaConf.load(conf_dir() / f"{command}.yaml").keys()
    folders: list[str] = []
    rest = []
    for word in argv:
        key, equals, value = word.partition("=")
        name = key.lstrip("+~")
        if key == "runs" and equals:
            listed = value.startswith("[") and value.endswith("]")
            folders += [part.strip() for part in value[1:-1].split(",")] if listed else [value]
        elif word in ("-m", "--multirun"):
            raise ValueError(f"`flexgen {command}` makes no grid; leave out {word}")
        elif "/" in word and Path(word).exists():
            folders.append(word)
        elif word.startswith("-") or name in keys or name.startswith("hydra"):
            rest.append(word)
        elif not equals or Path(word).exists() or not name.replace(".", "_").isidentifier():
            folders.append(word)
        else:
            rest.append(word)
    if not folders and all(word.partition("=")[0] in keys for word in rest):
        raise ValueError(f"which runs? give a folder, as in `flexgen {command} multirun/…`")
    return folders, rest


def _flags_first(argv: list[str]) -> list[str]:
    """The words in an order that Hydra's parser reads: it takes no override after a flag's value.

    Lightning starts further processes by the words of the first, with overrides behind them.
    """
    flags: list[str] = []
    rest: list[str] = []
    for i, word in enumerate(argv):
        is_value = i > 0 and argv[i - 1] in _WITH_VALUE
        (flags if word.startswith("-") or is_value else rest).append(word)
    return [*flags, *rest]


def _take(argv: list[str], names: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of some keys as typed, else their defaults; and what else was typed."""
    found, rest = dict(names), []
    for word in argv:
        key, equals, value = word.partition("=")
        if key in found and equals:
            found[key] = value
        else:
            rest.append(word)
    return found, rest
