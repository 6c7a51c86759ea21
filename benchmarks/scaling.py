"""Two processes against one: a training step, a reversal and a score, the sides in turn.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--rounds 7]

Three processes with a thread each wait for orders: one works alone, two share the same work by
gloo. The training step is DCGAN's on digits at 32×32, 64 images in all, one critic step to one;
the reversal is the papers' loop on 64 images under that generator, 4 batches, 20 steps; the score
is PAG of 20,000 codes of dimension 100, from raw codes to the value. Quoted are medians over the
rounds of wall-clock time (of the pair, the slower's), of CPU time a process, and of the rounds'
ratios. On a machine with other work only CPU time means something, and waiting is not in it.
"""

import argparse
import functools
import logging
import os
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

Timed = tuple[float, float]
UPDATES = 4


def works(world_size: int, rank: int) -> dict[str, Callable[[], Timed]]:
    """What a process can be asked to do, its share of each; gives wall-clock and CPU seconds."""
    import pytorch_lightning as pl
    import torch

    from flexgen import reversal
    from flexgen.codes import in_shares
    from flexgen.data import ImageData
    from flexgen.metrics import PriorAgreement
    from flexgen.models import Adversarial
    from flexgen.networks import DCGANCritic, DCGANGenerator
    from flexgen.objectives import GAN
    from flexgen.priors import Normal

    torch.manual_seed(0)
    shape, adam = (1, 32, 32), functools.partial(torch.optim.Adam, lr=1e-4, fused=True)
    data = ImageData("digits", shape=shape, batch_size=64 // world_size)
    model = Adversarial(
        DCGANGenerator(100, shape, (-1, 1), channels=[128, 64, 32]),
        DCGANCritic(shape, channels=[32, 64, 128]),
        Normal(100), GAN(), generator_optimizer=adam, critic_optimizer=adam,
    )  # fmt: skip
    x, _ = data.split("train", 64)
    codes = torch.randn(20_000, 100)

    def timed(work: Callable[[], Any]) -> Timed:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    class Clock(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter(), time.process_time()

        def on_train_end(self, *_: Any) -> None:
            self.taken = (time.perf_counter() - self.start[0], time.process_time() - self.start[1])

    def train() -> Timed:
        clock = Clock()
        model.schedule.end = model.counters.generator_steps + UPDATES
        data.position = model.counters.batches
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                default_root_dir=folder, accelerator="cpu", devices=world_size, max_epochs=-1,
                strategy="ddp_find_unused_parameters_true" if world_size > 1 else "auto",
                logger=False, callbacks=[clock], enable_progress_bar=False,
                enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(model, datamodule=data)
        return clock.taken[0] / UPDATES, clock.taken[1] / UPDATES

    def reverse() -> Timed:
        options: dict[str, Any] = {"latent_shape": 100, "method": "adam", "steps": 20}
        options |= {"batch_size": 16, "tolerance": 0.0}
        return timed(lambda: in_shares(reversal.reverse, model.generator, x, **options))

    def score() -> Timed:
        pag = PriorAgreement()

        def work() -> None:
            pag.update(codes[rank::world_size])
            pag.compute()

        return timed(work)

    return {"training step": train, "reversal": reverse, "PAG": score}


def process(rank: int, world_size: int, port: int, orders: Connection) -> None:
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "scaling",
        }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    known = works(world_size, rank)
    for name in ("pytorch_lightning", "lightning_fabric"):  # after they have set their own levels
        logging.getLogger(name).setLevel(logging.ERROR)
    while (name := orders.recv()) is not None:
        orders.send(known[name]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    context = get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        ours, theirs = context.Pipe()
        context.Process(target=process, args=(rank, world_size, port, theirs), daemon=True).start()
        ends.append(ours)

    def take(name: str, asked: list[Connection]) -> Timed:
        for end in asked:
            end.send(name)
        wall, cpu = zip(*(end.recv() for end in asked), strict=True)
        return max(wall), max(cpu)

    alone, pair = ends[:1], ends[1:]
    print(f"{rounds} rounds; load average {os.getloadavg()[0]:.1f} before")
    print(f"{'':<16}{'one':>9}{'two':>9}{'speed-up':>10}{'CPU one':>10}{'CPU two':>10}{'ratio':>8}")
    for name in ("training step", "reversal", "PAG"):
        for asked in (alone, pair):
            take(name, asked)
        taken = [(take(name, alone), take(name, pair)) for _ in range(rounds)]
        middle = [
            statistics.median(t[side][what] for t in taken) for what in (0, 1) for side in (0, 1)
        ]
        wall, cpu = (statistics.median(a[what] / b[what] for a, b in taken) for what in (0, 1))
        ms = [f"{1e3 * seconds:.1f}" for seconds in middle]
        print(
            f"{name:<16}{ms[0]:>9}{ms[1]:>9}{wall:>10.2f}{ms[2]:>10}{ms[3]:>10}{cpu:>8.2f}",
            flush=True,
        )
    print(f"milliseconds, medians; load average {os.getloadavg()[0]:.1f} after")
    for end in ends:
        end.send(None)


if __name__ == "__main__":
    main()
