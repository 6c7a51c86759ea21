"""What a run leaves behind: configuration, provenance, final values."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from flexgen._version import __version__
from flexgen.files import file_sha256, keep_within, locked, open_file, write_text
from flexgen.metrics_table import read_arrays
from flexgen.runs.compose import config_dirs
from flexgen.training import latest_checkpoint
from flexgen.untrusted import parse_plain

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core",
             "numpy", "scikit-learn", "POT")  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """Writes a value in each place where it is, without names for those that are there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Be the only process at work in a run directory, else a ValueError; clear half files."""
    refusal = f"another process is at work in {run_dir}; wait for it to end, or stop it"
    with locked(run_dir / ".lock", refusal):
        keep_within(run_dir)
        # safetensors writes to a `.tmp` and six characters first.
        for half in (*run_dir.rglob(".*.part"), *run_dir.rglob(".tmp??????")):
            half.unlink(missing_ok=True)
        yield


def find_checkpoint(run_dir: Path, name: str | None) -> Path:
    """A run's last checkpoint, FileNotFoundError if it has none; or the one called `name` in its
    checkpoints/, or at that path."""
    if name is None:
        return latest_checkpoint(run_dir)
    inside = run_dir / "checkpoints" / name
    return inside if inside.is_file() else Path(name)


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml`; a ValueError if it could not be read again."""
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    try:
        parse_plain(text)
    except ValueError as error:
        raise ValueError(f"the configuration cannot be saved: {error}") from error
    write_text(run_dir / "config.yaml", text)


def write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, allow_nan=True) + "\n"
    write_text(path, text)


def write_provenance(
    run_dir: Path, command: str, overrides: list[str], seed: int, parent: Path | None = None,
    data: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Say what started the run: versions, commit, machine, its data, and the checkpoint it came
    from."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about: dict[str, Any] = {
        "command": command, "overrides": overrides, "config_dirs": config_dirs(), "seed": seed,
        "versions": {"python": platform.python_version(), **versions()},
        "commit": _commit(), "data": data, "parent": None, "started": _now(), "finished": None,
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu,
        },
    }  # fmt: skip
    if parent is not None:
        run, digest = str(parent.parent.parent), file_sha256(parent)
        about["parent"] = {"run": run, "checkpoint": str(parent), "sha256": digest}
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
    """Refuse, by a ValueError, to go on with a run whose parent's checkpoint has changed since.

    A parent that is no longer there cannot be checked and is no reason to stop.
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
    with open_file(run_dir / "metrics.csv") as file:
        columns = read_arrays(file).columns
    values = {k: float(column[-1]) for k, (_, column) in columns.items() if k not in counters}
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
        found[package] = "not installed as a package"
        with suppress(PackageNotFoundError):
            found[package] = version(package)
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
