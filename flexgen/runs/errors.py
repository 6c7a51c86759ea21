"""Mistakes told in one line, with the remedy; and a training that was asked to stop."""

import json
import os
import re
import shlex
import sys
from difflib import get_close_matches

from flexgen._conf import conf_dir
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

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _line(error.__cause__)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _configuration(error)
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {os.strerror(error.errno)}; name another place"
    if isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError)) and message:
        return message
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, of its Trainer's keys
        return message
    if isinstance(error, ImportError) and (found := re.match(r"Error loading '([^']+)'", message)):
        return _not_imported(found[1], error.__cause__)
    if isinstance(error, TypeError) and (found := re.search(r"argument '(\w+)'", message)):
        return f"{message}{_did_you_mean(found[1])}"
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


_TOLD = {
    r"Interpolation key 'network\.(pixels)' not found":
        "this network is no density of pixels, which model=density asks for; use "
        "network=gated_pixelcnn, pixelcnn or made",
    r"Interpolation key 'network\.(\w+)' not found":
        "this network has no {}, which the model asks for; `network=mlp` has all that any model "
        "asks for",
    r"Interpolation key '([^']+)' not found":
        "the configuration refers to `{}`, which is not there; add what it belongs to",
    r"Error locating target '([^']+)'":
        "cannot import `{}`; check its `_target_`, and that its package is installed",
}  # fmt: skip


def _configuration(error: BaseException) -> str:
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if not equals:
            return f"cannot read `{key}`; write key=value"
        if any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")):
            return f"cannot read `{error.override}`: a bracket is open; close it in `{key}`"
        quoted = shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
        return (
            f"cannot read `{error.override}` ({text.splitlines()[0]}); quote a value with special "
            f"characters: {quoted}"
        )
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text):
        key, value = found[1], found[2]
        return (
            f"`{key}={value}` gives several values; add -m for a run of each, or write "
            f"'{key}=[{value}]' for one list"
        )
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, name = found[1].rpartition("/")
        listed = text.partition("Config search path")[0].splitlines()[1:]
        options = [line.strip() for line in listed if line.startswith("\t")]
        options = options or sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        near = get_close_matches(name, options, 1)
        hint = f"did you mean `{group}={near[0]}`? " if near else ""
        if group == "hydra/launcher":
            hint = "joblib, slurm and ray are packages: pip install hydra-joblib-launcher, say; "
        return f"no {group} called {name!r}; {hint}there are {', '.join(options) or 'none'}"
    unknown = r"Could not (?:override|append to config.*|delete.*) '([^']+)'"
    if found := re.search(rf"{unknown}|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        return f"unknown key `{key}`{_did_you_mean(key.rpartition('.')[2])}"
    if found := re.search(
        r"\w+ raised while resolving interpolation: (.*?)\s+full_key: ", text, re.S
    ):
        return " ".join(found[1].split())
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or found[1]
        return f"`{key}` has no value; give {key}=… on the command line"
    for pattern, told in _TOLD.items():
        if found := re.search(pattern, text):
            return told.format(found[1])
    return " ".join(text.split())


def _did_you_mean(key: str) -> str:
    known: set[str] = set()
    for path in conf_dir().rglob("*.yaml"):
        known |= set(re.findall(r"^ *([A-Za-z]\w*):", path.read_text("utf-8"), re.MULTILINE))
        known.add(path.parent.name if path.parent != conf_dir() else path.stem)
    key = key.lstrip("+~")
    if key in known:
        return (
            ", which is a key of another part; `--help` lists those that are here, and a sweep "
            "over the parts that have it takes `++key=value`"
        )
    near = get_close_matches(key, known, 1)
    return f"; did you mean `{near[0]}`?" if near else "; `--help` lists the keys"
