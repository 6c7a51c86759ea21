"""What a draw costs under priors that change what a trained generator makes.

    python benchmarks/generation_priors.py RUN [--priors masked dot ...] [--draws 1000] [--rounds 3]

RUN is a GAN's run, such as the demo's. Each prior with its settings of `conf/prior` draws from the
prior that training started with. Printed: CPU milliseconds for 1,000 codes, one thread, the median
over rounds in turn.
"""

import argparse
import copy
import statistics
import time

import torch

import flexgen
from flexgen.analysis.comparison import base_of
from flexgen.analysis.priors import prior_for
from flexgen.training import isolated_rng

PRIORS = (
    "normal", "truncation", "masked", "weighted", "rejection", "gradient_flow", "dot",
    "metropolis_hastings", "langevin", "polarity",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run = flexgen.open_run(asked.run)
    dim = f"latent_dim={run.latent.latent_dim}"
    priors = {}
    for name in asked.priors:
        config = flexgen.compose([f"prior={name}", dim])["model"]["prior"]
        base = copy.deepcopy(base_of(run.latent))
        # None of them learns: codes are not asked for.
        priors[name] = prior_for(run, config, codes=None, base=base)  # type: ignore[arg-type]
    taken: dict[str, list[float]] = {name: [] for name in priors}
    for _ in range(asked.rounds):
        for name, prior in priors.items():
            with isolated_rng(0), run.latent.evaluating():
                started = time.process_time()
                prior.draw(asked.draws)
                taken[name].append(1e6 * (time.process_time() - started) / asked.draws)
    for name, times in taken.items():
        print(f"{name:22}{statistics.median(times):10.1f}")


if __name__ == "__main__":
    main()
