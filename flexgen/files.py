"""Files that are whole or absent, and those that more than one process may want."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from flexgen.checks import first_line

__all__ = ["in_turn", "locked", "try_lock", "write_atomically"]


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for as long as it is open; False if another process has.

    The system drops the lock when this process dies, however it does. Where there are no locks, on
    Windows and on some file systems, nobody is kept out.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a file beside `path`, then rename it to `path`.

    A process killed in between leaves the old file, if any, whole; a full disk too.

    Raises:
        OSError: if the file cannot be written; what was half written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)  # it could be a link, to be written through
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        # A full disk is a RuntimeError of torch's zip writer, and safetensors has one of its own.
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            reason = first_line(error)
            raise OSError(
                f"could not write {path}: {reason}; free some disk space or choose another folder"
            ) from error
        raise


@contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards.

    Raises:
        ValueError: with `refusal`, if another process holds it.
        OSError: if a link stands in its place.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a", opener=_no_link) as file:
        if not try_lock(file) or not _is_at(file, lock):
            raise ValueError(refusal)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold a lock file, when whoever holds it is done.

    Raises:
        OSError: if a link stands in its place.
    """
    with open(lock, "a", opener=_no_link) as file:
        while not try_lock(file):
            time.sleep(0.05)
        yield


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at `path`: another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
