"""Checks of generator reversal itself (Kilcher, Lucchi & Hofmann 2017) on trained generators.

python experiments/inverting/checks.py runs/inverting_mnist/… --out experiments/inverting/figures

random: the run's network untrained, with torch's initial weights and with those of standard
    deviation 0.1, batch norm calibrated on draws from the prior, half squared error: its mean after
    0, 5, 20 and all steps, the share of steps at which it fell, and random_<data>.png (from top to
    bottom: images, then after 5, 20 and all steps; first seed, deviation 0.1).
own: images G(z) of known codes: relative error of the code, share of codes found to 0.1.
classes (data with ten classes; first seed): ten mixed batches, ten batches of one digit each, and
    ten of one image over and over, with both norms, 32 images in each.
Prints every number and writes checks.csv.
"""

from pathlib import Path
from typing import Any

import torch
from invert import arguments, errors, invert, load_run, mae, merge
from torch import Tensor

from flexgen.drawing import draw_images
from flexgen.reversal import calibrate_batch_norm, reverse
from flexgen.runs.run import Run, open_run
from flexgen.training import isolated_rng

BATCH = 32
PICTURED = 16


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checks", nargs="+", default=["random", "own", "classes"])
    parser.add_argument("--methods", nargs="+", default=["rmsprop"], help="for own images")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in asked.runs:
        run, about = load_run(path)

        def add(check: str, seed: int, values: dict[str, Any], about: Any = about) -> None:
            rows.extend(
                {**about, "check": check, "seed": seed, "value": name, "is": f"{float(v):.5g}"}
                for name, v in values.items()
            )
            print(about, check, seed, {k: f"{float(v):.4g}" for k, v in values.items()}, flush=True)

        for seed in asked.seeds:
            x, _ = run.data.split("test", asked.n, seed)
            for std in (None, 0.1) if "random" in asked.checks else ():
                out = asked.out if std and seed == asked.seeds[0] else None
                values = random_weights(path, std, x, seed, asked.steps, out)
                add(f"random weights, weight_std={std or 'null'}", seed, values)
            for method in asked.methods if "own" in asked.checks else ():
                add(f"own images, {method}", seed, own_images(run, method, seed, asked))
        if run.data.num_classes == 10 and "classes" in asked.checks:
            for norm in ("eval", "batch"):
                for name, value in classes(run, norm, asked.seeds[0], asked.steps).items():
                    add(f"{name}, {norm}", asked.seeds[0], value)
    merge(asked.out / "checks.csv", rows, ("data", "prior", "training", "check", "seed", "value"))


def random_weights(
    path: Path, weight_std: float | None, x: Tensor, seed: int, steps: int, out: Path | None
) -> dict[str, float]:
    """Inversion under the run's network with random weights of a seed."""
    config = open_run(path).config
    config["model"]["generator"]["weight_std"] = weight_std
    run = Run(config | {"seed": seed}).build()
    model = run.model
    with isolated_rng(seed):
        calibrate_batch_norm(model.decoder, model.prior().sample((4096,)), batch_size=512)
    options: dict[str, Any] = {"method": "rmsprop", "tolerance": 0, "batch_size": len(x)}
    options |= {"latent_shape": model.latent_dim, "seed": seed, "history": True}
    found = reverse(model.decoder, x, steps=steps, **options)
    assert found.history is not None
    loss = torch.cat([found.history.mean(1), found.loss.mean()[None]])
    if out is not None:
        early = [reverse(model.decoder, x, steps=s, **options).x_hat for s in (5, 20)]
        rows = torch.cat([images[:PICTURED] for images in (x, *early, found.x_hat)])
        name = f"random_{config['data']['name']}.png"
        draw_images(rows, run.data.range, out / name, columns=PICTURED)
    train, _ = run.data.split("train", 2_000, seed)
    values = {f"loss after {s}": float(loss[s]) for s in (0, 5, 20, steps)}
    values["share of falling steps"] = float((loss.diff() < 0).float().mean())
    values["loss of the mean image"] = float((x - train.mean(0)).square().sum() / len(x) / 2)
    return values | {"mae": mae(found.x_hat, x)}


def own_images(run: Run, method: str, seed: int, asked: Any) -> dict[str, float]:
    """Inversion of the generator's own images, whose codes are known."""
    with isolated_rng(1000 + seed), torch.no_grad():
        z = run.model.prior.current().sample((asked.n,))
    x = run.model.decoder.eval()(z).detach()
    how = {"constraint": "none", "norm": "eval", "method": method}
    found = invert(run, x, seed, **how, lr=0.05, steps=asked.steps)
    far = (found.z - z).norm(dim=1) / z.norm(dim=1)
    return {
        "mae": mae(found.x_hat, x),
        "code error, median": float(far.median()),
        "code error, 90 %": float(far.quantile(0.9)),
        "share of codes found": float((far < 0.1).float().mean()),
    }


def classes(run: Run, norm: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Inversion of mixed batches, of batches of one digit, and of one image over and over."""
    images, label = run.data.split("test", 4_000, seed)
    assert label is not None
    found: dict[str, list[dict[str, Any]]] = {"mixed": [], "one class": [], "one image": []}
    for digit in range(10):
        mine = images[label == digit]
        batches = {
            "mixed": images[digit * BATCH : (digit + 1) * BATCH],
            "one class": mine[:BATCH],
            "one image": mine[:1].expand(BATCH, -1, -1, -1),
        }
        how = {"constraint": "none", "norm": norm, "method": "rmsprop", "lr": 0.05, "steps": steps}
        for name, x in batches.items():
            found[name].append(errors(run, x, invert(run, x, seed, **how)))
    values = {}
    for name, measured in found.items():
        for key in ("mae", "mae_eval"):
            each = torch.tensor([float(batch[key]) for batch in measured])
            values.setdefault(name, {}).update({key: each.mean(), f"{key}, std": each.std()})
    return values


if __name__ == "__main__":
    main()
