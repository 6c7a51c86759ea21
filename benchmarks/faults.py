"""Kills runs with SIGKILL at random moments, resumes them, and compares every bit at the end.

    python benchmarks/faults.py [--kills 52] [--seed 0]

One small run on a ring of Gaussians (WGAN-GP, a refit with a PGAN in the middle, reversals, sample
quality, checkpoints) is left alone. Then, for each kill, the same command starts in a process of
its own and is killed at a random moment of one phase: a training step, a reversal, a refit, the
writing of a checkpoint, or the start up to the first step. `flexgen resume` finishes it, after a
second kill in every fourth run. Equal bits means: weights, optimizers, counters and generators'
states of the last checkpoint, and all logged values, are those of the run that was left alone.

Prints a row for each phase; the exit status is 1 if a run did not end with the same bits.
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from flexgen.callbacks import PriorRefit, ReversalScore
from flexgen.cli import main
from flexgen.models import Latent
from flexgen.runs.run import Run
from flexgen.training import checkpoint, latest_checkpoint, load_checkpoint

STEPS = 60
WORDS = (
    "data=ring8", "data.num_train=640", "data.num_validation=200", "data.num_test=100",
    "data.batch_size=32", "latent_dim=2", f"steps={STEPS}", "trainer=cpu", "report=false",
    "network.generator.hidden_features=[16]", "network.critic.hidden_features=[16]",
    "callbacks=[reversal,quality,refit,checkpoint]", "model.log_every=7",
    "callbacks.reversal.n=64", "callbacks.reversal.every=20", "callbacks.reversal.options.steps=20",
    "callbacks.reversal.options.progress=false", "callbacks.reversal.num_resamples=40",
    "callbacks.quality.n=64", "callbacks.checkpoint.every=10", "callbacks.checkpoint.keep=null",
    "callbacks.refit.at=[30]", "callbacks.refit.n=100", "callbacks.refit.n_held_out=64",
    "callbacks.refit.prior.steps=30", "callbacks.refit.keep=always",
    "callbacks.refit.progress=false", "threads=1",
)  # fmt: skip

PHASES: dict[str, tuple[Any, str]] = {
    "training step": (Latent, "training_step"),
    "reversal": (ReversalScore, "measure"),
    "refit": (PriorRefit, "refit"),
    "checkpoint writing": (checkpoint, "save_checkpoint"),
    "start": (Run, "build"),
}
"""Of each phase the function that runs it."""

Wrap = Callable[[str, int], Callable[[], None]]


def wrap(phases: dict[str, tuple[Any, str]], entered: Wrap) -> None:
    """Have `entered(phase, call)` run before each call, and what it returns after it."""
    for phase, (owner, name) in phases.items():
        inner, calls = getattr(owner, name), iter(range(10**9))

        def outer(
            *args: Any, inner: Any = inner, calls: Any = calls, phase: str = phase, **kw: Any
        ) -> Any:
            left = entered(phase, next(calls))
            try:
                return inner(*args, **kw)
            finally:
                left()

        setattr(owner, name, outer)


def in_child(words: list[str], log: Path, prepare: Callable[[], None]) -> int:
    """Run a command in a process forked from this one, which has imported all; its exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            prepare()
            main(words)
            status = 0
        except SystemExit as stopped:
            print(stopped.code)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
    os._exit(status)


def timed(path: Path) -> Callable[[], None]:
    """Write down when each phase began in a run, and how long it took."""
    spans: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def entered(phase: str, call: int) -> Callable[[], None]:
        start = time.perf_counter()

        def left() -> None:
            spans[phase].append(time.perf_counter() - start)
            path.write_text(json.dumps(spans))

        return left

    return lambda: wrap(PHASES, entered)


def killed(phase: str, call: int, delay: float) -> Callable[[], None]:
    """SIGKILL this process `delay` seconds after `call` of a phase began."""

    def entered(_: str, this: int) -> Callable[[], None]:
        if this == call:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return lambda: None

    def prepare() -> None:
        sys.setswitchinterval(1e-4)  # else a thread that is to kill waits its turn for 5 ms
        wrap({phase: PHASES[phase]}, entered)

    return prepare


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures of tensors and plain values differ."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [path]
        return [found for key in a for found in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [path]
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in differences(x, y, f"{path}.{i}")]
    return [] if a == b or (a != a and b != b) else [path]


def end_of(run_dir: Path) -> dict[str, Any]:
    """What a finished run must share with the one that was left alone."""
    last = load_checkpoint(latest_checkpoint(run_dir))
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "flexgen")
    with open(run_dir / "metrics.csv") as file:
        rows = [
            {name: value for name, value in row.items() if "seconds" not in name}
            for row in csv.DictReader(file)
        ]
    files = sorted(
        str(path.relative_to(run_dir))
        for path in run_dir.rglob("*")
        if path.is_file() and path.name != "config.yaml"
    )
    return {name: last[name] for name in kept} | {"metrics.csv": rows, "files": files}


def finish(run_dir: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """What a user types after a crash: resume where there is a run to resume, else train again."""
    if (run_dir / "config.yaml").is_file():
        return in_child(["resume", f"run={run_dir}"], log, prepare)
    return in_child(["train", *WORDS, f"paths.run_dir={run_dir}"], log, prepare)


def one_kill(
    folder: Path, phase: str, spans: dict[str, list[float]], draw: random.Random, twice: bool
) -> tuple[list[str], float]:
    """Kill a run within `phase`, finish it and say where its end differs, and when it was."""
    while True:
        call = draw.randrange(len(spans[phase]))
        delay = draw.random() * spans[phase][call]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            run_dir, log = Path(scratch) / "run", Path(scratch) / "log"
            words = ["train", *WORDS, f"paths.run_dir={run_dir}"]
            if in_child(words, log, killed(phase, call, delay)) != -signal.SIGKILL:
                continue  # it ended before its time
            if twice:
                finish(run_dir, log, killed("training step", 0, draw.random() * 0.2))
            if finish(run_dir, log) != 0:
                return [f"did not finish: {log.read_text()[-400:]}"], delay
            return differences(end_of(folder / "alone"), end_of(run_dir)), delay


def survive(kills: int, seed: int, out: io.TextIOBase | Any = sys.stdout) -> int:
    """Kill `kills` runs, print a table, and return how many did not end with the same bits."""
    draw, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FLEXGEN_CACHE"] = str(folder / "cache")
        words = ["train", *WORDS, f"paths.run_dir={folder / 'alone'}"]
        if in_child(words, folder / "log", timed(folder / "spans")) != 0:
            raise RuntimeError(f"the run left alone failed: {(folder / 'log').read_text()[-400:]}")
        spans = json.loads((folder / "spans").read_text())
        print(f"torch {torch.__version__}, {kills} kills, seed {seed}", file=out)
        print(f"{'phase':20}{'kills':>6}{'equal bits':>12}{'seconds into it':>20}", file=out)
        for number, phase in enumerate(PHASES):
            share = kills // len(PHASES) + (number < kills % len(PHASES))
            results = [one_kill(folder, phase, spans, draw, k % 4 == 3) for k in range(share)]
            bad = [found for found, _ in results if found]
            failed += len(bad)
            when = [delay for _, delay in results] or [0.0]
            span = f"{min(when):.4f} to {max(when):.4f}"
            print(f"{phase:20}{share:6d}{share - len(bad):12d}{span:>20}", file=out, flush=True)
            for found in bad:
                print(f"  differs: {'; '.join(found)[:1000]}", file=out)
    print(f"{kills - failed} of {kills} ended with the same bits", file=out)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=52)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(bool(survive(arguments.kills, arguments.seed)))
