"""What a run leaves behind: configuration, provenance, final values."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from flexgen._version import __version__
from flexgen.files import keep_within, locked, write_text
from flexgen.metrics_table import read_rows
from flexgen.training import file_sha256, latest_checkpoint
from flexgen.untrusted import parse_plain

__all__ = [
    "alone",
    "check_parent",
    "find_checkpoint",
    "note_resume",
    "read_provenance",
    "versions",
    "write_config",
    "write_final",
    "write_json",
    "write_provenance",
]

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core",
             "numpy", "scikit-learn", "POT")  # fmt: skip


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Be the only process at work in a run directory, and clear what a killed one half wrote.

    Raises:
        ValueError: if another is.
    """
    refusal = f"another process is at work in {run_dir}; wait for it to end, or stop it"
    with locked(run_dir / ".lock", refusal):
        keep_within(run_dir)
        # safetensors writes to a `.tmp` and six characters first.
        for half in (*run_dir.rglob(".*.part"), *run_dir.rglob(".tmp??????")):
            half.unlink(missing_ok=True)
        yield


def find_checkpoint(run_dir: Path, name: str | None) -> Path:
    """A run's last checkpoint, or the one called `name` in its checkpoints/, or at that path.

    Raises:
        FileNotFoundError: if it has none, and no name is given.
    """
    if name is None:
        return latest_checkpoint(run_dir)
    inside = run_dir / "checkpoints" / name
    return inside if inside.is_file() else Path(name)


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml`.

    Raises:
        ValueError: if it could not be read again.
    """
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    try:
        parse_plain(text)
    except ValueError as error:
        raise ValueError(f"the configuration cannot be saved: {error}") from error
    write_text(run_dir / "config.yaml", text)


def write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, allow_nan=True) + "\n"
    write_text(path, text)


def write_provenance(
    run_dir: Path, command: str, overrides: list[str], seed: int, parent: Path | None = None
) -> None:
    """Say what started the run: versions, commit, machine, and the checkpoint it came from."""
    about: dict[str, Any] = {
        "command": command,
        "overrides": overrides,
        "seed": seed,
        "versions": {"python": platform.python_version(), **versions()},
        "commit": _commit(),
        "parent": None,
        "started": _now(),
        "finished": None,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
    if parent is not None:
        about["parent"] = {
            "run": str(parent.parent.parent),
            "checkpoint": str(parent),
            "sha256": file_sha256(parent),
        }
    write_json(run_dir / "provenance.json", about)


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """What :func:`write_provenance` wrote."""
    about: dict[str, Any] = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    return about


def note_resume(run_dir: Path, checkpoint: Path | None, changed: list[str]) -> None:
    """Add to the provenance from where a run goes on, and with which new settings."""
    about = read_provenance(run_dir)
    entry = {"when": _now(), "checkpoint": checkpoint and checkpoint.name, "changed": changed}
    about["resumed"] = [*about.get("resumed", []), entry]
    about["finished"] = None
    write_json(run_dir / "provenance.json", about)


def check_parent(run_dir: Path) -> None:
    """Refuse to go on with a run whose parent's checkpoint has changed since it started.

    A parent that is no longer there cannot be checked and is no reason to stop.

    Raises:
        ValueError: if the hash differs.
    """
    parent = read_provenance(run_dir)["parent"]
    if parent is None or not (checkpoint := Path(parent["checkpoint"])).is_file():
        return
    if file_sha256(checkpoint) != parent["sha256"]:
        raise ValueError(
            f"{checkpoint}, which this run started from, has changed since; "
            "start again from it with `flexgen refit`"
        )


def write_final(run_dir: Path, counters: dict[str, int]) -> dict[str, float]:
    """Write `metrics.json`, the last value of each metric, and mark the run as finished."""
    values: dict[str, float] = {}
    for row, _ in read_rows(run_dir / "metrics.csv"):
        values |= row
    values = {name: value for name, value in values.items() if name not in counters}
    write_json(run_dir / "metrics.json", {"counters": counters, "values": values})
    about = read_provenance(run_dir)
    about["finished"] = _now()
    write_json(run_dir / "provenance.json", about)
    return values


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Of FlexGen and what it stands on."""
    # Of an editable install the metadata say which version it was when it was installed.
    found = {"flexgen": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _commit() -> str | None:
    if "site-packages" in __file__:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
