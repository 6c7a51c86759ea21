"""A command in a child process with limits, and what it did to folders it must not touch."""

import ctypes
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
MEMORY = 3 * 2**30
"""That a command may take beside what this process has; a bomb of 3 GB must not go off."""

_IN_ACCESS, _IN_MODIFY, _IN_ATTRIB, _IN_OPEN, _IN_CREATE, _IN_DELETE = 1, 2, 4, 0x20, 0x100, 0x200
_READ = _IN_ACCESS | _IN_OPEN
_WRITTEN = _IN_MODIFY | _IN_ATTRIB | _IN_CREATE | _IN_DELETE


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: of the process; "hung" if it had to be killed.
        out: what it printed.
        err: what it printed on standard error.
        read: names of what it opened in the folders that were watched.
        written: names of what it changed there.
    """

    status: int | str
    out: str
    err: str
    read: frozenset[str]
    written: frozenset[str]

    @property
    def refusal(self) -> str:
        """The one line that it ended with."""
        lines = self.err.splitlines()
        assert self.status == 1, (self.status, self.out[-300:], self.err[-2000:])
        assert len(lines) == 1, self.err[-2000:]
        assert lines[0].startswith("flexgen "), lines[0]
        assert "FLEXGEN_DEBUG" not in lines[0], f"nobody foresaw this: {lines[0]}"
        return lines[0]


def run_child(
    words: list[str],
    cwd: Path,
    *,
    watch: tuple[Path, ...] = (),
    env: Mapping[str, str] | None = None,
    prepare: Callable[[], object] = lambda: None,
    seconds: float = SECONDS,
) -> Ended:
    """`flexgen WORDS` in a fork of this process, which has imported all.

    Args:
        words: the command line.
        cwd: its working directory.
        watch: folders, of which it is noted what is opened and changed right in them.
        env: added to the environment.
        prepare: called in the child before the command.
        seconds: after so many it is killed.
    """
    import flexgen.cli.reverse
    import flexgen.report
    import flexgen.runs.build  # noqa: F401

    logs = [cwd.parent / f"{cwd.name}.{name}" for name in ("out", "err")]
    with _watched(watch) as seen:
        child = os.fork()
        if not child:
            _command(words, cwd, logs, env or {}, prepare, seconds)
        status = _wait(child, seconds)
        read, written = seen()
    out, err = (log.read_text(errors="replace") for log in logs)
    return Ended(status, out, err, frozenset(read), frozenset(written))


def _command(
    words: list[str],
    cwd: Path,
    logs: list[Path],
    env: Mapping[str, str],
    prepare: Callable[[], object],
    seconds: float,
) -> None:
    """The child; it never returns."""
    status = 99
    try:
        os.setsid()
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.stdin = open(os.devnull)  # noqa: SIM115
        os.chdir(cwd)
        os.environ.update(env)
        page = os.sysconf("SC_PAGE_SIZE")
        mine = int(Path("/proc/self/statm").read_text().split()[0]) * page
        resource.setrlimit(resource.RLIMIT_AS, (mine + MEMORY, mine + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.unraisablehook = lambda *_: None  # pytest's own would keep what it says
        prepare()
        from flexgen.cli import main

        main(words)
        status = 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, seconds: float) -> int | str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


@contextmanager
def _watched(folders: tuple[Path, ...]) -> Iterator[Callable[[], tuple[set[str], set[str]]]]:
    """What any process does to the files right in some folders, as Linux's inotify tells it."""
    libc = ctypes.CDLL(None, use_errno=True)
    notify = libc.inotify_init1(os.O_NONBLOCK)
    assert notify >= 0, os.strerror(ctypes.get_errno())
    names = {
        libc.inotify_add_watch(notify, os.fsencode(folder), _READ | _WRITTEN): folder
        for folder in folders
    }

    def seen() -> tuple[set[str], set[str]]:
        read, written = set[str](), set[str]()
        try:
            events = os.read(notify, 2**20)
        except BlockingIOError:
            events = b""
        while events:
            watch, mask, _, length = struct.unpack_from("iIII", events)
            name = os.fsdecode(events[16 : 16 + length].rstrip(b"\0"))
            events = events[16 + length :]
            if mask & 0x40000000 and not name and mask & _IN_OPEN:
                continue  # the folder itself was listed
            for kind, found in ((_READ, read), (_WRITTEN, written)):
                if mask & kind:
                    found.add(str(names[watch] / name))
        return read, written

    try:
        yield seen
    finally:
        os.close(notify)
