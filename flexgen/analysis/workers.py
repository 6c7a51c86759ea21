"""Further processes of one reversal: each does its own chunks, all meet in the folder of parts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def shards(asked: dict[str, Any], processes: int) -> Iterator[Callable[[], None]]:
    """Processes 1 to `processes` − 1 of what was asked; process 0 is the one that starts them.

    Gives a function that sees that none has failed, else raises a RuntimeError with what it said.
    """
    started: list[tuple[subprocess.Popen[bytes], Any]] = []

    def check() -> None:
        for process, told in started:
            if process.poll():
                told.seek(0)
                signalled = (
                    f"a process of this reversal was ended by signal {-process.returncode}; the "
                    "same command goes on where it stopped"
                )
                lines = told.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError([signalled, *lines][-1])

    failed, files = True, ExitStack()
    try:
        for rank in range(1, processes):
            told = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            # From where this process has its modules: -m would look in the working directory first.
            start = f"import sys; sys.path[:] = {sys.path!r}; import flexgen.analysis.workers as w"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{start}; w.work_as_shard()"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=told,
            )  # fmt: skip
            started.append((process, told))
            assert process.stdin is not None
            order = {"asked": asked, "rank": rank, "processes": processes}
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()  # left open: a shard ends when it is closed, as by our death
        yield check
        failed = False
    finally:
        with files:
            for process, _ in started:
                assert process.stdin is not None
                if failed:
                    process.kill()
                process.wait()
                process.stdin.close()


def work_as_shard() -> None:
    """One shard: what to do is the first line of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to tell
    order = json.loads(sys.stdin.buffer.readline())

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    from flexgen.analysis.reversal_job import prepare, work
    from flexgen.runs.errors import error_line

    asked, rank, processes = order["asked"], order["rank"], order["processes"]
    try:
        work(asked, prepare(asked, rank), rank, processes)
    except Exception as error:
        print(error_line(error), file=sys.stderr, flush=True)
        os._exit(1)
    # Not through the interpreter's end, which would wait for the thread that reads.
    os._exit(0)
