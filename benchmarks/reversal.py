"""Reversal by `method="lbfgs"` against the papers' loop: how much sooner, and how much better.

    OMP_NUM_THREADS=1 python benchmarks/reversal.py RUN [RUN …]
    OMP_NUM_THREADS=1 python benchmarks/reversal.py RUN --foreign --n 128

Each RUN is a trained run directory, as `flexgen train experiment=inverting/benchmark` writes it.
The papers' loop is RMSprop with step size 0.05 from N(0, 1e-4²), in eval mode with frozen
parameters (which alone makes it 1.25 times faster than a loop that collects their gradients).
Both sides run in turn in one process, `--rounds` times; medians are printed. With `--foreign` both
sides have the run's generator as a module, from a TorchScript file and from a torch.export archive.
"""

import argparse
import ctypes
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flexgen.reversal import reverse, train_encoder
from flexgen.reversal.fast import FastPass
from flexgen.reversal.loading import load_generator
from flexgen.reversal.losses import half_squared_error
from flexgen.runs.run import open_run

PASSES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Clock:
    """Seconds of this process's work, so that others on the machine count less."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.start = self.now()

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __call__(self) -> float:
        return self.now() - self.start


def step(generate: Callable[[Tensor], Tensor], z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    loss = half_squared_error(generate(z), x)
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


@torch.no_grad()
def losses(generator: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    return half_squared_error(generator(z), x)


def papers_loop(generator: nn.Module, x: Tensor, d: int, steps: int) -> tuple[float, Tensor]:
    """Seconds, and the loss of each image at the end."""
    draw = torch.Generator().manual_seed(0)
    z = (1e-4 * torch.randn(len(x), d, generator=draw)).to(x.device)
    optimizer = torch.optim.RMSprop([z], lr=0.05)
    clock = Clock(x.device)
    for _ in range(steps):
        z.grad = step(generator, z, x)[1]
        optimizer.step()
    return clock(), losses(generator, z, x)


def searched(generator: nn.Module, x: Tensor, d: int, init: object) -> tuple[Tensor, Tensor]:
    """The times at which the codes were looked at, and each image's loss at these times."""
    seen: list[tuple[float, Tensor]] = []
    clock = Clock(x.device)
    found = reverse(
        generator, x, latent_shape=d, method="lbfgs", init=init, batch_size=len(x),
        watch=lambda z: seen.append((clock(), z.clone())),
    )  # fmt: skip
    seen.append((clock(), found.z))
    curve = torch.stack([losses(generator, z, x) for _, z in seen])
    return torch.tensor([t for t, _ in seen], dtype=torch.float64), curve


def milestones(times: Tensor, curve: Tensor, at400: Tensor, at2000: Tensor) -> dict[str, float]:
    """Seconds to each of the loop's marks (infinite if not met), and what is left at the end."""

    def first(met: Tensor) -> float:
        return float(times[met.nonzero()[0, 0]]) if met.any() else float("inf")

    own = (curve <= 1.05 * at400).float().mean(1)
    return {
        "mean": first(curve.mean(1) <= at400.mean()),
        "median": first(curve.median(1).values <= at400.median()),
        "own": first(own >= 0.9),
        "mean2000": first(curve.mean(1) <= 1.05 * at2000.mean()),
        "worse": 100 * (1 - float(own[-1])),
        "ratio": float(curve[-1].mean() / at2000.mean()),
        "all": float(times[-1]),
    }


