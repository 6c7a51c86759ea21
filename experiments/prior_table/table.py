"""NLL of a VAE by prior: each prior fitted to draws of its posterior, all on the same data.

    python experiments/prior_table/table.py multirun/… [--joint multirun/…] [--out figures]

The folder holds runs of a VAE under N(0, I), one a seed. Each prior of conf/prior is fitted to one
draw of q(z|x) of each of `--codes` training data, and log p(x) of `--images` test images estimated
with `--samples` draws of q(z|x), the same for all priors. What was measured is kept in `--fits`, so
that the same command goes on where it stopped. `--joint` names sweeps in which a prior learned with
the VAE: their saved NLL of each image.

Written to `--out`: `table.txt`, `.csv`, `.tex`, `.png`; and `paired.csv`, the difference of each
row's NLL to that under N(0, I), image by image, then the mean over seeds, ± its standard error over
images, and the differences of the seeds. And of each prior on its own, without the decoder,
`codes.csv`: CPU seconds of its fit; the mean log p of one draw of q(z|x) of each of `--held-out`
validation data, and its difference to N(0, I); the energy distance of as many draws to those codes;
and how often a network tells the two apart, half of each to learn from and half to score (0.50: not
at all). `--images 0` makes that table alone, in a fraction of the time.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import flexgen
from flexgen.analysis.priors import codes_of, prior_for
from flexgen.metrics import EnergyDistance
from flexgen.priors import Prior
from flexgen.report import find_runs
from flexgen.report.summary import Cell, Row, Table
from flexgen.runs.compose import compose_prior
from flexgen.training import isolated_rng

PRIORS = (
    "normal", "gaussian", "mixture", "realnvp", "realnvp_deep", "maf", "nsf", "nsf_deep",
    "flow_matching", "lars",
)  # fmt: skip
METRICS = ("nll/samples", "elbo/kl", "posterior/active_units", "less normal", "fit, seconds")
ON_CODES = ("fit, seconds", "log p", "less normal", "energy distance", "told apart")
AT_ONCE = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--joint", nargs="*", type=Path, default=[])
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--codes", type=int, default=40_000)
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--fits", type=Path, default=Path("runs/prior_table_fits"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in find_runs(asked.runs):
        run = flexgen.open_run(path)
        for name, values in fitted(run, asked).items():
            found.setdefault(name, {})[run.config["seed"]] = values
    for path in (run for sweep in asked.joint for run in find_runs(sweep)):
        run = flexgen.open_run(path)
        own = type(run.model.prior.current).__name__
        found.setdefault(f"{own}, joint", {})[run.config["seed"]] = joint(run, asked.images)
    write_on_codes(found, asked.out)
    if asked.images:
        write(found, asked.out)


def fitted(run: flexgen.Run, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each prior has on codes, and NLL `(images,)` and mean KL, by name."""
    seed = run.config["seed"]
    kept = {name: asked.fits / f"{name}_{seed}.safetensors" for name in asked.priors}
    on_codes = {name: path.with_suffix(".codes.safetensors") for name, path in kept.items()}
    no_nll = [name for name, path in kept.items() if asked.images and not path.is_file()]
    missing = [n for n, path in on_codes.items() if n in no_nll or not path.is_file()]
    asked.fits.mkdir(parents=True, exist_ok=True)
    priors = {}
    codes = codes_of(run, "train", asked.codes, progress=False) if missing else None
    held_out = codes_of(run, "validation", asked.held_out, progress=False).z if missing else None
    for name in missing:
        config = compose_prior(run.config, name)
        before = time.process_time()
        prior = priors[name] = prior_for(run, config, lambda: codes, seed=seed, progress=False)
        seconds = time.process_time() - before
        values = torch.tensor([seconds, *scores(prior, held_out)])
        save_file({"values": values}, on_codes[name])
        told = "  ".join(f"{what} {v:.4f}" for what, v in zip(ON_CODES, values, strict=True))
        print(f"seed {seed}: {name}  {told}", flush=True)
    x, _ = run.data.split("test", asked.images, 0)
    for name, (nll, kl) in scored(run, {n: priors[n] for n in no_nll}, x, asked.samples).items():
        save_file({"nll": nll, "kl": torch.tensor([kl])}, kept[name])
        print(f"seed {seed}: {name} {float(nll.mean()):.3f}", flush=True)
    units = run.metrics["posterior/active_units"][1][-1]
    values = {}
    for name in asked.priors:
        of_codes = load_file(on_codes[name])["values"].tolist()
        values[name] = {"on codes": of_codes, "seconds": of_codes[0], "units": units}
        if asked.images:
            saved = load_file(kept[name])
            values[name] |= {"nll": saved["nll"], "kl": float(saved["kl"])}
    return values


