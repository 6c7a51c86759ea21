"""Commands in processes of their own: forks of this one, which has paid for the imports."""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

# What commands import when they need it.
import flexgen.analysis.comparison
import flexgen.cli.reverse
import flexgen.report
import flexgen.runs.build
import flexgen.runs.search
import flexgen.runs.train  # noqa: F401


class Forked:
    """A command that was started, as `subprocess.Popen` has one.

    Attributes:
        pid: of the process.
        returncode: its status; None: it has not been seen to end.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.returncode: int | None = None

    @property
    def err(self) -> str:
        """What it has written on standard error so far."""
        return (self.folder / "err").read_text(errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"it was still at work, and is killed: {self.err[-1000:]}")
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it wrote on standard output and error, when it has ended."""
        self.wait(timeout)
        return (self.folder / "out").read_text(errors="replace"), self.err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> Forked:  # fmt: skip
    """Start `flexgen WORDS`, in a session of its own, as the installed command starts it.

    Args:
        *words: the command line.
        cwd: its working directory; None: this one.
        env: added to the environment.
        prepare: called in the process before the command.
    """
    folder = Path(tempfile.mkdtemp())
    for name in ("out", "err"):
        (folder / name).touch()
    if pid := os.fork():
        return Forked(pid, folder)
    status = 99
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.stdin = open(os.devnull)  # noqa: SIM115
        if cwd is not None:
            os.chdir(cwd)
        os.environ.update(env or {})
        sys.unraisablehook = lambda *_: None  # pytest's own would keep what it says
        # Whoever runs the tests in the background, or by nohup, ignores these, and so would it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.argv = ["flexgen", *words]
        sys.orig_argv = [sys.executable, "-m", *sys.argv]
        prepare()
        from flexgen.cli import main

        main()
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
