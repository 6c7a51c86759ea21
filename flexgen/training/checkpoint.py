"""Checkpoint files: written whole or not at all, loaded as tensors only."""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from flexgen.checks import first_line
from flexgen.files import open_file, write_atomically
from flexgen.run_notes import on_run
from flexgen.training.counters import Counters
from flexgen.untrusted import check_size

_STEP = re.compile(r"step=(\d{8})\.ckpt$")
_MOST_VALUES = 1_000_000  # tensors and plain values; a run's checkpoint has some thousands


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` to `path` by :func:`~flexgen.files.write_atomically`."""

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # given a path, torch keeps its name in the archive
            torch.save(checkpoint, file)

    write_atomically(path, write)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints by the two functions here.

    Its own would take `::` in a folder's name for a chain of file systems, and write elsewhere.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint with `weights_only=True`: it can hold tensors, never code.

    It is refused if what it holds would take more memory than the file itself does.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut short, damaged, or holds more than plain data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; name one that is in checkpoints/")
    try:
        archive = _written_anew(path)
        checkpoint = torch.load(archive, map_location="cpu", weights_only=True)
        check_size(checkpoint, _children, _MOST_VALUES)
        _check_tensors(checkpoint, len(archive.getbuffer()))
    except Exception as error:
        # Torch's own line says how to load it all the same.
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors" if pickled else first_line(error)
        raise ValueError(
            f"checkpoint {path} is cut short, damaged or not FlexGen's ({reason}); "
            f"go on from an earlier one: {on_run('resume', path.parent.parent)} checkpoint=…"
        ) from error
    if missing := _missing(checkpoint):
        raise ValueError(
            f"checkpoint {path} was not written by FlexGen: it holds no {missing}; "
            "name one that is in the checkpoints/ folder of a run"
        )
    step = checkpoint["flexgen"]["counters"]["generator_steps"]
    if (named := _STEP.search(path.name)) and int(named[1]) != step:
        raise ValueError(
            f"checkpoint {path} is one of step {step}, and not its own; go on from another: "
            f"{on_run('resume', path.parent.parent)} checkpoint=…"
        )
    return checkpoint


def _written_anew(path: Path) -> io.BytesIO:
    """The archive in a file, if it is as torch.save writes one, copied entry by entry."""
    # Two readers can find two archives in one file: torch seeks where the directory says, zipfile
    # makes good for what was put before it. zipfile compares checksums too, which torch does not.
    new = io.BytesIO()
    with (
        open_file(path) as file, zipfile.ZipFile(file) as old, zipfile.ZipFile(new, "w") as copy
    ):  # fmt: skip
        entries = old.infolist()
        if not entries or min(entry.header_offset for entry in entries):
            raise ValueError("something comes before it")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two of its entries have one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise ValueError("its entries overlap")
        for entry in entries:
            copy.writestr(entry.filename, old.read(entry))
    new.seek(0)
    return new


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


def _check_tensors(value: Any, most_bytes: int) -> None:
    """Refuse a tensor without its values, or with fewer than its shape says."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.nbytes > most_bytes:
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is larger than the file")
    else:
        for child in _children(value):
            _check_tensors(child, most_bytes)


def _missing(checkpoint: Any) -> str | None:
    """What every checkpoint of FlexGen's has and this one lacks."""
    part = checkpoint.get("flexgen") if isinstance(checkpoint, dict) else None
    counters = part.get("counters") if isinstance(part, dict) else None
    if not isinstance(counters, dict) or not all(
        isinstance(counters.get(field.name), int) and 0 <= counters[field.name] < 2**63
        for field in fields(Counters)
    ):
        return "step counters"
    weights, states = checkpoint.get("state_dict"), checkpoint.get("callbacks")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        return "weights"
    if not isinstance(states, dict) or not all(isinstance(s, dict) for s in states.values()):
        return "states of callbacks"
    if not _counts(checkpoint.get("loops", {})):
        return "counts of loops"
    return None


def _counts(value: Any) -> bool:
    """Whether a value is whole numbers alone, at any depth of keys, as Lightning's loops are."""
    if isinstance(value, dict):
        return all(map(_counts, value.values()))
    return isinstance(value, int) and abs(value) < 2**63


def find_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    found = (run_dir / "checkpoints").glob("step=*.ckpt")
    return sorted(path for path in found if _STEP.fullmatch(path.name))


def set_aside_later(checkpoint: Path) -> list[Path]:
    """Rename the checkpoints of a run that are later than the one it goes on from.

    Left as they are, the next resume would go on from them.
    """
    this = _STEP.search(checkpoint.name)
    if this is None or checkpoint in find_checkpoints(checkpoint.parent.parent)[-1:]:
        return []
    found = ((path, _STEP.search(path.name)) for path in checkpoint.parent.glob("*step=*.ckpt"))
    later = sorted(path for path, step in found if step and step[1] > this[1])
    return [path.rename(path.with_name(f"{path.name}.left")) for path in later]


def latest_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        FileNotFoundError: if it has none.
    """
    if not (found := find_checkpoints(run_dir)):
        raise FileNotFoundError(
            f"run {run_dir} has no checkpoint yet; start it again with `flexgen train`"
        )
    return found[-1]
