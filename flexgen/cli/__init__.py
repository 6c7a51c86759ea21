"""The command line: `flexgen COMMAND …`."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

COMMANDS = {
    "train": "train a model, measure it, refit its prior on a schedule, write a report",
    "search": "the best settings of a run, by Optuna; each trial is a run",
    "resume": "go on with a stopped run where it stopped, in the same directory",
    "evaluate": "measure a trained run again",
    "reverse": "map data back to codes under a trained generator, a run's or any other",
    "refit": "learn the data-induced prior of a trained run and go on training from it",
    "sample": "draw samples from a trained run",
    "compare": "one trained generator under several priors, side by side",
    "table": "mean ± std over seeds of the runs below one or more folders",
    "report": "one self-contained HTML page for a run",
    "dashboard": "a W&B workspace of PAG, EMD and NLL, averaged over seeds",
}


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
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("--help", "-h", "help"):
        print(usage(), end="")
        return
    if command == "--version":
        from flexgen._version import __version__

        print(f"flexgen {__version__}")
        return
    from flexgen.runs.trust import own_code

    if own_code(command, rest):
        sys.path.append(os.getcwd())  # a prior of one's own lies in the working directory

    with _one_line(command):
        if command == "-sc":
            _complete(rest)
            return
        if command not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(command, COMMANDS, 1) or ["--help"]
            raise ValueError(f"no command {command!r}; did you mean `flexgen {near[0]}`?")
        import_module(f"flexgen.cli.{command}").main(rest)


@contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Turn an exception into one line on standard error and exit status 1.

    A run that is whole but for a measurement ends with status 3.
    `FLEXGEN_DEBUG=1` shows the traceback too.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"flexgen {command}: interrupted")
    except BrokenPipeError:
        # The reader of a pipe, `head` say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FLEXGEN_DEBUG"):
            traceback.print_exc()
        from flexgen.runs.errors import MeasurementFailed, error_line

        told = f"flexgen {command}: {error_line(error)}"
        if isinstance(error, MeasurementFailed):
            print(told, file=sys.stderr)
            sys.exit(3)
        sys.exit(told)


def _complete(rest: list[str]) -> None:
    """Hydra's shell completion: it knows one command, so ours is taken out of the line first."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    query = bool(rest) and rest[0].startswith("query")
    if query and len(words) <= 2:
        print("\n".join(name for name in COMMANDS if name.startswith(words[-1])))
        return
    if query:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    from flexgen.cli.hydra_app import run_hydra

    command = words[1] if query else "train"
    on_run = command not in ("train", "table", "report", "dashboard")
    run_hydra(command, ["-sc", *rest], lambda cfg: None, on_run=on_run)
