"""`flexgen sample run=…`: samples, paths between images, class arithmetic; pictures and tensors."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.checks import check_integer, check_one_of
from flexgen.cli.app import Command
from flexgen.runs.compose import plain, task_overrides
from flexgen.runs.imports import importing

_LEAST = {"n": 1, "n_fit": 1, "pairs": 1, "frames": 2, "per_class": 1, "sample_seed": 0}
_LONGEST_NAME = 200  # bytes; file systems end at 255, and a name is written with more around it


def command(argv: list[str]) -> Command:
    return Command("sample", argv, _sample, on_run=True)


def _sample(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    for name, least in _LEAST.items():
        check_integer(name, asked[name], least)
    check_one_of("to", asked["to"], (None, "png", "npz", "safetensors"))
    kinds = [name for name in ("prior", "interpolate", "arithmetic") if asked.get(name)]
    if asked["to"] and set(kinds) - {"prior"}:
        raise ValueError(f"`to` is for samples, got to={asked['to']} with {kinds[0]}; leave it out")
    if asked["classes"] is not None and set(kinds) - {"prior"}:
        raise ValueError(f"`classes` is for samples, got it with {kinds[0]}; leave it out")
    if isinstance(asked["classes"], dict) and any(w.startswith("n=") for w in task_overrides()):
        raise ValueError("`classes` says how many samples there are of each class; leave `n` out")
    if len(kinds) > 1:
        raise ValueError(
            f"give one of prior=, interpolate= and arithmetic=, got {' and '.join(kinds)}; the "
            "last two start from codes of images, not from a prior"
        )
    config = plain(cfg)
    with importing():
        from flexgen.analysis.latent_space import PATHS, LatentSpace
        from flexgen.runs.run import Run

    if asked["interpolate"] not in (None, *PATHS):
        raise ValueError(
            f"`interpolate` must be {' or '.join(PATHS)}, got {asked['interpolate']!r}"
        )
    run, seed = Run(config, asked["checkpoint"]), asked["sample_seed"]
    stem = str(run.folder / "samples" / f"{run.checkpoint.stem}_seed={seed}")
    if asked["interpolate"] or asked["arithmetic"]:
        if asked["codes"] != "reversal":
            stem += f"_codes={asked['codes']}"
        space = LatentSpace(run, run.reversal_options, seed, asked["codes"])
        (_interpolate if asked["interpolate"] else _arithmetic)(space, asked, stem)
    else:
        _draw(run, asked, stem)


def _draw(run: Any, asked: dict[str, Any], stem: str) -> None:
    from flexgen.analysis.priors import codes_of, prior_for
    from flexgen.drawing import draw_samples
    from flexgen.runs.sample_classes import asked_labels, told_classes
    from flexgen.training import isolated_rng

    labels = asked_labels(run, asked["classes"], asked["n"])
    n = asked["n"] if labels is None else len(labels)
    stem += f"_n={n}"
    # The words themselves: a prior's options are part of which prior it is.
    typed = [word.lstrip("+~").replace("/", "-") for word in task_overrides()]
    if words := "_".join(w for w in typed if w.startswith(("prior", "n_fit=", "classes"))):
        if len(words.encode()) > _LONGEST_NAME:
            words = f"words={sha256(words.encode()).hexdigest()[:16]}"
        stem = f"{stem}_{words}"
    if asked.get("prior"):
        prior = prior_for(run, asked["prior"], lambda: codes_of(run, n=asked["n_fit"]))
        with isolated_rng(asked["sample_seed"]), run.latent.evaluating():
            x = run.latent.decode(prior.draw(n, labels), labels)
    else:
        x = run.sample(n, asked["sample_seed"], labels)
    if asked["to"] is not None:
        from flexgen.runs.sample_files import write_samples

        print(f"samples: {write_samples(run.data, x, labels, asked['to'], asked['out'] or stem)}")
        if told := told_classes(run, x, labels):
            print(told)
        return
    _save({"x": x}, stem)
    _picture(stem, lambda path: draw_samples(x, run.data.range, path))


def _interpolate(space: Any, asked: dict[str, Any], stem: str) -> None:
    import torch

    from flexgen.drawing import draw_images, draw_samples

    found = space.interpolate(asked["interpolate"], pairs=asked["pairs"], frames=asked["frames"])
    stem += f"_{asked['interpolate']}_pairs={asked['pairs']}_frames={asked['frames']}"
    _save(found, stem)
    x, real, columns = found["x"].cpu(), found["real"], asked["frames"] + 2

    def draw(path: Path) -> None:
        if real[0, 0].ndim == 3:
            rows = torch.cat([real[:, :1], x, real[:, 1:]], 1).flatten(0, 1)
            draw_images(rows, space.data.range, path, columns=columns)
        else:
            draw_samples(x.flatten(0, 1), None, path, real=real.flatten(0, 1))

    _picture(stem, draw)


def _arithmetic(space: Any, asked: dict[str, Any], stem: str) -> None:
    import torch

    from flexgen.drawing import draw_images

    found = space.class_arithmetic(asked["per_class"])
    stem += f"_classes_per_class={asked['per_class']}"
    _save(found, stem)
    found = {name: value.cpu() for name, value in found.items()}
    k, data_range = len(found["classes"]), space.data.range
    means = torch.cat([found["real_mean"], found["x_mean"]])
    _picture(f"{stem}_means", lambda path: draw_images(means, data_range, path, columns=k))
    rows = torch.cat([found["real"][:, None], found["x"][:, None], found["x_moved"]], 1)
    x = rows.flatten(0, 1)
    _picture(f"{stem}_moved", lambda path: draw_images(x, data_range, path, columns=k + 2))


def _save(tensors: dict[str, Any], stem: str) -> None:
    from flexgen.files import write_tensors

    path = Path(f"{stem}.safetensors")
    write_tensors(path, tensors)
    print(f"tensors: {path}")


def _picture(stem: str, draw: Callable[[Path], None]) -> None:
    path = Path(f"{stem}.png")
    draw(path)
    print(f"picture: {path}")
