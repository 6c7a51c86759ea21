"""Kills the other commands with SIGKILL at random moments, types them again, and compares files.

    python benchmarks/command_faults.py [--kills 60] [--seed 0]

`refit`, `compare`, `search`, `reverse`, `report` and `table` work on a small run, that of
`faults.py` without its own refit. Each is left alone once in a copy of that run. Then, for each
kill, it is started in another copy, killed at a random moment, and typed again; a refit that has
saved its configuration goes on by `flexgen resume`, as its own message says. Equal means: the same
files, and in each the same bits, times of day and durations left out.

Prints a row for each command; the exit status is 1 if a command did not end with the same files.
"""

import argparse
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import WORDS, differences, in_child

from flexgen.training import load_checkpoint

SMALL = tuple(word for word in WORDS if not word.startswith(("callbacks.refit", "callbacks=")))
CALLBACKS = "callbacks=[reversal,quality,checkpoint]"
REFIT = ("refit.n=100", "refit.n_held_out=64", "refit.keep=always", "refit.progress=false")

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "refit": lambda at: [
        "refit", f"run={at / 'run'}", "prior=pushforward", "prior.steps=30", *REFIT, "more=20",
        "report=false", f"paths.run_dir={at / 'refit'}",
    ],
    "compare": lambda at: [
        "compare", f"run={at / 'run'}", "priors=own,gaussian,mixture", "n=40", "n_fit=60",
        "seeds=2",
    ],
    "search": lambda at: [
        "search", *SMALL, CALLBACKS, "steps=10", "trials=3",
        "model.generator_optimizer.lr=tag(log,interval(1e-5,1e-2))",
        f"hydra.run.dir={at / 'search'}",
    ],
    "reverse": lambda at: ["reverse", f"run={at / 'run'}", "n=96"],
    "report": lambda at: ["report", str(at / "run")],
    "table": lambda at: ["table", str(at)],
}  # fmt: skip

_VOLATILE = re.compile(r"started|finished|seconds|duration|when|machine|commit|resumed|run_id|time")


def plain(value: Any) -> Any:
    """A value without times of day."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not _VOLATILE.search(k)}
    return [plain(v) for v in value] if isinstance(value, list) else value


def content(path: Path, at: Path) -> Any:
    """What a file holds, in a form in which equal commands have equal ones."""
    if path.suffix == ".ckpt":
        kept = ("state_dict", "optimizer_states", "lr_schedulers", "flexgen")
        checkpoint = load_checkpoint(path)
        return {name: checkpoint[name] for name in kept}
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{k: v for k, v in row.items() if not _VOLATILE.search(k)} for row in rows]
    if path.suffix == ".json":
        return plain(json.loads(path.read_text().replace(str(at), "")))
    return path.read_bytes().replace(os.fsencode(at), b"")


def end_of(at: Path) -> dict[str, Any]:
    """All files below a folder that a command has left, by name."""
    left_out = {"config.yaml", "provenance.json", "log.txt", "log", "search.journal", "cell.json"}
    return {
        path.relative_to(at).as_posix(): content(path, at)
        for path in sorted(at.rglob("*"))
        if path.is_file() and path.name not in left_out and "cache" not in path.parts
    }


def enter(command: str, at: Path, delay: float | None = None) -> int:
    """Type a command, or what goes on with it; be killed `delay` seconds after its start."""

    def prepare() -> None:
        if delay is not None:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    words = COMMANDS[command](at)
    if command == "refit" and (at / "refit" / "config.yaml").is_file():
        words = ["resume", f"run={at / 'refit'}"]
    return in_child(words, at / "log", prepare)


def survive(kills: int, seed: int, say: Callable[[str], None] = print) -> int:
    """Kill commands, print a table, and return how many did not end with the same files."""
    draw, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FLEXGEN_CACHE"] = str(folder / "cache")
        base = folder / "base"
        base.mkdir()
        words = ["train", *SMALL, CALLBACKS, "report=true", f"paths.run_dir={base / 'run'}"]
        if in_child(words, base / "log", lambda: None) != 0:
            raise RuntimeError(f"the run failed: {(base / 'log').read_text()[-400:]}")
        say(f"{kills} kills, seed {seed}")
        say(f"{'command':12}{'seconds':>9}{'kills':>7}{'equal files':>13}")
        for number, command in enumerate(COMMANDS):
            alone = shutil.copytree(base, folder / command / "alone")
            began = time.perf_counter()
            if enter(command, alone) != 0:
                raise RuntimeError(f"{command} failed: {(alone / 'log').read_text()[-800:]}")
            took, wanted = time.perf_counter() - began, end_of(alone)
            share = kills // len(COMMANDS) + (number < kills % len(COMMANDS))
            equal = done = 0
            while done < share:
                at = shutil.copytree(base, folder / command / "killed")
                if enter(command, at, draw.random() * took) == -signal.SIGKILL:
                    done += 1
                    status = enter(command, at)
                    left = end_of(at)
                    found = sorted(wanted.keys() ^ left.keys()) or differences(wanted, left)
                    if status:
                        found = [f"status {status}"]
                    equal += not found
                    if found:
                        tail = (at / "log").read_text()[-300:] if status else ""
                        say(f"  differs: {'; '.join(found)[:600]} {tail}")
                shutil.rmtree(at)
            failed += share - equal
            say(f"{command:12}{took:9.2f}{share:7d}{equal:13d}")
    say(f"{kills - failed} of {kills} ended with the same files")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(bool(survive(arguments.kills, arguments.seed, lambda line: print(line, flush=True))))
