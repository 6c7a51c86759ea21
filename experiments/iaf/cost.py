"""What a training step of each row of the MNIST table costs on this machine's CPU.

python experiments/iaf/cost.py --out experiments/iaf/figures

Builds each row of conf/experiment/iaf, takes `--steps` steps of its optimizer on one batch of
random binary images (a step costs the same whatever it sees), and prints parameters, milliseconds
of CPU a step, and the days that the row's own number of steps would take. Writes cost.csv.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch

import flexgen
from flexgen.runs.build import instantiate

ROWS = ("diagonal", "iaf_2_320", "iaf_2_1920", "iaf_4_1920", "iaf_8_1920")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=5, help="that are timed, after two (5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = []
    for name in ROWS:
        for seed in asked.seeds:
            rows.append({"row": name, "seed": seed, **measure(name, seed, asked.steps)})
            print(", ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "cost.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def measure(row: str, seed: int, steps: int) -> dict[str, Any]:
    """Parameters, and the mean cost of a step."""
    config = flexgen.compose([f"experiment=iaf/{row}"])
    torch.manual_seed(seed)
    model = instantiate(config["model"])
    x = torch.rand(config["data"]["batch_size"], *config["data"]["shape"]).round()
    (optimizer,), _ = model.configure_optimizers()
    for step in range(-2, steps):
        if step == 0:
            begin = time.process_time()
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    seconds = (time.process_time() - begin) / steps
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "milliseconds": round(1000 * seconds, 1),
        "days": round(config["steps"] * seconds / 86400, 1),
    }


if __name__ == "__main__":
    main()