def inner_step(generator: nn.Module, x: Tensor, d: int, repeats: int) -> dict[str, float]:
    """Seconds of one evaluation and gradient of all images by each pass, taken in turn."""
    passes = {"plain": generator}
    passes |= {name: FastPass(generator, dtype).to(x.device) for name, dtype in PASSES.items()}
    z = torch.randn(len(x), d, device=x.device)
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for i in range(repeats + 2):
        for name, generate in passes.items():
            clock = Clock(x.device)
            step(generate, z, x)
            if i >= 2:
                taken[name].append(clock())
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(path: Path, args: argparse.Namespace) -> list[tuple[str, str]]:
    run = open_run(path)
    config = run.config
    config["trainer"]["accelerator"] = args.device
    generator = run.model.decoder.eval().requires_grad_(False).to(args.device)
    run.data.setup("test")
    x = run.data.split("test", min(args.n, run.data.size("test")), 0)[0].to(args.device)
    d = int(run.model.prior().event_shape[0])
    clock = Clock(x.device)
    encoder = train_encoder(generator, lambda n: torch.randn(n, d, device=x.device))
    trained = clock()
    papers_loop(generator, x, d, 10)
    reverse(generator, x, latent_shape=d, steps=3)  # both sides are warm
    at2000 = papers_loop(generator, x, d, 2000)[1]
    steps, both = [], {"encoder": [], "bank": []}
    for _ in range(args.rounds):
        seconds, at400 = papers_loop(generator, x, d, 400)
        steps.append(seconds / 400)
        for name, init in (("encoder", encoder), ("bank", "bank")):
            times, curve = searched(generator, x, d, init)
            both[name].append(milestones(times, curve, at400, at2000))
    loop = statistics.median(steps)
    ours = {
        name: {key: statistics.median(one[key] for one in all_) for key in all_[0]}
        for name, all_ in both.items()
    }
    inner = inner_step(generator, x, d, args.repeats)
    rows = [
        ("generator", f"{config['data']['name']}, {type(generator).__name__}, z {d}, "
                      f"seed {config['seed']}, {run.model.counters.generator_steps} steps"),
        ("images", f"{len(x)} held out"),
        ("loop, a step of all images", f"{1e3 * loop:.1f} ms"),
        ("loop, loss after 400 steps: mean, median", f"{at400.mean():.2f}, {at400.median():.2f}"),
        ("loop, loss after 2,000 steps: mean, median",
         f"{at2000.mean():.2f}, {at2000.median():.2f}"),
    ]  # fmt: skip
    for name, us in ours.items():
        begin = {"encoder": "encoder", "bank": "nothing learned"}[name]
        rows += [
            (f"{begin}: to the loop's 400-step mean", f"{400 * loop / us['mean']:.1f}×"),
            (f"{begin}: half the images at the loop's 400-step median",
             f"{400 * loop / us['median']:.1f}×"),
            (f"{begin}: 90 % of the images at 1.05 of their own 400-step loss",
             f"{400 * loop / us['own']:.1f}×"),
            (f"{begin}: 1.05 of the loop's 2,000-step mean",
             f"{2000 * loop / us['mean2000']:.1f}×"),
            (f"{begin}: images worse than 1.05 of their own at the end", f"{us['worse']:.1f} %"),
            (f"{begin}: final mean loss over the loop's after 2,000 steps", f"{us['ratio']:.3f}"),
            (f"{begin}: all images to the end",
             f"{us['all']:.1f} s ({us['all'] / loop:.0f} steps of the loop)"),
        ]  # fmt: skip
    saved = (ours["bank"]["own"] - ours["encoder"]["own"]) / len(x)
    pays = f"{trained / saved:,.0f} images" if saved > 0 else "never by this mark"
    rows += [
        ("encoder: trained once in", f"{trained:.0f} s"),
        ("encoder: pays (to 90 % at 1.05 of their own) from", pays),
        ("one inner step, float32 / plain", f"{inner['float32'] / inner['plain']:.2f}"),
        ("one inner step, bfloat16 / plain", f"{inner['bfloat16'] / inner['plain']:.2f}"),
    ]
    if args.device == "cuda":
        rows += roofline(generator, x, d, inner, args)
    return rows


