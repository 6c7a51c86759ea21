"""Files that are whole or absent, and those that more than one process may want."""

import errno
import hashlib
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from flexgen.checks import first_line

if TYPE_CHECKING:
    from torch import Tensor

_NO_LINK, _NO_WAITING = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
_DESCRIPTORS = Path("/proc/self/fd")


class _Kept(NamedTuple):
    """A folder that this process works in, opened; and whether links below it are followed."""

    descriptor: int
    links: bool


_kept: dict[Path, _Kept] = {}


def try_lock(file: IO[Any]) -> bool:
    """Lock a file, open to be changed, for as long as it is open; False if another process has.

    The system drops the lock when this process dies. Where it has no locks, as on Windows and some
    network file systems, the file says who holds it, and who died here does not.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        here, number = socket.gethostname(), file.fileno()
        os.lseek(number, 0, os.SEEK_SET)
        holder = os.read(number, 200).decode(errors="replace")
        host, _, process = holder.rpartition(" ")
        if holder and not (host == here and process.isdigit() and not _is_alive(int(process))):
            return False
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
        os.write(number, f"{here} {os.getpid()}".encode())
    return True


def keep_within(folder: Path, *, links: bool | None = None) -> None:
    """From now on write nothing below a folder, an absolute path, once it has been moved.

    No link is followed there unless `links` says so, None: as an earlier call has said, or else
    they are. What was looked through before may have been changed since.
    """
    before = _kept.get(folder)
    if links is None:
        links = before is None or _moved(folder, before) or before.links
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        _kept[folder] = _Kept(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), links)
        if before is not None:
            os.close(before.descriptor)


def keep_open(folder: Path) -> Path:
    """A path to a folder, made if need be, for whoever opens files by themselves: where no link is
    followed, it leads to that very folder until this process ends."""
    with _opened(folder, make=True) as path:
        held = path.parent == _DESCRIPTORS
        return _DESCRIPTORS / str(os.dup(int(path.name))) if held else path


def open_file(path: Path, flags: int = os.O_RDONLY, *, within: Path | None = None) -> IO[bytes]:
    """A regular file, opened to be read, or with other flags of `os.open` to be changed.

    No link is followed below the folder `within`, if one above the file is given.

    Raises:
        OSError: if it is not there, or something else: a pipe would be waited for.
    """
    with _opened(path.parent, within=within) as folder:
        link = 0 if folder == path.parent else _NO_LINK
        number = os.open(folder / path.name, flags | link | _NO_WAITING, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return os.fdopen(number, "rb" if flags == os.O_RDONLY else "r+b")


def open_lock(path: Path) -> IO[bytes]:
    """A file for :func:`try_lock`, made if it is not there; what it holds is left as it is."""
    return open_file(path, os.O_RDWR | os.O_CREAT | _NO_LINK)


def write_atomically(path: Path, write: Callable[[Path], Any], *, lasting: bool = True) -> None:
    """Have `write` fill a file beside `path`, then rename it to `path`.

    A process killed in between leaves the old file, if any, whole; a full disk too. The disk is
    waited for if it is to be `lasting`, as all is that cannot simply be made again.

    Raises:
        OSError: if the file cannot be written; what was half written is removed.
    """
    try:
        with _opened(path.parent, make=True) as folder:
            # Nobody can guess the name, and put a link there to be written through.
            beside = folder / f".{path.name}.{secrets.token_hex(4)}.part"
            try:
                write(beside)
                if lasting:
                    _sync(beside)
                os.replace(beside, folder / path.name)
                if lasting:
                    _sync(folder)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
    # A full disk is a RuntimeError of torch's zip writer, and safetensors has one of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OSError(
            f"could not write {path}: {reason}; free some disk space or choose another folder"
        ) from error


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a text as UTF-8, whatever the locale, by :func:`write_atomically`."""
    write_atomically(
        path, lambda beside: beside.write_text(text, encoding="utf-8"), lasting=lasting
    )


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file by :func:`write_atomically`; the same content gives the same bytes.

    The library itself writes metadata in another order each time.
    """
    from safetensors.torch import save

    content = save({name: value.cpu().contiguous() for name, value in tensors.items()})
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items()))} | header
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(memoryview(content)[data:])

    write_atomically(path, write)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_empty(folder: Path, *, above: Path) -> None:
    """Remove a folder if it is empty, and then so the folders that it lies in, below `above`."""
    while folder != above and folder.is_relative_to(above):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            return
        folder = folder.parent


@contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards; a ValueError with `refusal` if another process
    holds it, an OSError if a link stands in its place."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    if (kept := _kept.get(lock.parent)) is not None and _moved(lock.parent, kept):
        os.close(_kept.pop(lock.parent).descriptor)  # work in another folder of that name begins
    with open_lock(lock) as file:
        if not try_lock(file) or not _is_at(file, lock):
            raise ValueError(f"{refusal}; or if there is none, remove {lock}")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold a lock file, when whoever holds it is done; OSError if a link stands in its place."""
    with open_lock(lock) as file:
        while not try_lock(file):
            time.sleep(0.05)
        yield


@contextmanager
def _opened(folder: Path, *, make: bool = False, within: Path | None = None) -> Iterator[Path]:
    """A path to a folder, for as long as this lasts; without links, a path of its descriptor."""
    root, kept = within, None
    if root is None:
        roots = ((root, kept) for root, kept in _kept.items() if folder.is_relative_to(root))
        root, kept = next(roots, (None, None))
    if root is not None and kept is not None and _moved(root, kept):
        raise OSError(errno.ENOENT, f"{root} was moved or removed while it was worked in", root)
    if root is None or (kept is not None and kept.links) or not _DESCRIPTORS.is_dir():
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    here = os.dup(kept.descriptor) if kept else os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folder.relative_to(root).parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=here)
            os.close(here)
            here = inner
        yield _DESCRIPTORS / str(here)
    finally:
        os.close(here)


def _sync(path: Path) -> None:
    """Have the disk hold what was written; a folder, the names in it, where that can be asked."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _moved(folder: Path, kept: _Kept) -> bool:
    try:
        return not os.path.samestat(os.fstat(kept.descriptor), folder.stat())
    except OSError:
        return True


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return process != os.getpid()


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at `path`: another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
