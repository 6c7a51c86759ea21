"""Further processes of one reversal: each does its own chunks, all meet in the folder of parts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import Any

__all__ = ["Shards", "work_as_shard"]


class Shards:
    """Processes 1 to `processes` − 1; process 0 is the one that starts them.

    Args:
        asked: the configuration, plain values.
        processes: how many in all.
    """

    def __init__(self, asked: dict[str, Any], processes: int) -> None:
        self.asked, self.processes = asked, processes
        self._started: list[tuple[subprocess.Popen[bytes], Any]] = []

    def __enter__(self) -> "Shards":
        for rank in range(1, self.processes):
            told = tempfile.TemporaryFile()
            # From where this process has its modules: -m would look in the working directory first.
            start = f"import sys; sys.path[:] = {sys.path!r}; import flexgen.analysis.workers as w"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{start}; w.work_as_shard()"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=told,
            )  # fmt: skip
            assert process.stdin is not None
            order = {"asked": self.asked, "rank": rank, "processes": self.processes}
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()  # left open: a shard ends when it is closed, as by our death
            self._started.append((process, told))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, told in self._started:
            assert process.stdin is not None
            if error is not None:
                process.kill()
            process.wait()
            process.stdin.close()
            told.close()

    def check(self) -> None:
        """See that no shard has failed.

        Raises:
            RuntimeError: if one has, with what it said.
        """
        for process, told in self._started:
            if process.poll():
                told.seek(0)
                lines = told.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(
                    lines[-1]
                    if lines
                    else f"a process of this reversal was ended by signal {-process.returncode}; "
                    "the same command goes on where it stopped"
                )


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
