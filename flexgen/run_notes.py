"""What a run says: its `notes.jsonl`, a line of JSON each, and which command to go on with."""

import json
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flexgen.files import open_file

_NAME = "notes.jsonl"
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class RunNote:
    """One line: at which generator step what was to be measured, whether that failed, else it was
    left out for a reason, and why, in one line."""

    step: int
    measurement: str
    failed: bool
    why: str


def on_run(command: str, run_dir: Path, *words: str) -> str:
    """A command on a run as it is typed into a shell: `flexgen resume run=runs/…`."""
    return shlex.join(["flexgen", command, f"run={run_dir}", *words])


def add_note(run_dir: Path, note: RunNote) -> None:
    """Add a line to the notes of a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open_file(run_dir / _NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, within=run_dir) as file:
        file.write(json.dumps(asdict(note)).encode() + b"\n")


def read_notes(run_dir: Path) -> list[RunNote]:
    """The notes of a run, if any, without lines that are none; OSError for a link or no file."""
    try:
        with open_file(run_dir / _NAME, within=run_dir) as file:
            lines = file.read(_MOST_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [note for line in lines if (note := _note(line)) is not None]


def rewind_notes(run_dir: Path, step: int) -> None:
    """Drop the notes of steps after `step`, from which a run goes on."""
    if (notes := read_notes(run_dir)) and notes[-1].step > step:
        (run_dir / _NAME).unlink()
        for note in notes:
            if note.step <= step:
                add_note(run_dir, note)


def _note(line: str) -> RunNote | None:
    try:
        found: Any = json.loads(line)
        return RunNote(
            int(found["step"]), str(found["measurement"]), bool(found["failed"]), str(found["why"])
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
