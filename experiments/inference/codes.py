"""Codes of held-out digits by an encoder, by search and by draws: their price and what they keep.

    python experiments/inference/codes.py multirun/… --out experiments/inference/figures
    python experiments/inference/codes.py multirun/… --nearest --out experiments/inference/figures

The runs are of `experiment=inference/baseline`, one a seed. Codes of all held-out digits and of all
training digits under each run's generator:

    encoder: E(x), the one that the game has trained
    encoder, 5 steps: `reverse` by L-BFGS from E(x), five evaluations
    learned afterwards: `train_encoder`, from pairs (G(z), z) of the trained generator alone
    reversal: `reverse` as it is, a short L-BFGS from two starts
    descent: the papers' loop, 300 steps of Adam from zero
    posterior draws: one draw each of p(z|x), σ = 0.2, by `posterior_codes` as it is

Of the held-out ones: half the squared error of the reconstruction, CPU milliseconds a code (the
encoder learned afterwards: and its training once), PAG, the share of reconstructions that FlexGen's
classifier takes for the digit's own class, and how often the class is named by the nearest of the
training digits' codes (1-NN, Euclidean) and by a logistic regression on them. `pixels` are the data
themselves in the place of codes. Writes codes.csv, prints means ± standard errors over runs.

With --nearest, for runs of `experiment=inference/mnist`: reconstruction error and 1-NN of the
encoder's codes and of the pixels alone; writes nearest.csv.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from flexgen.callbacks.quality import classifier_of
from flexgen.codes import base_space, encoder_codes, reverse_data
from flexgen.metrics import Classifier, PriorAgreement
from flexgen.report import find_runs
from flexgen.reversal import posterior_codes, train_encoder
from flexgen.runs.run import Run, open_run

SIGMA = 0.2
Find = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--nearest", action="store_true", help="1-NN alone, of encoder and pixels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in [run for p in asked.paths for run in find_runs(p)]:
        run = open_run(path)
        for row in (nearest_alone if asked.nearest else ways)(run):
            rows.append({"seed": run.config["seed"], **row})
            print(", ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / ("nearest.csv" if asked.nearest else "codes.csv")).open(
        "w", newline=""
    ) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for name in dict.fromkeys(row["codes"] for row in rows):
        print(f"{name}: {summary([row for row in rows if row['codes'] == name])}")


def ways(run: Run) -> list[dict[str, Any]]:
    """A row of each way to codes, in one run."""
    model, data = run.latent, run.data
    generator, prior = base_space(model)
    (x, label), (seen, seen_label) = data.split("validation"), data.split("train")
    cache = Path(run.config["callbacks"]["quality"]["cache_dir"])
    classifier = classifier_of(data, "validation", cache)

    def search(**options: Any) -> Find:
        return lambda x: reverse_data(generator, prior, x, data.range, **options).z

    def encoder(x: Tensor) -> Tensor:
        return encoder_codes(model, x, None, seed=0)

    def draws(x: Tensor) -> Tensor:
        return posterior_codes(generator, x, prior=prior, sigma=SIGMA).z

    started = time.process_time()
    with model.evaluating():
        afterwards = train_encoder(generator, prior.draw)
    training = time.process_time() - started
    found: dict[str, tuple[Find, float]] = {
        "encoder": (encoder, 0.0),
        "encoder, 5 steps": (
            lambda x: search(method="lbfgs", init=encoder(x), steps=5)(x), 0.0
        ),
        "learned afterwards": (lambda x: afterwards(x).detach(), training),
        "reversal": (search(), 0.0),
        "descent": (search(method="adam", steps=300), 0.0),
        "posterior draws": (draws, 0.0),
    }  # fmt: skip
    rows = []
    for name, (find, once) in found.items():
        with model.evaluating():
            find(x[:2])
            before = time.process_time()
            z = find(x)
            took = time.process_time() - before
            of_seen = find(seen)
        values = scores(model, z, x, label, classifier) | {"ms": 1e3 * took / len(x), "once": once}
        rows.append({"codes": name, **plain(values | classes(z, label, of_seen, seen_label))})
    pixels = classes(x.flatten(1), label, seen.flatten(1), seen_label)
    unknown = dict.fromkeys(("error", "pag", "kept", "ms", "once"), float("nan"))
    return [*rows, {"codes": "pixels", **plain(unknown | pixels)}]


def nearest_alone(run: Run) -> list[dict[str, Any]]:
    """A row of the encoder and one of the pixels, in one run."""
    (x, label), (seen, seen_label) = run.data.split("validation"), run.data.split("train")
    z, of_seen = (encoder_codes(run.latent, data, None, seed=0) for data in (x, seen))
    error = float(0.5 * (x - run.latent.decode(z)).double().square().flatten(1).sum(1).mean())
    by_code = nearest(z, label, of_seen, seen_label)
    by_pixel = nearest(x.flatten(1), label, seen.flatten(1), seen_label)
    return [
        {"codes": "encoder", **plain({"error": error, "nearest": by_code})},
        {"codes": "pixels", **plain({"error": float("nan"), "nearest": by_pixel})},
    ]


def scores(
    model: Any, z: Tensor, x: Tensor, label: Tensor, classifier: Classifier
) -> dict[str, float]:
    """How codes reconstruct, whether they follow N(0, I), and whether the class is kept."""
    x_hat = model.decode(z)
    agreement = PriorAgreement()
    agreement.update(z)
    error = 0.5 * (x - x_hat).double().square().flatten(1).sum(1).mean()
    kept = classifier.accuracy(x_hat, label)
    return {"error": float(error), "pag": float(agreement.compute()), "kept": kept}


def classes(z: Tensor, label: Tensor, seen: Tensor, seen_label: Tensor) -> dict[str, float]:
    """How often codes of training digits name the class of a held-out one."""
    # Codes that ran off have another scale, which a penalty on weights would feel.
    mean, std = seen.mean(0), seen.std(0).clamp(min=1e-6)
    linear = LogisticRegression(max_iter=2000)
    linear.fit(((seen - mean) / std).numpy(), seen_label.numpy())
    named = torch.from_numpy(linear.predict(((z - mean) / std).numpy()))
    return {
        "nearest": nearest(z, label, seen, seen_label),
        "linear": float((named == label).double().mean()),
    }


def nearest(z: Tensor, label: Tensor, seen: Tensor, seen_label: Tensor) -> float:
    """How often the nearest of the training digits' codes has the class of a held-out one."""
    parts = z.double().split(500)
    named = torch.cat([seen_label[torch.cdist(part, seen.double()).argmin(1)] for part in parts])
    return float((named == label).double().mean())


def plain(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in values.items()}


def summary(rows: list[dict[str, Any]]) -> str:
    cells = []
    for name in list(rows[0])[2:]:
        values = np.array([float(row[name]) for row in rows])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        cells.append(f"{name} {values.mean():.4g} ± {error:.2g}")
    return ", ".join(cells)


if __name__ == "__main__":
    main()
