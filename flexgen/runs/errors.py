"""Mistakes told in one line, with the remedy; and a training that was asked to stop."""

import os
import re
import sys

from flexgen.run_notes import RunNote
from flexgen.untrusted import printable


class TrainingStopped(KeyboardInterrupt):
    """A training has saved itself and stopped before its end, for a signal asked it to."""

    signal: int = 0
    """The signal's number; 0 if it was none that asked."""


class TrialPruned(RuntimeError):
    """A trial of a search was ended early, for its values were worse than those of others."""


class MeasurementFailed(RuntimeError):
    """A run is whole, but not all could be measured, `values` alone; `notes.jsonl` says why."""

    def __init__(self, told: str, values: dict[str, float] | None = None) -> None:
        super().__init__(told)
        self.values = values or {}

    @classmethod
    def check(cls, notes: list[RunNote], values: dict[str, float] | None = None) -> None:
        """Raise it if any of the notes is of a failure."""
        if failed := [note for note in notes if note.failed]:
            first = failed[0]
            raise cls(
                f"{len(failed)} measurements failed, the first was {first.measurement} at step "
                f"{first.step}: {first.why}; the run itself is whole",
                values,
            )


def error_line(error: BaseException) -> str:
    """What went wrong and what to do, in one line that no terminal obeys."""
    return printable(_line(error))


def _line(error: BaseException) -> str:
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    from flexgen.runs.config_errors import configuration_error, did_you_mean

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _line(error.__cause__)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return configuration_error(error)
    message = " ".join(str(error).split())
    if type(error).__module__.startswith("yaml."):  # OmegaConf's reader
        return f"cannot read the YAML ({message}); mend that line"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {os.strerror(error.errno)}; name another place"
    if isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError)) and message:
        return message
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, of its Trainer's keys
        return message
    if isinstance(error, ImportError) and (found := re.match(r"Error loading '([^']+)'", message)):
        return _not_imported(found[1], error.__cause__)
    if isinstance(error, TypeError) and (found := re.search(r"argument '(\w+)'", message)):
        return f"{message}{did_you_mean(found[1])}"
    return f"{type(error).__name__}: {message} (FLEXGEN_DEBUG=1 shows where)"


def _not_imported(target: str, cause: BaseException | None) -> str:
    why = f" ({type(cause).__name__}: {' '.join(str(cause).split())})" if cause else ""
    missing = cause.name or "" if isinstance(cause, ModuleNotFoundError) else ""
    if missing == target.partition(".")[0]:
        remedy = "install it, or put its folder on PYTHONPATH or in the working directory"
        if os.getcwd() not in sys.path:
            remedy = (
                "install it, or put its folder on PYTHONPATH; in the working directory it is "
                "looked for with trust=true alone, which runs what lies there"
            )
    elif f"{target}.".startswith(f"{missing}."):
        remedy = "there is no such name in it; check the spelling of `_target_`"
    else:
        remedy = "its code is there, and fails; mend it, or install what it needs"
    return f"cannot import `{target}`{why}; {remedy}"


def error_reason(error: BaseException) -> str:
    """What went wrong, as a part of another line."""
    return error_line(error).removesuffix(" (FLEXGEN_DEBUG=1 shows where)")[:300]
