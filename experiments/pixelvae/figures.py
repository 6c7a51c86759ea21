"""Pictures and tables of the study, from finished runs.

F='python experiments/pixelvae/figures.py'; O='--out experiments/pixelvae/figures'
$F levels multirun/… $O   # vary the noise of one level, or of the pixels, alone
$F shares multirun/… $O   # nats of each level, and the pixels', against the receptive field
$F codes runs/… $O        # many samples of one code; paths between two codes
$F classes multirun/… $O  # of experiment=pixels/digits_classes

levels: in each row one sample (left) and others that differ from it in the noise of one level
    alone, that of p(z_l|z_{l+1}), or in the pixels'. How far that moves an image beside another
    draw of everything, and how often a classifier sees the same digit, on 440 pairs.
shares: −ELBO in nats: KL of the levels, and what the pixels cost given the code.
codes: on the left held-out images, beside each draws from p(x|z) of one code of it; on the right
    paths between the codes of two images, the pixels' noise the same along a path.
classes: samples of each class; paths from class to class, the noise the same along a path; how many
    held-out digits argmax_y log p(x|y) names, and how many samples a classifier.

Pictures are of the first run, tables of all.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

from flexgen.callbacks.quality import classifier_of
from flexgen.drawing import draw_figure
from flexgen.priors.interpolation import slerp
from flexgen.report import RunFiles, find_runs
from flexgen.runs.run import Run, open_run
from flexgen.training import isolated_rng

PAIRS = 440
ROWS, COLUMNS = 8, 8
OF_CLASS = 100  # samples of each class that the classifier sees
EVERYTHING = "everything"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = {"levels": levels, "shares": shares, "codes": codes, "classes": classes}
    parser.add_argument("figure", choices=figures)
    parser.add_argument("paths", nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG and CSV")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    figures[asked.figure]([run for path in asked.paths for run in find_runs(path)], asked.out)


class Vary:
    """Samples of a VAE that differ in the noise of one level alone, or in the pixels'.

    A row of a batch is drawn by numbers of its place, so two batches drawn from one seed share the
    pixels' noise row by row.
    """

    def __init__(self, model: Any) -> None:
        self.model, sizes = model, model.prior.levels or (model.latent_dim,)
        levels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) + 1
        self.of_level = {f"level {k}": levels == k for k in range(len(sizes), 0, -1)}
        self.names = (*self.of_level, "pixels")

    @torch.no_grad()
    def draw(self, n: int, name: str, other: int, seed: int = 0) -> Tensor:
        """n images; `other` 0 is the same whatever is varied, each other number another noise."""
        with isolated_rng(seed):
            eps = torch.randn(n, self.model.latent_dim)
        with isolated_rng(seed + 1000 * other):
            again = torch.randn(n, self.model.latent_dim)
        moved = self.of_level.get(name, torch.tensor(name == EVERYTHING))
        pixels = seed + 1 + (1000 * other if name in ("pixels", EVERYTHING) else 0)
        with self.model.evaluating(), isolated_rng(pixels):
            to_code = self.model.prior.base_space().to_code
            images: Tensor = self.model.decode(to_code(torch.where(moved, again, eps)))
            return images


def levels(runs: list[Path], out: Path) -> None:
    """What moves with the noise of one level alone."""
    rows: list[dict[str, Any]] = []
    for run in map(open_run, runs):
        vary, classifier = Vary(run.latent), classifier_of_run(run)
        if not rows:
            panels = {
                f"only the noise of {name}": torch.stack(
                    [vary.draw(ROWS, name, other) for other in range(COLUMNS)], 1
                )
                for name in vary.names
            }
            draw_panels(panels, run.data.range, out / "levels.png", apart=len(panels))
        first = vary.draw(PAIRS, EVERYTHING, 0, seed=1)
        pairs = {name: vary.draw(PAIRS, name, 1, seed=1) for name in (*vary.names, EVERYTHING)}
        distance = {name: float((x - first).square().sum()) for name, x in pairs.items()}
        digit = classifier(first).argmax(1)
        rows += [
            {
                "seed": run.config["seed"], "varied": name,
                "distance": distance[name] / distance[EVERYTHING],
                "same digit": float((classifier(x).argmax(1) == digit).float().mean()),
            }
            for name, x in pairs.items()
        ]  # fmt: skip
    write(rows, out / "levels.csv", by=("varied",))


def shares(runs: list[Path], out: Path) -> None:
    """Where the nats of the bound are."""
    rows = [shares_of(RunFiles.load(run)) for run in runs]
    rows.sort(key=lambda row: [str(value) for value in row.values()])
    by = ("num_layers", "channels", "prior", "kl_warmup", "free_bits", "steps")
    means = write(rows, out / "shares.csv", by=by)

    def draw(figure: Any) -> None:
        axes, left = figure.add_subplot(), [0.0] * len(means)
        names = [
            f"{layers} layers, warm-up {warmup}, free bits {free:g}"
            for layers, _, _, warmup, free, _ in means
        ]
        colours = {"level 2": "#0072B2", "level 1": "#56B4E9", "pixels": "#D9D9D9"}
        for part, colour in colours.items():
            values = [row[part] for row in means.values()]
            axes.barh(names, values, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.plot([row["nll"] for row in means.values()], names, "k|", ms=14, label="NLL")
        axes.invert_yaxis()
        axes.set_xlabel("nats an image")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, markerscale=0.5, fontsize=8)

    draw_figure(draw, out / "shares.png", size=(7.2, 0.8 + 0.32 * len(means)))


def shares_of(run: RunFiles) -> dict[str, Any]:
    """Settings and nats of a run."""
    model = run.config["model"]
    pixels = model["likelihood"]["pixels"]
    last = {name: float(curve.values[-1]) for name, curve in run.curves.items()}
    row = {name: pixels[name] for name in ("num_layers", "channels")}
    row |= {"prior": model["prior"]["_target_"].rpartition(".")[2]}
    row |= {name: model[name] for name in ("kl_warmup", "free_bits")}
    row |= {"steps": run.config["steps"], "seed": run.seed}
    one = {"elbo/kl_level1": last["elbo/kl"], "elbo/kl_level2": 0.0}
    one |= {"posterior/active_units_level1": last["posterior/active_units"]}
    last = one | {"posterior/active_units_level2": 0.0} | last
    kl = last["elbo/kl_level1"] + last["elbo/kl_level2"]
    return row | {
        "level 2": last["elbo/kl_level2"], "level 1": last["elbo/kl_level1"],
        "pixels": last["elbo/reconstruction"], "nll": last["nll/samples"],
        "share of the code": kl / (kl + last["elbo/reconstruction"]),
        "units 2": last["posterior/active_units_level2"],
        "units 1": last["posterior/active_units_level1"],
    }  # fmt: skip


@torch.no_grad()
def codes(runs: list[Path], out: Path) -> None:
    """Many samples of one code, and paths between two."""
    run = open_run(runs[0])
    model, (x, _) = run.latent, run.data.split("validation", 2 * ROWS, 0)
    with model.evaluating(), isolated_rng(0):
        z = model.encode(x)
        draws = [x[:ROWS], *(model.decode(z[:ROWS]) for _ in range(COLUMNS - 1))]
        base = model.prior.base_space()
        assert base.from_code is not None
        eps, stops = base.from_code(z), torch.linspace(0, 1, COLUMNS)
        path = base.to_code(slerp(eps[:ROWS], eps[ROWS:], stops).transpose(0, 1).flatten(0, 1))
        frames = along(model.decode, path.unflatten(0, (COLUMNS, ROWS)))
    panels = {
        "held-out images, and draws given one code of each": torch.stack(draws, 1),
        "between the codes of two images, one noise": torch.stack(frames, 1),
    }
    draw_panels(panels, run.data.range, out / "codes.png", apart=1)


@torch.no_grad()
def classes(runs: list[Path], out: Path) -> None:
    """Samples of each class, paths between classes, and how well a density names classes."""
    rows: list[dict[str, Any]] = []
    for run in map(open_run, runs):
        if not rows:
            draw_classes(run, out)
        model, classifier = run.model, classifier_of_run(run)
        x, y = run.data.split("test", None, 0)
        every = torch.arange(run.data.num_classes)
        log_p = torch.stack([model.log_likelihood(x, c.expand(len(x))) for c in every], 1)
        labels = every.repeat(OF_CLASS)
        with isolated_rng(0):
            named = classifier(model.sample(len(labels), labels)).argmax(1) == labels
        of_each = [float(named[labels == c].float().mean()) for c in every]
        rows.append({
            "seed": run.config["seed"], "n": len(x),
            "nll of p(x)": float(math.log(len(every)) - log_p.logsumexp(1).mean()),
            "by the density": float((log_p.argmax(1) == y).float().mean()),
            "by the classifier": classifier.accuracy(x, y),
            "samples": float(named.float().mean()), "samples of the worst class": min(of_each),
        })  # fmt: skip
    write(rows, out / "classes.csv", by=("n",))


def draw_classes(run: Run, out: Path) -> None:
    model, every = run.model, torch.eye(run.data.num_classes)
    stops = torch.linspace(0, 1, COLUMNS)[:, None, None]
    with model.evaluating():
        with isolated_rng(0):
            drawn = [model.sample(len(every), every.argmax(1)) for _ in range(COLUMNS)]
        paths = torch.lerp(every, every.roll(1, 1), stops)
        frames = along(lambda shares: model.trained(shares).sample(), paths)
    panels = {
        "samples of each class, 0 to 9": torch.stack(drawn, 1),
        "from each class to the next, one noise": torch.stack(frames, 1),
    }
    draw_panels(panels, run.data.range, out / "classes.png", apart=0)


def along(draw: Callable[[Tensor], Tensor], frames: Tensor) -> list[Tensor]:
    """What each frame `(frames, rows, …)` gives, by the same numbers row by row."""
    images = []
    for frame in frames:
        with isolated_rng(1):
            images.append(draw(frame))
    return images


def classifier_of_run(run: Run) -> Any:
    """FlexGen's classifier of the run's data."""
    cache = Path(run.config["paths"]["cache_dir"]) / "classifiers"
    return classifier_of(run.data, "validation", str(cache))


def draw_panels(
    panels: dict[str, Tensor], value_range: tuple[float, float], path: Path, apart: int
) -> None:
    """Grids of images `(rows, columns, 1, height, width)` side by side.

    In so many of them, from the left, a line sets the first column apart.
    """
    low, high = value_range

    def draw(figure: Any) -> None:
        places = figure.subplots(1, len(panels))
        for k, (axes, (title, images)) in enumerate(zip(places, panels.items(), strict=True)):
            x = (images.flatten(0, 1) - low) / (high - low)
            grid = make_grid(x, nrow=images.shape[1], padding=1, pad_value=1.0)[0]
            axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
            if k < apart:
                axes.axvline(images.shape[-1] + 1, color="#D55E00", lw=1.5)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()

    rows, columns = next(iter(panels.values())).shape[:2]
    draw_figure(draw, path, size=(3.6 * len(panels), 0.3 + 3.6 * rows / columns))


def write(rows: list[dict[str, Any]], path: Path, by: tuple[str, ...]) -> dict[Any, Any]:
    """Rows as CSV; means and standard deviations over seeds, printed; the means, by settings."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(cells)
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    means: dict[Any, Any] = {}
    for settings, alike in groups.items():
        print(", ".join(f"{n} {s}" for n, s in zip(by, settings, strict=True)), f"({len(alike)})")
        for name in [name for name in rows[0] if name not in (*by, "seed")]:
            values = torch.tensor([float(row[name]) for row in alike])
            means.setdefault(settings, {})[name] = float(values.mean())
            print(f"  {name}: {values.mean():.3f} ± {values.std() if len(alike) > 1 else 0:.3f}")
    return means


if __name__ == "__main__":
    main()
