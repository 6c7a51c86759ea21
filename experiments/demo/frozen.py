"""Refits with the generator as it is: round after round, and for several σ of the noise.

    F='python experiments/demo/frozen.py multirun/demo/…'
    $F --rounds 4 --csv experiments/demo/rounds.csv
    $F --sigma 0.1 0.15 0.2 0.3 0.4 --csv sigma.csv

Each run of the demo is opened at the checkpoint before its refit. A flow is fitted to draws of
p(z|x) ∝ p(z) N(x; G(z), σ²I) under the prior in use and takes its place; the next round draws under
it. A line a run, σ and round, round 0 under N(0, I): −log p(x) of held-out digits with its gap, PAG
of the draws and its control with ends, EMD and FID of samples; `gain` is −log p(x) less that of
round 0, `step` less that of the round before, paired over digits, with standard errors.
"""

import argparse
import copy
import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import load_file

from flexgen.report import find_runs
from flexgen.runs.run import open_run

METRICS = {
    "nll/ais": "nll", "nll/ais_gap": "gap", "ais/acceptance": "acceptance", "pag/posterior": "pag",
    "own/pag_posterior": "own", "own/pag_posterior_low": "own_low",
    "own/pag_posterior_high": "own_high", "emd/samples": "emd", "fid": "fid",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="runs of the demo, or folders of them")
    parser.add_argument("--sigma", nargs="+", type=float, default=[0.2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--csv", type=Path, required=True, help="file for the values")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in [run for p in asked.paths for run in find_runs(p)]:
        for sigma in asked.sigma:
            rows += refits(path, sigma, asked.rounds)
            with asked.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def refits(path: Path, sigma: float, rounds: int) -> list[dict[str, Any]]:
    """Measures a generator under N(0, I) and after each round."""
    before = min((path / "checkpoints").glob("before_refit_step=*.ckpt"))
    run = open_run(path, checkpoint=before.name)
    model, data, refit = run.model, run.data, run.callbacks["refit"]
    score, quality = run.measurements["posterior_score"], run.measurements["quality"]
    score.sigma = refit.posterior["sigma"] = sigma
    refit.progress = score.options["progress"] = refit.posterior["progress"] = False
    rows: list[dict[str, Any]] = []
    nll: list[np.ndarray] = []
    for number in range(rounds + 1):
        row: dict[str, Any] = {"sigma": sigma, "seed": run.config["seed"], "round": number}
        row["kept"] = 0
        if number:
            fresh = copy.deepcopy(refit.prior).requires_grad_(False)
            stage = model.prior.append(model.bind(fresh))
            refit.seed = run.config["seed"] + number - 1
            row["kept"] = int(refit.refit(model, data, stage)["refit/kept"])
        with TemporaryDirectory() as folder:
            values = score.run(model, data, Path(folder))
            values |= quality.run(model, data, Path(folder))
            nll.append(load_file(next(Path(folder).glob("nll/*")))["nll"].numpy())
        row |= {name: f"{values[metric]:.5g}" for metric, name in METRICS.items()}
        for name, base in (("gain", nll[0]), ("step", nll[max(number - 1, 0)])):
            d = nll[-1] - base
            row[name] = f"{d.mean():.4g}"
            row[f"{name}_error"] = f"{d.std(ddof=1) / len(d) ** 0.5:.3g}"
        rows.append(row)
        print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
