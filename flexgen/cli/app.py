"""The command line: `flexgen COMMAND …`, each a Hydra application.

Nothing heavy is imported before a command needs it, so that `flexgen --help` answers at once.
"""

import codecs
import locale
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from flexgen._conf import conf_dir

COMMANDS = {
    "train": "train a model, measure it, refit its prior on a schedule, write a report",
    "search": "the best settings of a run, by Optuna; each trial is a run",
    "resume": "go on with a stopped run where it stopped, in the same directory",
    "evaluate": "measure a trained run again",
    "reverse": "map data back to codes under a trained generator, a run's or any other",
    "refit": "learn the data-induced prior of a trained run and go on training from it",
    "sample": "draw samples from a trained run",
    "export": "generator, encoder and prior as programs, weights or a folder to share",
    "compare": "one trained generator under several priors, side by side",
    "table": "mean ± std over seeds of the runs below one or more folders",
    "report": "one self-contained HTML page for a run",
    "dashboard": "a W&B workspace of PAG, EMD and NLL, averaged over seeds",
}

# Of Hydra's flags those with a value.
_WITH_VALUE = {
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c",
    "--package", "-p", "--info", "-i",
}  # fmt: skip


def usage() -> str:
    lines = "\n".join(f"  {name:<10}{about}" for name, about in COMMANDS.items())
    return (
        "usage: flexgen COMMAND [key=value …] [-m]\n\n"
        f"{lines}\n\n"
        "flexgen COMMAND --help lists the keys of a command; -m runs a grid over a=1,2 b=3,4.\n"
        'eval "$(flexgen -sc install=bash)" turns on tab completion; fish and zsh as well.\n'
    )


def main(argv: list[str] | None = None) -> None:
    """Run a command; on a mistake print one line that names the remedy and exit non-zero."""
    if argv is None:
        _speak_utf8()
        signal.signal(signal.SIGTERM, _interrupt)  # what was found so far is saved, as by Ctrl-C
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("--help", "-h", "help"):
        print(usage(), end="")
        return
    if command == "--version":
        from flexgen._version import __version__

        print(f"flexgen {__version__}")
        return
    try:
        from flexgen.runs.trust import own_code

        here = _working_directory()
        if own_code(command, rest):
            sys.path.append(here)  # a prior of one's own lies in the working directory
        if command == "-sc":
            _complete(rest)
            return
        if command not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(command, COMMANDS, 1) or ["--help"]
            raise ValueError(f"no command {command!r}; did you mean `flexgen {near[0]}`?")
        asked: Command | None = import_module(f"flexgen.cli.{command}").command(rest)
        if asked is not None:
            run_hydra(asked)
    except KeyboardInterrupt:
        sys.exit(f"flexgen {command}: interrupted")
    except BrokenPipeError:
        # The reader of a pipe, `head` say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FLEXGEN_DEBUG"):
            import traceback

            traceback.print_exc()
        if _no_memory(error):  # which may not do to import more
            why = " ".join(str(error).split())[:160] or type(error).__name__
            sys.exit(
                f"flexgen {command}: there is not enough memory ({why}); ask for less, or raise "
                "the limit: ulimit -v"
            )
        from flexgen.runs.errors import MeasurementFailed, error_line

        told = f"flexgen {command}: {error_line(error)}"
        if isinstance(error, MeasurementFailed):
            print(told, file=sys.stderr)
            sys.exit(3)
        sys.exit(told)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _speak_utf8() -> None:
    """Begin anew where the locale has another encoding: words, names and files would be misread."""
    known = sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8"
    if not known and os.name == "posix":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise ValueError("the working directory was removed; cd to one that is there") from error


def _no_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, MemoryError) or any(
        text in said for text in ("annot allocate memory", "can't allocate memory", "failed to map")
    )


class Command(NamedTuple):
    """What a command does; the `command(argv)` of its module says so, or None if nothing is left.

    Args:
        root: the name of its root YAML.
        argv: Hydra's overrides and flags.
        run: what to do with the configuration, a DictConfig; with `-m` it is called for each cell.
        on_run: `run=PATH` is taken from `argv`, and the configuration starts from that run's.
        on_folders: the folders in `argv`, `PATH …` or `runs=[PATH,…]`, become the list `runs`.
        groups: it takes groups of the YAML, such as `prior=normal`; `--help` then lists them.
        verbatim: keys that Hydra must not read, for they are paths or share a group's name, with
            their defaults; taken from `argv` as they were typed.
    """

    root: str
    argv: list[str]
    run: Callable[[Any], Any]
    on_run: bool = False
    on_folders: bool = False
    groups: bool = True
    verbatim: Mapping[str, Any] = MappingProxyType({})


