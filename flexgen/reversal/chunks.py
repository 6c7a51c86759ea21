"""What a long reversal leaves on disk: finished parts, each whole, and at last one file."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flexgen.files import locked, write_atomically, write_tensors, write_text

CODES = "codes.safetensors"
_FOLDER = "codes.parts"
_IDENTITY = "identity.json"
# safetensors refuses a header above 100 MB.
_MOST_METADATA = 50 * 2**20


class Parts:
    """The parts of one reversal below a folder.

    The folder is all that the processes at work share: each writes its parts there, by a rename, so
    that a part is there whole or not at all, and whoever wants to know how far it is looks there.

    Args:
        out: the folder; made if it is not there.
        identity: all that the codes follow from, as plain values. Parts of another identity are
            never mixed in.
        sizes: number of samples in each part.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self.out, self.sizes = out, list(sizes)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.digest = hashlib.sha256(_json(self.identity).encode()).hexdigest()
        self._known: dict[int, dict[str, str]] = {}

    @property
    def codes(self) -> Path:
        """The file that holds everything once all is done."""
        return self.out / CODES

    def open(self, restart: bool = False) -> bool:
        """Make ready to work, and say whether the codes are there already.

        With `restart` what an earlier reversal left here is thrown away.

        Raises:
            ValueError: if the folder holds the work of another reversal.
            OSError: if the folder cannot be written.
        """
        if restart:
            clear(self.out)
        if self.codes.is_file():
            self._compare(_metadata(self.codes).get("identity"), self.codes)
            _clear_parts(self.out)  # killed between the last file's rename and this
            return True
        folder = self.out / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / _IDENTITY
        if any(folder.glob("*.safetensors")):
            self._compare(
                written.read_text(encoding="utf-8") if written.is_file() else None, folder
            )
        text = _json(self.identity)
        write_text(written, text)
        return False

    def finished(self) -> dict[int, dict[str, str]]:
        """The metadata of every finished part, by its number."""
        folder = self.out / _FOLDER
        for path in folder.glob("*.safetensors"):
            if path.stem.isdigit() and int(path.stem) not in self._known:
                about = _metadata(path)
                if about.get("digest") != self.digest:
                    raise ValueError(_refusal(path, "another reversal"))
                self._known[int(path.stem)] = about
        return self._known

    def write(self, number: int, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Write part `number`; `about` is kept with it."""
        write_tensors(self._part(number), tensors, {**about, "digest": self.digest})

    def gather(self, about: Mapping[str, str]) -> Path:
        """Join all parts, one at a time in memory, to the file of codes, and clear them away.

        `about` is kept as metadata, beside the identity; what is too long for the format's header
        is written to a text file of its own, `codes.NAME.json`.

        Raises:
            ValueError: if a part is missing or damaged.
        """
        missing = [n for n in range(len(self.sizes)) if n not in self.finished()]
        if missing:
            raise ValueError(f"{len(missing)} parts are missing in {self.out}; run again")
        metadata = {"identity": _json(self.identity), **about}
        for name in [n for n, text in metadata.items() if len(text) > _MOST_METADATA]:
            text, beside_codes = metadata.pop(name), self.out / f"codes.{name}.json"
            write_text(beside_codes, text)
        write_atomically(self.codes, lambda beside: self._join(beside, metadata))
        _clear_parts(self.out)
        return self.codes

    @contextmanager
    def alone(self, rank: int) -> Iterator[None]:
        """Hold this rank's lock, which the system drops when the process dies, however it does.

        A mistake before the first part is done leaves nothing behind.

        Raises:
            ValueError: if another process holds it.
        """
        refusal = (
            f"another process is writing codes in {self.out}; wait for it to end, or give another "
            "folder with out="
        )
        own = self.out / f".rank-{rank}.lock"
        with locked(own, refusal):
            try:
                yield
            except Exception:
                others = {*self.out.glob(".rank-*.lock")} - {own}
                if not others and not any(self.out.glob(f"{_FOLDER}/*.safetensors")):
                    _clear_parts(self.out)
                raise

    def _part(self, number: int) -> Path:
        return self.out / _FOLDER / f"{number:08d}.safetensors"

    def _compare(self, found: str | None, where: Path) -> None:
        try:
            theirs = json.loads(found or "null")
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict):
            raise ValueError(_refusal(where, "something else"))
        if theirs != self.identity:
            changed = ", ".join(_differences(theirs, self.identity)[:3])
            raise ValueError(_refusal(where, f"a reversal with another {changed}"))

    def _join(self, target: Path, metadata: dict[str, str]) -> None:
        paths = [self._part(number) for number in range(len(self.sizes))]
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        with safe_open(paths[0], "np") as first:
            names = sorted(first.keys())
            kinds = {name: first.get_slice(name) for name in names}
            end = 0
            for name in names:
                start, end = end, end + kinds[name][:1].nbytes * sum(self.sizes)
                shape = [sum(self.sizes), *kinds[name].get_shape()[1:]]
                kind = kinds[name].get_dtype()
                header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with open(target, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                for path in paths:
                    with safe_open(path, "np") as part:
                        file.write(part.get_tensor(name).tobytes())


def clear(out: Path) -> None:
    """Throw away the codes in a folder, and the parts of codes."""
    (out / CODES).unlink(missing_ok=True)
    _clear_parts(out)


def _clear_parts(out: Path) -> None:
    folder = out / _FOLDER
    for path in [*folder.glob("*.safetensors"), *folder.glob(".*"), folder / _IDENTITY]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(_refusal(path, f"a damaged file, {error}")) from error


def _refusal(where: Path, what: str) -> str:
    return f"{where} holds {what}; give another folder with out=, or start anew with restart=true"


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            line
            for key in [*ours, *(theirs.keys() - ours.keys())]
            for line in _differences(theirs.get(key), ours.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if theirs == ours else [f"{name} ({_short(theirs)}, now {_short(ours)})"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
