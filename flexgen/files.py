"""Files that more than one process may want."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock, which the system drops when this process dies, however it does.

    Raises:
        ValueError: with `refusal`, if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        except OSError:
            pass  # a file system without locks
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise ValueError(refusal)  # who held it a moment ago has removed it, as below
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