def foreign(path: Path, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows of a table with a column a form of the generator; nothing is learned in advance."""
    run = open_run(path)
    module = run.model.decoder.eval().requires_grad_(False)
    run.data.setup("test")
    x = run.data.split("test", min(args.n, run.data.size("test")), 0)[0]
    d = int(run.model.prior().event_shape[0])
    z = torch.randn(4, d)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        torch.jit.trace(module, z).save(f"{folder}/g.pt")
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(
            torch.export.export(module, (z,), dynamic_shapes=shapes), f"{folder}/g.pt2"
        )
        forms = {"module": module} | {
            name: load_generator(f"{folder}/{file}", trust=True).generator
            for name, file in (("TorchScript", "g.pt"), ("torch.export", "g.pt2"))
        }
    for generator in forms.values():
        papers_loop(generator, x, d, 10)
        reverse(generator, x, latent_shape=d, steps=3)  # both sides are warm
    found = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, generator in forms.items():
            seconds, at400 = papers_loop(generator, x, d, 400)
            times, curve = searched(generator, x, d, "bank")
            us = milestones(times, curve, at400, at400)
            ratios = {key: seconds / us[key] for key in ("mean", "median", "own", "all")}
            clock = Clock(x.device)
            z = reverse(generator, x, latent_shape=d, batch_size=len(x)).z
            auto, loss = clock(), losses(generator, z, x)
            found[name].append(
                ratios
                | {key: us[key] for key in ("worse", "ratio")}
                | {"auto": seconds / auto, "auto ratio": float(loss.mean() / at400.mean())}
                | {"auto worse": 100 * float((loss > 1.05 * at400).float().mean())}
            )
    named = {
        "mean": ("to the loop's 400-step mean", "{:.1f}×"),
        "median": ("half the images at the loop's 400-step median", "{:.1f}×"),
        "own": ("90 % of the images at 1.05 of their own 400-step loss", "{:.1f}×"),
        "all": ("all images to the end, against the loop's 400 steps", "{:.1f}×"),
        "ratio": ("final mean loss over the loop's after 400 steps", "{:.3f}"),
        "worse": ("images worse than 1.05 of their own at the end", "{:.1f} %"),
        "auto": ('method="auto": all images to the end', "{:.1f}×"),
        "auto ratio": ('method="auto": final mean loss over the loop\'s', "{:.3f}"),
        "auto worse": ('method="auto": images worse than 1.05 of their own', "{:.1f} %"),
    }
    rows: list[tuple[str, ...]] = [(f"{run.config['name']}, {len(x)} images", *forms)]
    for key, (what, form) in named.items():
        middle = (statistics.median(one[key] for one in all_) for all_ in found.values())
        rows.append((what, *map(form.format, middle)))
    return rows


def roofline(
    generator: nn.Module, x: Tensor, d: int, inner: dict[str, float], args: argparse.Namespace
) -> list[tuple[str, str]]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(generator, torch.randn(len(x), d, device=x.device), x)
    rate = {name: counter.get_total_flops() / inner[name] / 1e12 for name in PASSES}
    peak = {"float32": args.peak_float32, "bfloat16": args.peak_bfloat16}
    return [
        (f"{name}: share of the roofline", f"{rate[name]:.1f} of {peak[name]:g} TFLOP/s")
        for name in PASSES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--foreign", action="store_true", help="forms of files, on the CPU")
    parser.add_argument("--n", type=int, default=256, help="images (a GPU wants 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="both sides in turn, so often")
    parser.add_argument("--repeats", type=int, default=15, help="of one inner step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--peak-float32", type=float, default=67.0, help="TFLOP/s of the GPU (H100)"
    )
    parser.add_argument("--peak-bfloat16", type=float, default=989.0, help="TFLOP/s of the GPU")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if platform.libc_ver()[0] == "glibc":
        # Else glibc returns its pages after every convolution, at a third of the plain pass's cost.
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {args.device}")
    for run in args.runs if args.foreign else ():
        head, *rows = foreign(run, args)
        print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
        print(*(f"| {' | '.join(row)} |" for row in rows), sep="\n", flush=True)
    for run in () if args.foreign else args.runs:
        print(f"\n| {run.name} | |\n|---|---|")
        for name, value in measure(run, args):
            print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
