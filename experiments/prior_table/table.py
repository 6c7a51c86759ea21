"""NLL of a VAE by prior: each prior fitted to draws of its posterior, all on the same data.

    python experiments/prior_table/table.py multirun/… [--joint multirun/…] [--out figures]

The folder holds runs of a VAE under N(0, I), one a seed. Each prior of conf/prior, with the words
after its name in the same argument, is fitted to one draw of q(z|x) of each of `--codes` training
data, and log p(x) of `--images` test images estimated with `--samples` draws of q(z|x), the same
for all priors. What was measured is kept in `--fits`, so
that the same command goes on where it stopped. `--joint` names sweeps in which a prior learned with
the VAE: their saved NLL of each image.

Written to `--out`: `table.txt`, `.csv`, `.tex`, `.png`; and `paired.csv`, the difference of each
row's NLL to that under N(0, I), image by image, then the mean over seeds, ± its standard error over
images, and the differences of the seeds.
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
from flexgen.report import find_runs
from flexgen.report.summary import Cell, Row, Table
from flexgen.runs.compose import compose_prior

PRIORS = (
    "normal", "gaussian", "mixture", "mixture num_components=50", "realnvp", "realnvp_deep", "maf",
    "nsf", "nsf_deep", "zuko_nsf", "flow_matching", "lars", "noise_contrastive",
    "noise_contrastive prior@prior.base=mixture", "vamp",
)  # fmt: skip
METRICS = ("nll/samples", "elbo/kl", "posterior/active_units", "less normal", "fit, seconds")
AT_ONCE = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--joint", nargs="*", type=Path, default=[])
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--codes", type=int, default=40_000)
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
        seed = run.config["seed"]
        for name, values in fitted(run, asked).items():
            found.setdefault(name, {})[seed] = values
    for path in (run for sweep in asked.joint for run in find_runs(sweep)):
        run = flexgen.open_run(path)
        own = type(run.model.prior.current).__name__
        found.setdefault(f"{own}, joint", {})[run.config["seed"]] = joint(run, asked.images)
    write(found, asked.out)


def fitted(run: flexgen.Run, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """NLL `(images,)`, mean KL and seconds of each prior, by name."""
    seed = run.config["seed"]
    kept = {
        name: asked.fits / f"{name.replace(' ', '_')}_{seed}.safetensors" for name in asked.priors
    }
    missing = [name for name, path in kept.items() if not path.is_file()]
    priors, seconds = {}, {}
    codes = codes_of(run, "train", asked.codes, progress=False) if missing else None
    for name in missing:
        word, *options = name.split()
        config = compose_prior(run.config, word, options)
        before = time.process_time()
        priors[name] = prior_for(run, config, lambda: codes, seed=seed, progress=False)
        seconds[name] = time.process_time() - before
        print(f"seed {seed}: {name}, {seconds[name]:.1f} s", flush=True)
    x, _ = run.data.split("test", asked.images, 0)
    for name, (nll, kl) in scored(run, priors, x, asked.samples).items():
        kept[name].parent.mkdir(parents=True, exist_ok=True)
        about = torch.tensor([kl, seconds[name]])
        save_file({"nll": nll, "kl_and_seconds": about}, kept[name])
        print(f"seed {seed}: {name} {float(nll.mean()):.3f}", flush=True)
    units = run.metrics["posterior/active_units"][1][-1]
    values = {}
    for name, path in kept.items():
        saved = load_file(path)
        kl, fit = saved["kl_and_seconds"].tolist()
        values[name] = {"nll": saved["nll"], "kl": kl, "seconds": fit, "units": units}
    return values


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


def write(found: dict[str, dict[int, dict[str, Any]]], out: Path) -> None:
    """The table as files and on the screen."""
    base = found["normal"]
    rows, lines = [], []
    for words, of_seeds in found.items():
        name = words.replace("prior@prior.base=", "on ").replace("num_components=", "of ")
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
