"""The exact EMD inside `SampleQuality` against the bare solver, and its share of a default run.

    python benchmarks/quality.py [--steps 200] [--rounds 7] [--mnist data]

Each row is `flexgen train` with its defaults but the data set: the model trains for `--steps`
steps, which gives milliseconds a step and samples that are worth a distance. Then, in turn in one
process with one thread: `ours`, all that the callback does for `emd/samples` once it has its 4
sets of samples (checks, cost matrices, solver); `bare`, `ot.emd2` on the same cost matrices,
already computed; and `hand`, what one writes without FlexGen, `ot.emd2` of `ot.dist`. The ratios of
ours to both are medians over the rounds. `whole` is one measurement of a run, the
first, sampling and floor included, and `share` what it is of the default number of steps.
Last come seconds of one distance at larger n. CPU seconds of the process, medians.
"""

import argparse
import functools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from ot import dist, emd2

from flexgen.callbacks import SampleQuality
from flexgen.metrics import earth_mover_distance
from flexgen.runs.build import build_trainer
from flexgen.runs.compose import compose
from flexgen.runs.run import Run


class Clock(pl.Callback):
    """CPU seconds of the steps alone, without Lightning's start and end."""

    def on_train_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.started


def trained(words: list[str], steps: int, folder: str) -> tuple[Run, float, int]:
    """A default run after `steps` steps, seconds a step, and how many it would make."""
    overrides = [*words, "trainer=cpu", "threads=1", f"paths.run_dir={folder}"]
    config = compose(overrides)
    run, clock = Run(config).build(), Clock()
    run.model.schedule.end = steps
    build_trainer(config, [clock]).fit(run.model, datamodule=run.data)
    return run, clock.seconds / steps, config["steps"]


def seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(name: str, words: list[str], asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, a_step, steps = trained(words, asked.steps, folder)
        model, data = run.model, run.data
        quality: Any = run.callbacks["quality"]
        whole = statistics.median(
            seconds(lambda: _fresh(quality).run(model, data, Path(folder))) for _ in range(3)
        )
    n = min(quality.n, data.size("validation"))
    held_out, _ = data.split("validation", n, 0)
    sets = [model.sample(n) for _ in range(quality.draws)]
    pairs = [tuple(y.double().flatten(1).numpy() for y in (x, held_out)) for x in sets]
    costs = [torch.cdist(x.double().flatten(1), held_out.double().flatten(1)) for x in sets]
    sides = {
        "ours": lambda: [earth_mover_distance(x, held_out) for x in sets],
        "bare": lambda: [emd2([], [], cost.numpy(), numItermax=2**31 - 1) for cost in costs],
        "hand": lambda: [
            emd2([], [], dist(*pair, metric="euclidean"), numItermax=2**31 - 1) for pair in pairs
        ],
    }
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(asked.rounds):
        for side, work in sides.items():
            taken[side].append(seconds(work))
    ratios = [
        statistics.median(a / b for a, b in zip(taken["ours"], taken[side], strict=True))
        for side in ("bare", "hand")
    ]
    ours, bare, hand = (1e3 * statistics.median(t) / len(sets) for t in taken.values())
    share = whole / (steps * a_step)
    print(
        f"{name:<8}{n:>6}{ours:>8.1f}{bare:>8.1f}{hand:>8.1f}{ratios[0]:>8.3f}{ratios[1]:>8.3f}"
        f"{1e3 * a_step:>9.1f}{whole:>9.2f}{share:>8.2%}",
        flush=True,
    )
    for size in (2000, 5000):
        if size <= data.size("train"):
            both = model.sample(size), data.split("train", size)[0]
            taken_ms = 1e3 * seconds(functools.partial(earth_mover_distance, *both))
            print(f"{'':<8}{size:>6}{taken_ms:>8.0f}", flush=True)


def _fresh(quality: SampleQuality) -> SampleQuality:
    """The same measurement without the floor that it keeps after the first."""
    return SampleQuality(n=quality.n, draws=quality.draws, seed=quality.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="generator steps of training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mnist", help="folder with MNIST/raw; no row of it without")
    asked = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = {"digits": [], "ring8": ["data=ring8", "latent_dim=2"]}
    if asked.mnist:
        rows["mnist"] = ["data=mnist", f"paths.data_dir={asked.mnist}"]
    print(f"torch {torch.__version__}, one thread, {asked.rounds} rounds")
    print(
        f"{'':<8}{'n':>6}{'ours':>8}{'bare':>8}{'hand':>8}{'/bare':>8}{'/hand':>8}"
        f"{'ms/step':>9}{'whole s':>9}{'share':>8}"
    )
    for name, words in rows.items():
        compare(name, words, asked)
    print(
        "ours, bare, hand: milliseconds a distance; whole: one measurement; share: of a default run"
    )


if __name__ == "__main__":
    main()
