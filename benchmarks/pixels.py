"""Pixel networks: drawing by a cache against whole passes, and a training step against masks.

    python benchmarks/pixels.py [--rounds 3] [--batches 1 16 64 256] [--only image]

**Drawing.** Gated PixelCNN of 7 layers of 32 on 28 × 28 binary pixels, and of 5 layers of 48 on
32 × 32 × 3 pixels of 256 values. The other side is what one writes without a cache: a whole pass
for each pixel, or each colour of one, through the network as it is usually written, by masks, and
through FlexGen's own, which is faster; a few passes are timed and multiplied by their number. Each
round times one side after the other. Beside the ratios stands what the second could be at most: all
products, each once, at the rate of one large product.

**A training step.** Batch 50, 7 layers of 16 and of 32: FlexGen's step under bfloat16 autocast and
in float32 against the network as it is usually written, in float32: full kernels times a mask, tanh
and sigmoid apart. Both with Adam.

**Multiscale.** 28 × 28 binary pixels by doublings, 7 → 14 → 28, against the gated PixelCNN by its
cache: draws, and a training step under bfloat16, with 7 layers of 16 and the network of
`experiment=pixels/mnist_static_multiscale`.

**An image.** What one costs by each: a VAE's decoder, whole passes, the cache and doublings, beside
the 0.05 s and 52 s of Kingma et al., "Improved variational inference with inverse autoregressive
flow", 2016, section 6.2.

CPU seconds of the process, with one thread; medians over the rounds, and of the rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.networks import GatedPixelCNN, MLPGenerator, MultiscalePixelCNN
from flexgen.networks.pixels import PixelDensity
from flexgen.outputs import Bernoulli, Categorical


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def flops_a_second() -> float:
    a, b = torch.randn(512, 512), torch.randn(512, 2048)
    a @ b
    return 2 * 512 * 512 * 2048 / min(seconds(lambda: a @ b) for _ in range(5))


def products(network: GatedPixelCNN) -> int:
    """Floating-point operations of one image's draw, each product once."""
    pixels = network.shape[1] * network.shape[2]
    weights = [p.numel() for p in network.parameters() if p.ndim == 4]
    return 2 * pixels * sum(weights)