@torch.no_grad()
def scores(prior: Prior, held_out: Tensor) -> list[float]:
    """`ON_CODES` but the seconds, of a prior and codes that it did not learn from."""
    log_p = torch.cat([prior().log_prob(part) for part in held_out.split(500)])
    of_normal = torch.distributions.Normal(0.0, 1.0).log_prob(held_out).sum(1)
    with isolated_rng(0):
        drawn = prior.draw(len(held_out))
    energy = EnergyDistance()
    energy.update(held_out, real=True)
    energy.update(drawn, real=False)
    less = (log_p - of_normal).mean()
    return [float(log_p.mean()), float(less), float(energy.compute()), told_apart(held_out, drawn)]


def told_apart(one: Tensor, other: Tensor) -> float:
    """The accuracy of a network of one layer of 100 on halves that it has not seen."""
    from sklearn.neural_network import MLPClassifier

    half = len(one) // 2
    x, y = torch.cat([one, other]), torch.arange(2).repeat_interleave(len(one))
    learn = (torch.arange(len(one)) < half).repeat(2)
    network = MLPClassifier(100, alpha=0.1, early_stopping=True, random_state=0)
    network.fit(x[learn].numpy(), y[learn].numpy())
    return float(network.score(x[~learn].numpy(), y[~learn].numpy()))


@torch.no_grad()
def scored(
    run: flexgen.Run, priors: dict[str, Any], x: Tensor, num_samples: int
) -> dict[str, tuple[Tensor, float]]:
    """−log p(x) `(n,)` and the mean KL under each prior, by the same draws of q(z|x)."""
    model: Any = run.model
    nll: dict[str, list[Tensor]] = {name: [] for name in priors}
    kl = dict.fromkeys(priors, 0.0)
    torch.manual_seed(0)
    with model.evaluating():
        for part in x.split(AT_ONCE) if priors else ():
            z, log_q = model.posterior(part).rsample_and_log_prob((num_samples,))
            log_p_x = model.likelihood(z).log_prob(part)
            for name, prior in priors.items():
                log_p = prior().log_prob(z)
                weights = (log_p_x + log_p - log_q).double()
                nll[name].append(torch.tensor(num_samples).log() - weights.logsumexp(0))
                kl[name] += float((log_q - log_p).double().mean(0).sum()) / len(x)
    return {name: (torch.cat(nll[name]), kl[name]) for name in priors}


def joint(run: flexgen.Run, images: int) -> dict[str, Any]:
    """What a run measured of itself, on the same images."""
    files = sorted((run.folder / "nll").iterdir())
    nll = load_file(files[-1])["nll"][:images]
    last = {name: float(values[-1]) for name, (_, values) in run.metrics.items()}
    return {"nll": nll, "kl": last["elbo/kl"], "units": last["posterior/active_units"]}


def write_on_codes(found: dict[str, dict[int, dict[str, Any]]], out: Path) -> None:
    """Means over seeds, ± sample standard deviations, of what needs no decoder."""
    lines = [["prior", *ON_CODES]]
    for name, of_seeds in found.items():
        if all("on codes" in values for values in of_seeds.values()):
            values = torch.tensor([values["on codes"] for values in of_seeds.values()])
            spread = values.std(0).tolist() if len(values) > 1 else [float("nan")] * len(ON_CODES)
            pairs = zip(values.mean(0).tolist(), spread, strict=True)
            lines.append([name, *(f"{mean:.4f} ± {std:.4f}" for mean, std in pairs)])
    with (out / "codes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    for line in lines:
        print(f"{line[0]:16}" + "".join(f"{cell:>20}" for cell in line[1:]))


def write(found: dict[str, dict[int, dict[str, Any]]], out: Path) -> None:
    """The table as files and on the screen."""
    base = found["normal"]
    rows, lines = [], []
    for name, of_seeds in found.items():
        seeds = sorted(of_seeds)
        apart = [of_seeds[s]["nll"] - base[s]["nll"] for s in seeds if s in base]
        difference = torch.stack(apart).mean(0)
        error = float(difference.std()) / len(difference) ** 0.5
        cells = {
            "nll/samples": [float(of_seeds[s]["nll"].mean()) for s in seeds],
            "elbo/kl": [of_seeds[s]["kl"] for s in seeds],
            "posterior/active_units": [float(of_seeds[s]["units"]) for s in seeds],
            "less normal": [float(d.mean()) for d in apart],
            "fit, seconds": [of_seeds[s]["seconds"] for s in seeds if "seconds" in of_seeds[s]],
        }
        made = {metric: Cell(tuple(values), float("nan")) for metric, values in cells.items()}
        rows.append(Row({"prior": name}, (), tuple(seeds), made))
        by_seed = " ".join(f"{float(d.mean()):+.3f}" for d in apart)
        lines.append([name, f"{float(difference.mean()):+.3f}", f"{error:.3f}", by_seed])
    table = Table(tuple(rows), METRICS, 1, (), ())
    table.save(out)
    with (out / "paired.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["prior", "less normal", "standard error", "of each seed"], *lines]
        )
    print(table.text())
    for name, *rest in lines:
        print(f"{name:22} less normal: {rest[0]} ± {rest[1]}  ({rest[2]})")


if __name__ == "__main__":
    main()
