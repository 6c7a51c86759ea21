"""Generators that FlexGen did not train, each reversed by one command, beside the papers' loop.

    OMP_NUM_THREADS=1 python experiments/inverting/foreign.py --out runs/foreign

Trains what is not there yet (`foreign_generators.py`), writes MNIST test images, runs each command
as a user types it, in the folder of the generators, and prints the table of `foreign.md`. The
papers' loop is 400 steps of RMSprop at 0.05 from N(0, 1e-4²), in eval mode with frozen parameters,
on the generator as it was loaded; both sides run in turn, medians over `--rounds`, seconds of the
clock without loading and without training. The command's include its bank of 2,048 samples.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import foreign_generators as made
import numpy as np
import torch
from torch import Tensor

from flexgen.reversal import load_generator
from flexgen.reversal.losses import half_squared_error

SCRIPT, LABELS = "generator=dcgan.pt latent_dim=20", "labels=labels.npy"
HALF = "generator=dcgan_half.pt latent_dim=20"
PICKLE = "generator=style.pt latent_dim=32"
ROWS = {
    "DCGAN, TorchScript": (f"{SCRIPT} path=x28.npy", "dcgan.pt"),
    "DCGAN, torch.export": ("generator=dcgan.pt2 path=x28.npy", "dcgan.pt2"),
    "DCGAN, half precision": (f"{HALF} path=x28.npy", "dcgan_half.pt"),
    "conditional DCGAN, TorchScript": (
        f"generator=classes.pt latent_dim=20 path=x28.npy {LABELS}", "classes.pt",
    ),
    "StyleGAN2, pickle with G_ema": ("generator=style.pkl key=G_ema path=x32.npy", None),
    "StyleGAN2, pickled whole": (f"{PICKLE} path=x32.npy", "style.pt"),
    "… in W": (f"{PICKLE} path=x32.npy space=w", None),
    "… in W+": (f"{PICKLE} path=x32.npy space=w+", None),
    "… W+ and noise, MAP": (
        f"{PICKLE} path=x32.npy space=w+ noise=noise_const reverse.constraint=map "
        "reverse.constraint_weight=0.01", None,
    ),
    "… W+, tuned (16 images)": (f"{PICKLE} path=x32.npy space=w+ n=16 tune=350", None),
}  # fmt: skip
"""A command, but for the words that all have, and the file that the papers' loop loads."""
HEAD = ("generator", "s", "loss", "PSNR", "of its own", "loop, s", "loss", "sooner")


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, required=True, help="folder for generators and codes")
    parser.add_argument("--n", type=int, default=64, help="test images (64)")
    parser.add_argument("--steps", type=int, default=1000, help="of the DCGANs' training (1000)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    asked = parser.parse_args()
    made.train(asked.out, asked.steps)
    shutil.copy(made.__file__, asked.out)  # which pickles import
    prepare(asked.out, asked.n)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    for name, (words, file) in ROWS.items():
        if asked.only in name:
            print(row(name, words.split(), file, asked.out, asked.rounds), flush=True)


def prepare(folder: Path, n: int) -> None:
    for side in (28, 32):
        x, label = made.digits(False, side)
        np.save(folder / f"x{side}.npy", x[:n].numpy())
    np.save(folder / "labels.npy", label[:n].numpy())


def row(name: str, words: list[str], file: str | None, folder: Path, rounds: int) -> str:
    seconds, loops = [], []
    for _ in range(rounds):
        told = command(words, folder)
        if isinstance(told, str):
            return f"| {name} | {told} |" + " – |" * (len(HEAD) - 2)
        seconds.append(told["seconds"])
        if file is not None:
            labels = folder / "labels.npy" if "labels=labels.npy" in words else None
            side = 32 if "path=x32.npy" in words else 28
            loops.append(loop(folder / file, folder / f"x{side}.npy", labels))
    took, loss = statistics.median(seconds), f"{told['loss']:.2f}"
    psnr = "–" if np.isnan(told["PSNR"]) else f"{told['PSNR']:.1f}"
    cells = [name, f"{took:.1f}", loss, psnr, f"{told['own PSNR']:.1f}"]
    if loops:
        by_loop = statistics.median(s for s, _ in loops)
        cells += [f"{by_loop:.1f}", f"{loops[0][1]:.2f}", f"{by_loop / took:.1f}"]
    return "| " + " | ".join(cells + ["–"] * (len(HEAD) - len(cells))) + " |"


def command(words: list[str], folder: Path) -> dict[str, float] | str:
    """What one command says of itself, or its refusal."""
    all_have = ["trust=true", "data=array", "device=cpu", "progress=false", "restart=true"]
    all_have.append(f"out=codes/{words[0].removeprefix('generator=')}")
    done = subprocess.run(
        [sys.executable, "-m", "flexgen", "reverse", *words, *all_have],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    numbers = {}
    for key, pattern in {
        "seconds": r"samples in ([\d.]+) s", "loss": r"loss .*: mean ([\d.e+-]+)",
        "PSNR": r"PSNR, dB: mean ([\d.]+)", "own PSNR": r"PSNR, dB: .*own samples ([\d.]+)",
    }.items():  # fmt: skip
        numbers[key] = float(re.search(pattern, done.stdout)[1])
    if tuned := re.search(r"pivotal tuning: .* to ([\d.]+),", done.stdout):
        print(done.stdout[done.stdout.index("pivotal tuning") :].splitlines()[0], file=sys.stderr)
        numbers |= {"loss": float(tuned[1]), "PSNR": float("nan")}  # that was before tuning
    return numbers


def loop(generator: Path, data: Path, labels: Path | None) -> tuple[float, float]:
    """Seconds and mean loss of the papers' loop."""
    sys.path[:0] = [str(generator.parent)]
    loaded = load_generator(generator, trust=True)
    x = torch.from_numpy(np.load(data))
    given = () if labels is None else (torch.from_numpy(np.load(labels)),)
    d = 32 if "style" in generator.name else 20

    def losses(z: Tensor) -> Tensor:
        return half_squared_error(loaded.generator(z.to(loaded.dtype), *given).float(), x)

    draw = torch.Generator().manual_seed(0)
    z = (1e-4 * torch.randn(len(x), d, generator=draw)).requires_grad_()
    optimizer = torch.optim.RMSprop([z], lr=0.05)
    started = time.perf_counter()
    for _ in range(400):
        (z.grad,) = torch.autograd.grad(losses(z).sum(), z)
        optimizer.step()
    return time.perf_counter() - started, float(losses(z.detach()).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
