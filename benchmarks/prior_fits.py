"""Priors fitted to the same codes: how close they come, and what fit, draw and density cost.

    python benchmarks/prior_fits.py RUN [--priors normal realnvp ...] [--codes 40000] [--seeds 0]

RUN is a VAE's run, such as

    flexgen train model=vae data=mnist_static latent_dim=32 network=mlp steps=4000 threads=1

Each prior with its settings of `conf/prior`, or with the words after its name in the same argument
("noise_contrastive prior@prior.base=mixture"), is fitted to one draw of q(z|x) of each of `--codes`
training data. Printed, mean ± sample standard deviation over fits with the seeds:

- fit: CPU seconds;
- log p: of codes of 5,000 other training data, nats, and its mean difference to the first, with the
  standard error over codes, paired;
- energy: the energy distance of 5,000 draws to these codes, 0 on average for the same
  distribution;
- told: how often a classifier (100 hidden units) tells codes from draws, on halves that it did not
  learn from; .5 if it cannot;
- draw, density: CPU milliseconds for 1,000 codes.

CPU seconds of the process, with one thread.
"""

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from hydra.utils import instantiate
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import flexgen
from flexgen.metrics import EnergyDistance
from flexgen.priors import as_prior

PRIORS = (
    "normal", "gaussian", "realnvp", "realnvp_deep", "maf", "nsf", "nsf_deep", "mixture",
    "flow_matching", "lars", "noise_contrastive", "energy",
)  # fmt: skip


def codes_of(run: Any, n: int) -> Tensor:
    """A draw of q(z|x) of each of n training data."""
    x, _ = run.data.split("train", n, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [run.model.posterior(part).rsample_and_log_prob()[0] for part in x.split(1000)]
    return torch.cat(drawn)


def told_apart(a: Tensor, b: Tensor) -> float:
    """How often a classifier tells them, on halves that it has not seen."""
    x, y = torch.cat([a, b]).numpy(), [0] * len(a) + [1] * len(b)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()
    learned, tested = order[::2], order[1::2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = MLPClassifier(100, early_stopping=True, random_state=0, max_iter=100)
        classifier.fit(x[learned], [y[i] for i in learned])
    return float(classifier.score(x[tested], [y[i] for i in tested]))


def measured(prior: Any, train: Tensor, test: Tensor, seed: int) -> tuple[dict[str, float], Tensor]:
    """What is printed of one fit, and log p of each code."""
    started = time.process_time()
    if prior.learns:
        prior.fit(train, seed=seed)
    fitted = time.process_time()
    torch.manual_seed(seed)
    drawn = prior.draw(len(test))
    made = time.process_time()
    log_p = torch.full((len(test),), torch.nan)
    if prior.has_log_prob and prior.normalised:
        with torch.no_grad():
            log_p = torch.cat([prior().log_prob(part) for part in test.split(1000)])
    scored = time.process_time()
    distance = EnergyDistance()
    distance.update(test, real=True)
    distance.update(drawn, real=False)
    thousands = len(test) / 1000
    values = {
        "fit": fitted - started, "log p": float(log_p.mean()), "energy": float(distance.compute()),
        "told": told_apart(test, drawn), "draw": 1000 * (made - fitted) / thousands,
        "density": 1000 * (scored - made) / thousands,
    }  # fmt: skip
    return values, log_p


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--codes", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run = flexgen.open_run(asked.run)
    dim = run.model.latent_dim
    train, test = codes_of(run, asked.codes + 5000).split([asked.codes, 5000])
    reference: list[Tensor] = []
    names = sorted(asked.priors, key=lambda name: name != "realnvp")
    first = f"to {names[0]}"
    print(f"{'prior':18}{'fit s':>12}{'log p':>17}{first:>17}{'energy':>18}"
          f"{'told':>14}{'draw ms':>9}{'density':>9}")  # fmt: skip
    for name in names:
        words = [f"prior={name.split()[0]}", *name.split()[1:], f"latent_dim={dim}", "model=vae"]
        config = flexgen.compose(words)["model"]["prior"]
        fits, log_ps = [], []
        for seed in asked.seeds:
            torch.manual_seed(seed)
            values, log_p = measured(as_prior(instantiate(config)), train, test, seed)
            fits.append(values)
            log_ps.append(log_p)
        reference = reference or log_ps
        apart = torch.stack([a - b for a, b in zip(log_ps, reference, strict=True)]).mean(0)
        error = float(apart.std()) / len(apart) ** 0.5
        cell = {key: [fit[key] for fit in fits] for key in fits[0]}
        spread = {
            key: float(torch.tensor(v).std()) if len(v) > 1 else 0.0 for key, v in cell.items()
        }
        mean = {key: statistics.mean(v) for key, v in cell.items()}
        print(f"{name:18}{mean['fit']:7.1f} ±{spread['fit']:3.1f}"
              f"{mean['log p']:9.3f} ± {spread['log p']:.3f}"
              f"{float(apart.mean()):+9.3f} ± {error:.3f}"
              f"{mean['energy']:10.4f} ± {spread['energy']:.4f}"
              f"{mean['told']:7.3f} ± {spread['told']:.2f}"
              f"{mean['draw']:9.1f}{mean['density']:9.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
