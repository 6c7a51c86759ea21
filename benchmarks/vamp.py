"""A VAE's training step under a VampPrior against the same step under N(0, I), sides in turn.

    python benchmarks/vamp.py [--updates 20] [--rounds 10] [--components 500] [--subset 100]
                                 [word=value ...]

`model=vae data=mnist_static network=mlp latent_dim=40` and what is typed, such as
`data.batch_size=500`, on random binary data: loss, gradient and Adam's step, CPU milliseconds of
the process with one thread. Printed: medians over the rounds, and median and quartiles of the
rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate

import flexgen

WORDS = ("model=vae", "data=mnist_static", "network=mlp", "latent_dim=40")


def side(words: list[str], batch_size: int) -> Callable[[], None]:
    """A training step, of a model of its own."""
    torch.manual_seed(0)
    model: Any = instantiate(flexgen.compose(words)["model"])
    shape = (1, 28, 28)
    model.bind_data(lambda n: torch.rand(n, *shape).round())
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    x = torch.rand(batch_size, *shape).round()

    def step() -> None:
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--subset", default="null", help="of them, for each step; null: all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    words = [*WORDS, *asked.words]
    batch_size = flexgen.compose(words)["data"]["batch_size"]
    options = {"num_components": asked.components, "subset": asked.subset}
    vamp = ["prior=vamp", *(f"prior.{key}={value}" for key, value in options.items())]
    steps = [side([*words, *own], batch_size) for own in (["prior=normal"], vamp)]
    taken: list[list[float]] = [[], []]
    for _ in range(asked.rounds):
        for step, times in zip(steps, taken, strict=True):
            step()
            started = time.process_time()
            for _ in range(asked.updates):
                step()
            times.append(1000 * (time.process_time() - started) / asked.updates)
    normal, mixed = (statistics.median(times) for times in taken)
    ratios = [b / a for a, b in zip(*taken, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"batch {batch_size}: normal {normal:.2f} ms, vamp {mixed:.2f} ms, "
          f"{middle:.2f} times ({low:.2f} to {high:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