def run_hydra(command: Command) -> None:
    """Compose the configuration of a command and run it.

    What it raises is raised, with `-m` after the other cells have run; a training that was asked to
    stop ends with status 130.
    """
    import uuid

    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from flexgen.files import remove_empty
    from flexgen.runs.cells import (
        SayOnce,
        SweepFolder,
        raise_failures,
        remove_empty_sweep,
        run_cell,
        sweep_stopped,
    )
    from flexgen.runs.compose import is_sweep, own_data
    from flexgen.runs.config_errors import not_composed
    from flexgen.runs.errors import TrainingStopped

    root, argv = command.root, command.argv
    if not command.on_folders and "path" not in command.verbatim:
        argv = own_data(argv)
    if {"--help", "-h"} & set(argv):
        print(explain(root))
        if not command.groups:
            return
    if command.on_run:
        argv = _take_run(root, argv)
    taken, argv = _take(argv, dict(command.verbatim))
    if command.on_folders:
        taken["runs"], argv = _take_folders(root, argv)
    ConfigStore.instance().store(name="typed", node=OmegaConf.create(taken), package="_global_")
    # Hydra would print its own version of an error and exit; FlexGen tells it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    # Completion is installed for the program, not for one of its commands.
    sys.argv = ["flexgen" if "-sc" in argv else f"flexgen {root}", *_flags_first(argv)]

    failed: list[Exception] = []
    made: list[Path] = []
    entry, once = uuid.uuid4().hex, SayOnce()

    # A launcher may call it in another process: what becomes of a cell is kept in files.
    def cell(cfg: Any) -> None:
        sys.argv = typed  # what further processes of the trainer are started by
        made.append(Path(HydraConfig.get().runtime.output_dir))
        for each in logging.getLogger().handlers:
            each.addFilter(once)
        try:
            if is_sweep():
                run_cell(command.run, cfg, entry)
            else:
                command.run(cfg)
        except TrainingStopped as stopped:
            print(stopped, file=sys.stderr)
            # Now that all is saved, give SIGUSR2 to submitit, which queues the job again.
            handler = signal.getsignal(signal.SIGUSR2) if hasattr(signal, "SIGUSR2") else None
            if callable(handler) and stopped.signal == signal.SIGUSR2:
                handler(signal.SIGUSR2, None)
            sys.exit(130)
        except Exception as error:
            if is_sweep():
                raise
            failed.append(error)  # Hydra would print more

    # hydra.main names the job after the module of its function.
    cell.__module__ = "__main__"
    SweepFolder.known = None
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(cell)()
    except (HydraException, OmegaConfBaseException) as error:
        if "sweep type : INTERVAL" in str(error):
            raise ValueError(
                "an interval has no grid; `flexgen search` draws from it, a sweep takes a=1,2 or "
                "range(…)"
            ) from error
        raise
    except Exception as error:
        if not made and (told := not_composed(error, argv)):
            raise ValueError(told) from error
        if SweepFolder.known is None:
            raise
        raise sweep_stopped(SweepFolder.known, entry, error) from error
    finally:
        # Hydra makes a folder before it is known whether there is anything to put in it.
        for folder in made:
            remove_empty(folder, above=Path.cwd())
        if SweepFolder.known is not None:
            remove_empty_sweep(SweepFolder.known)
    if failed:
        raise failed[0]
    if SweepFolder.known:
        raise_failures(SweepFolder.known, entry)


def _complete(rest: list[str]) -> None:
    """Our own completion, and Hydra's: it knows one command, so ours is taken out of the line."""
    from flexgen.cli.completion import WITHOUT_GROUPS, complete, root_of, take_run

    words = os.environ.get("COMP_LINE", "").split(" ")
    query = bool(rest) and rest[0].startswith("query")
    if query and len(words) <= 2:
        print("\n".join(name for name in COMMANDS if name.startswith(words[-1])))
        return
    command, taken = "train", list[str]()
    if query:
        command = words[1]
        if command not in COMMANDS:
            return
        root = root_of(command, words[2:])
        print("\n".join(complete(root, words[-1])))
        if root in WITHOUT_GROUPS:
            return
        taken = take_run([words[0], *words[2:]])
    on_run = command not in ("train", "search", "table", "report", "dashboard")
    run_hydra(Command(command, ["-sc", *rest, *taken], lambda cfg: None, on_run=on_run))


def explain(command: str) -> str:
    """What a command does and its own keys, as the comments of its root YAML say."""
    first, _, rest = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8").partition("\n")
    keys = rest.partition("_self_\n")[2].partition("\nhydra:")[0].strip("\n")
    return f"{first.removeprefix('# ')}\n\n{keys}\n" if keys else f"{first.removeprefix('# ')}\n"


def _take_run(command: str, argv: list[str]) -> list[str]:
    """Take `run=`, `checkpoint=` and `trust=` out of `argv`: in a path Hydra takes `=` amiss."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from flexgen.runs.saved_config import load_config

    paths, rest = _take(argv, {"run": "", "checkpoint": "", "trust": "false"})
    if paths["trust"] not in ("true", "false"):
        raise ValueError(f"`trust` must be true or false, got {paths['trust']!r}")
    saved: dict[str, Any] = {}
    if paths["run"]:
        run_dir = Path(paths["run"]).resolve()
        # Tab completion builds nothing, and waits for no import.
        trust = paths["trust"] == "true" or "-sc" in argv
        saved = load_config(run_dir, trust, rest) | {"run": str(run_dir)}
    elif not any(word.startswith("-") for word in argv):
        raise ValueError(f"which run? give run=PATH, as in `flexgen {command} run=runs/…`")
    saved["checkpoint"] = paths["checkpoint"] or None
    ConfigStore.instance().store(name="saved", node=OmegaConf.create(saved), package="_global_")
    return rest


def _take_folders(command: str, argv: list[str]) -> tuple[list[str], list[str]]:
    """Take `runs=` and what is no key out of `argv`: the folders, and the other words."""
    # A word with `=` in it is a folder if it is there, or if what stands before the `=` could be no
    # key; a key of the command's is none unless there is a `/` in it.
    from omegaconf import OmegaConf

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
    """The words as Hydra's parser reads them: it takes no override after a flag's value."""
    # Lightning starts further processes by the words of the first, with overrides behind them.
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
