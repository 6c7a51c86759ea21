"""Reverses held-out images under a generator with random weights (figures 6 and 7).

    python experiments/flexible_prior/random_weights.py \
        experiment=flexible_prior/random_weights network=mlp,dcgan_small seed=0,1,2

Takes the overrides of `flexgen train`, of which choices make a grid, and trains nothing: the
networks, the images and the reversal's options are the configuration's. Batch norm is calibrated
on draws from the prior first. Logged: the mean loss before any step, after 5, 20 and all, and for
comparison that of the mean training image. Each run directory gets `loss.csv` (mean loss at every
step) and `reconstructions.png` (a column of images, then reconstructions after 5, 20 and all).
"""

import csv
import sys

import torch
from untrained import untrained_runs

from flexgen.codes import reverse_data
from flexgen.drawing import draw_images

PICTURED = 8


def main(words: list[str]) -> None:
    for run, values in untrained_runs(words, "random_weights"):
        model, data, score = run.model, run.data, run.measurements["reversal"]
        generator = model.decoder.eval()
        options = {"seed": score.seed, **score.options}
        x, _ = data.split(score.split, score.n, score.seed)
        found = reverse_data(generator, model.prior, x, data.range, **options, history=True)
        mean = [*found.history.mean(1).tolist(), float(found.loss.mean())]
        with (run.folder / "loss.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "loss"])
            rows.writerows((step, f"{loss:.3f}") for step, loss in enumerate(mean))

        columns = [few := x[:PICTURED]]
        for steps in (5, 20, options["steps"]):
            after = {**options, "steps": steps}
            columns.append(reverse_data(generator, model.prior, few, data.range, **after).x_hat)
        pictures = torch.stack(columns, 1).flatten(0, 1)
        draw_images(pictures, data.range, run.folder / "reconstructions.png", columns=len(columns))

        values |= {f"reconstruction/after_{s}": mean[s] for s in (0, 5, 20, options["steps"])}
        train, _ = data.split("train", min(10_000, data.size("train")), score.seed)
        blank = (x - train.mean(0)).square().flatten(1).sum(1).mean() / 2
        values["reconstruction/mean_image"] = float(blank)


if __name__ == "__main__":
    main(sys.argv[1:])
