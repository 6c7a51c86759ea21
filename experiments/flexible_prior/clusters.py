"""Class clusters of codes, and draws of the prior far from the codes, in figures (2 and 3).

    python experiments/flexible_prior/clusters.py multirun/flexible_prior_codes/… --out .

The runs are of `experiment=flexible_prior/codes`, one a seed. Codes of held-out digits under the
trained generator and under the one that the seed started with (batch norm calibrated), found by
the papers' descent, by L-BFGS and as draws of their posterior. Ratios of "between-cluster distances
to within-cluster distances", which the paper does not define:

    scatter: trace(S_B) / trace(S_W), `ClusterRatio`
    plane: the same in a t-SNE plane
    centres: mean distance of two classes' centres over that of a code to its class's centre
    pairs: mean distance of two codes of different classes over that of two of one class

Writes clusters.csv, and disagreement.csv: of 10,000 draws of the prior the 100 farthest from the
codes (by mean squared distance, as the paper has it), 100 codes of the same norms in the directions
of other draws, and 100 plain draws. Of their samples: the largest class probability by FlexGen's
own classifier, and the distance to the nearest of the training digits.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from sklearn.manifold import TSNE
from torch import Tensor

from flexgen.callbacks.quality import classifier_of
from flexgen.codes import base_space, drawn_codes, reverse_data, supported_sigma
from flexgen.metrics import ClusterRatio
from flexgen.report import find_runs
from flexgen.reversal import calibrate_batch_norm
from flexgen.runs.run import Run, open_run
from flexgen.training import isolated_rng

DESCENT: dict[str, Any] = {"method": "adam", "lr": 0.05, "steps": 300, "init_scale": 1e-4}
DRAWS, KEPT = 10_000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--n", type=int, default=512, help="held-out digits (512)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files")
    asked = parser.parse_args()
    clusters: list[dict[str, Any]] = []
    disagreement: list[dict[str, Any]] = []
    for path in [run for p in asked.paths for run in find_runs(p)]:
        trained = open_run(path)
        untrained = Run(trained.config).build()
        with isolated_rng(0):
            draws = untrained.model.prior().sample((4096,))
            calibrate_batch_norm(untrained.model.decoder, draws, batch_size=512)
        for name, run in (("untrained", untrained), ("trained", trained)):
            codes, label = codes_of(run, asked.n)
            for how, z in codes.items():
                row = {"generator": name, "codes": how, "seed": run.config["seed"]}
                clusters.append(row | {k: f"{v:.4g}" for k, v in ratios(z, label).items()})
                print(clusters[-1], flush=True)
        for how, z in codes.items():
            for row in far_draws(trained, z):
                disagreement.append({"codes": how, "seed": trained.config["seed"]} | row)
                print(disagreement[-1], flush=True)
    for name, rows in (("clusters", clusters), ("disagreement", disagreement)):
        with (asked.out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def codes_of(run: Run, n: int) -> tuple[dict[str, Tensor], Tensor]:
    """Codes `(n, d)` of held-out digits in three ways, and their classes."""
    model, data = run.model, run.data
    x, label = data.split("validation", n, 0)
    generator, prior = base_space(model)
    with model.evaluating():
        sigma = supported_sigma(model, data, split="validation")
        print(f"sigma {sigma:.3f}", flush=True)
        codes = {
            "descent": reverse_data(generator, prior, x, data.range, **DESCENT).z,
            "L-BFGS": reverse_data(generator, prior, x, data.range, method="lbfgs").z,
            "posterior": drawn_codes(model, x, sigma=sigma).z,
        }
    return codes, label


def ratios(z: Tensor, label: Tensor) -> dict[str, float]:
    """The four ratios of codes `(n, d)`."""
    z = z.double()
    plane = torch.from_numpy(TSNE(random_state=0).fit_transform(z.numpy())).double()
    centres = torch.stack([z[label == c].mean(0) for c in label.unique()])
    distance = torch.cdist(z, z)
    same = label[:, None] == label
    apart = ~torch.eye(len(z), dtype=torch.bool)
    within = (z - centres[label.unique(return_inverse=True)[1]]).norm(dim=1).mean()
    return {
        "scatter": scatter(z, label),
        "centres": float(torch.pdist(centres).mean() / within),
        "pairs": float(distance[~same].mean() / distance[same & apart].mean()),
        "plane": scatter(plane, label),
    }


def scatter(z: Tensor, label: Tensor) -> float:
    ratio = ClusterRatio(int(label.max()) + 1)
    ratio.update(z, label)
    return float(ratio.compute())


def far_draws(run: Run, z: Tensor) -> list[dict[str, Any]]:
    """How samples of draws far from codes score, beside others of the same norms."""
    data = run.data
    with isolated_rng(run.config["seed"]):
        drawn = run.model.prior.draw(DRAWS)
        others = run.model.prior.draw(KEPT)
    far = drawn[torch.cdist(drawn, z).square().mean(1).topk(KEPT).indices]
    chosen = {
        "far": far,
        "of equal norm": others / others.norm(dim=1, keepdim=True) * far.norm(dim=1, keepdim=True),
        "plain": drawn[:KEPT],
    }
    train, _ = data.split("train")
    judge = classifier_of(
        data, "validation", Path(run.config["paths"]["cache_dir"]) / "classifiers"
    )
    rows = []
    for name, codes in chosen.items():
        x = run.decode(codes)
        nearest = torch.cdist(x.flatten(1), train.flatten(1)).amin(1)
        numbers = {
            "confidence": judge(x).softmax(1).amax(1).mean(),
            "nearest": nearest.mean(),
            "norm": codes.norm(dim=1).mean(),
        }
        rows.append({"draws": name} | {k: f"{float(v):.5g}" for k, v in numbers.items()})
    return rows


if __name__ == "__main__":
    main()
