"""Posterior draws and log p(x) by annealed importance sampling, against the bare passes they take.

    python benchmarks/ais.py [--run runs/demo] [--images 440] [--temperatures 300] [--growth]

T temperatures of L leapfrog steps take T·L passes of the generator, forward and back. One side
makes these passes and nothing else, by the plain generator; the others are `posterior_codes` by
the plain pass and by the faster copy. Each round times one side after the other; quoted are medians
over the rounds. `--growth` prints how the time grows with images, temperatures and the codes' size.
The generators are the demo's MLP and a DCGAN for 28×28 images with N(0, I) over 20 and 64 codes;
without `--run` their weights are random, which a pass does not see. With pyro-ppl installed its HMC
makes as many leapfrog steps on the same density, all images as one vector of one step size.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import flexgen
from flexgen.networks import DCGANGenerator, MLPGenerator
from flexgen.priors import Normal
from flexgen.reversal import calibrate_batch_norm, posterior_codes

SIGMA = 0.2


def bare(generator: nn.Module, x: Tensor, dim: int, passes: int, batch: int) -> None:
    """So many passes forward and back, to the codes."""
    generator.eval().requires_grad_(False)
    for part in x.split(batch):
        z = torch.randn(len(part), dim)
        for _ in range(passes):
            z.requires_grad_()
            x_hat = generator(z)
            (_slope,) = torch.autograd.grad(x_hat, z, (part - x_hat.detach()) / SIGMA**2)
            z = z.detach()


def pyro_hmc(generator: nn.Module, x: Tensor, dim: int, transitions: int, steps: int) -> None:
    """Pyro's HMC on the posterior of all images together."""
    from pyro.infer import HMC, MCMC

    def potential(codes: dict[str, Tensor]) -> Tensor:
        z = codes["z"]
        misfit = (x - generator(z)).square().sum() / SIGMA**2
        return 0.5 * (misfit + z.square().sum())

    kernel = HMC(
        potential_fn=potential, step_size=1e-3, num_steps=steps, adapt_step_size=False,
        adapt_mass_matrix=False,
    )  # fmt: skip
    start = {"z": torch.randn(len(x), dim)}
    MCMC(
        kernel, num_samples=transitions, warmup_steps=0, initial_params=start, disable_progbar=True
    ).run()


def times(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:  # the first warms up
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a demo's run, for its generator and images")
    parser.add_argument("--images", type=int, default=440)
    parser.add_argument("--temperatures", type=int, default=300)
    parser.add_argument("--leapfrog-steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits: nn.Module = MLPGenerator(20, (1, 8, 8), (-1.0, 1.0), [64, 64], norm="batch")
    dcgan: nn.Module = DCGANGenerator(64, (1, 28, 28), (-1.0, 1.0))
    if asked.run:
        digits = flexgen.open_run(asked.run).model.decoder
    else:
        calibrate_batch_norm(digits, torch.randn(512, 20))
    calibrate_batch_norm(dcgan, torch.randn(512, 64))
    steps, temperatures = asked.leapfrog_steps, asked.temperatures

    def drawn(
        generator: nn.Module, x: Tensor, dim: int, many: int, precision: Any
    ) -> Callable[[], Any]:
        return lambda: posterior_codes(
            generator, x, prior=Normal(dim), sigma=SIGMA, num_temperatures=many,
            leapfrog_steps=steps, precision=precision,
        )  # fmt: skip

    print(f"torch {torch.__version__}, 1 thread, medians of {asked.rounds} rounds, seconds")
    print(f"{'':<46}{'bare':>8}{'plain':>8}{'fast':>8}{'plain/bare':>12}{'fast/bare':>11}")
    short = max(1, temperatures // 30)
    for name, generator, dim, n, many in (
        (f"digits, MLP 64-64, {asked.images} images", digits, 20, asked.images, temperatures),
        (f"28×28, DCGAN, 256 images, {short} temperatures", dcgan, 64, 256, short),
    ):
        with torch.no_grad():
            x = generator(torch.randn(n, dim))
            x = x + SIGMA * torch.randn_like(x)
        took = times(
            {
                "bare": lambda g=generator, x=x, d=dim, m=many: bare(g, x, d, m * steps, 512),
                "plain": drawn(generator, x, dim, many, "plain"),
                "fast": drawn(generator, x, dim, many, "auto"),
            },
            asked.rounds,
        )
        cells = "".join(f"{seconds:8.2f}" for seconds in took.values())
        ratios = took["plain"] / took["bare"], took["fast"] / took["bare"]
        print(f"{name:<46}{cells}{ratios[0]:12.2f}{ratios[1]:11.2f}", flush=True)
        if generator is digits and importlib.util.find_spec("pyro"):
            few = max(1, many // 10)
            pyro = times({"pyro": lambda x=x, m=few: pyro_hmc(digits, x, 20, m, steps)}, 1)["pyro"]
            ours = times({"ours": drawn(digits, x, 20, few, "auto")}, 1)["ours"]
            print(f"  Pyro's HMC, {few} transitions: {pyro:.2f} s; posterior_codes {ours:.2f} s, "
                  f"{ours / pyro:.2f}")  # fmt: skip
    if asked.growth:
        for n, many, dim in ((110, 300, 20), (440, 300, 20), (1760, 300, 20), (440, 600, 20),
                             (440, 300, 80)):  # fmt: skip
            g = MLPGenerator(dim, (1, 8, 8), (-1.0, 1.0), [64, 64], norm="batch")
            side = drawn(g, torch.rand(n, 1, 8, 8), dim, many, "auto")
            print(f"n {n}, T {many}, d {dim}: {times({'': side}, 1)['']:.2f} s", flush=True)


if __name__ == "__main__":
    main()