@torch.no_grad()
def drawing(network: GatedPixelCNN, n: int, rounds: int) -> None:
    channels, height, width = network.shape
    passes = height * width * network.head.sets
    parameters = network.output.num_parameters(1) * channels
    masked = MaskedGated(network.channels, len(network.layers), channels, parameters)
    x = network().sample((n,))
    timed = max(2, 64 // n)
    sides: dict[str, Callable[[], object]] = {
        "masks": lambda: [masked(x) for _ in range(timed)],
        "own": lambda: [network.parameters_of(x) for _ in range(timed)],
        "cached": lambda: network().sample((n,)),
    }
    sides["masks"](), sides["own"]()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            whole = 1.0 if name == "cached" else passes / timed
            times[name].append(whole * seconds(side))
    took = {name: statistics.median(each) for name, each in times.items()}
    by_masks, by_own = (
        statistics.median(a / b for a, b in zip(times[name], times["cached"], strict=True))
        for name in ("masks", "own")
    )
    bound = took["own"] * flops_a_second() / (n * products(network))
    print(
        f"| {height} × {width} × {channels}, batch {n} | {took['masks']:.1f} s "
        f"| {took['own']:.1f} s | {took['cached']:.3f} s | {by_masks:,.0f}× | {by_own:,.0f}× "
        f"| {bound:,.0f}× |",
        flush=True,
    )


class MaskedConv(nn.Conv2d):
    """A convolution by mask × weight."""

    mask: Tensor

    def __init__(self, cin: int, cout: int, kernel: tuple[int, int], centre: bool) -> None:
        rows, columns = kernel
        super().__init__(cin, cout, kernel, padding=(rows // 2, columns // 2))
        mask = torch.zeros(kernel)
        if rows > 1:
            mask[: rows // 2 + centre] = 1
        else:
            mask[:, : columns // 2 + centre] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class MaskedGated(nn.Module):
    """Gated PixelCNN by masks, with the same residual connections."""

    def __init__(self, p: int, num_layers: int, channels: int = 1, parameters: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for k in range(num_layers):
            cin, side = (p, 3) if k else (channels, 7)
            self.layers.append(
                nn.ModuleList([
                    MaskedConv(cin, 2 * p, (side, side), bool(k)),
                    MaskedConv(cin, 2 * p, (1, side), bool(k)),
                    nn.Conv2d(2 * p, 2 * p, 1), nn.Conv2d(p, p, 1),
                ])
            )  # fmt: skip
        self.head = nn.Sequential(nn.Conv2d(p, p, 1), nn.ReLU(), nn.Conv2d(p, parameters, 1))

    def forward(self, x: Tensor) -> Tensor:
        v = h = x
        for k, (vertical, horizontal, link, out) in enumerate(self.layers):  # type: ignore[misc]
            a = vertical(v)
            first, second = (horizontal(h) + link(a)).chunk(2, 1)
            of_h = out(first.tanh() * second.sigmoid())
            first, second = a.chunk(2, 1)
            of_v = first.tanh() * second.sigmoid()
            v, h = (v + of_v, h + of_h) if k else (of_v, of_h)
        logits: Tensor = self.head(h)
        return logits


def training(p: int, x: Tensor, rounds: int) -> None:
    torch.manual_seed(0)
    masked, ours = MaskedGated(p, 7), GatedPixelCNN(x.shape[1:], Bernoulli(), channels=p)

    def by_masks() -> Tensor:
        logits = masked(x)
        return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)

    def in_half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return -ours().log_prob(x).mean()

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(module.parameters(), fused=True)

        def run() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return run

    sides = {
        "mask × weight, float32": step(masked, by_masks),
        "FlexGen, float32": step(ours, lambda: -ours().log_prob(x).mean()),
        "FlexGen, bfloat16": step(ours, in_half),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(3 * rounds):
        for name, run in sides.items():
            times[name].append(seconds(run))
    for name, own in times.items():
        base = times["mask × weight, float32"]
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        print(f"| {p} | {name} | {1e3 * statistics.median(own):.0f} ms | {ratio:.2f} |", flush=True)


def multiscale(batches: list[int], rounds: int) -> None:
    torch.manual_seed(0)
    ours = doubling_digits()
    print("| drawing, 28 × 28 | cached, a pixel at once | multiscale | ratio |\n|---|---|---|---|")
    for p, dilations in ((16, [1, 2]), (20, [1, 2]), (32, [1])):
        pixelwise = GatedPixelCNN((1, 28, 28), Bernoulli(), channels=p, dilations=dilations)
        for n in batches:
            times = in_turn(
                [lambda: pixelwise().sample((n,)), lambda: ours().sample((n,))],  # noqa: B023
                5 * rounds,
            )
            print(row_of(f"7 layers of {p}, batch {n}", times))
    x = (torch.rand(50, 1, 28, 28) < 0.2).float()
    pixelwise = GatedPixelCNN((1, 28, 28), Bernoulli(), channels=16, dilations=[1, 2])

    def step(network: PixelDensity) -> Callable[[], None]:
        optimizer = torch.optim.Adam(network.parameters(), fused=True)

        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = -network().log_prob(x).mean()
            loss.backward()
            optimizer.step()

        return run

    print(
        row_of(
            "training step, 7 layers of 16, batch 50",
            in_turn([step(pixelwise), step(ours)], 5 * rounds),
        )
    )


def doubling_digits() -> MultiscalePixelCNN:
    """That of `experiment=pixels/mnist_static_multiscale`."""
    return MultiscalePixelCNN(
        (1, 28, 28), Bernoulli(), num_blocks=2, position_bias=True, dense_features=128,
        dense_groups=[3, 1],
    )  # fmt: skip


@torch.no_grad()
def an_image(rounds: int) -> None:
    torch.manual_seed(0)
    decoder = MLPGenerator(20, (1, 28, 28), None, [500, 500])
    cached = GatedPixelCNN((1, 28, 28), Bernoulli(), channels=16, dilations=[1, 2])
    doubled = doubling_digits()
    print("| 28 × 28, CPU milliseconds an image | batch 1 | batch 64 |\n|---|---|---|")
    found = []
    for n in (1, 64):
        x = (torch.rand(n, 1, 28, 28) < 0.2).float()
        times = in_turn(
            [
                lambda: decoder(torch.randn(n, 20)).sigmoid().bernoulli(),  # noqa: B023
                lambda: cached.parameters_of(x),  # noqa: B023
                lambda: cached().sample((n,)),  # noqa: B023
                lambda: doubled().sample((n,)),  # noqa: B023
            ],
            5 * rounds,
        )
        found.append([1e3 * statistics.median(side) / n for side in zip(*times, strict=True)])
        found[-1][1] *= 28 * 28
    names = ("VAE, a decoder's pass", "a pass a pixel", "a pixel at once, cached", "multiscale")
    for name, one, many in zip(names, *found, strict=True):
        print(f"| {name} | {one:,.2f} | {many:,.3f} |", flush=True)


def in_turn(sides: list[Callable[[], object]], rounds: int) -> list[tuple[float, ...]]:
    """CPU seconds of both sides in each round."""
    for run in sides:
        run()
    return [tuple(seconds(run) for run in sides) for _ in range(rounds)]


def row_of(name: str, times: list[tuple[float, ...]]) -> str:
    first, second = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return f"| {name} | {1e3 * first:.1f} ms | {1e3 * second:.1f} ms | {ratio:.1f}× |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--only", choices=["drawing", "training", "multiscale", "image"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    small = [n for n in args.batches if n <= 64]
    parts: dict[str, Callable[[], None]] = {
        "drawing": lambda: all_drawing(args.batches, small, args.rounds),
        "training": lambda: all_training(args.rounds),
        "multiscale": lambda: multiscale(small, args.rounds),
        "image": lambda: an_image(args.rounds),
    }
    for name, part in parts.items():
        if args.only in (None, name):
            part()
            print()


def all_drawing(batches: list[int], small: list[int], rounds: int) -> None:
    torch.manual_seed(0)
    print(
        "| drawing | a pass a pixel, by masks | by our network | cached | ratio to the first "
        "| to the second | bound of it |\n|---|---|---|---|---|---|---|"
    )
    for n in batches:
        drawing(GatedPixelCNN((1, 28, 28), Bernoulli()), n, rounds)
    colour = GatedPixelCNN((3, 32, 32), Categorical(), channels=48, num_layers=5)
    for n in small:
        drawing(colour, n, rounds)


def all_training(rounds: int) -> None:
    print("| channels | training step, batch 50 | CPU time | ratio |\n|---|---|---|---|")
    x = (torch.rand(50, 1, 28, 28) < 0.2).float()
    for p in (16, 32):
        training(p, x, rounds)


if __name__ == "__main__":
    main()
