"""Labels, mask and losses of `flexgen reverse generator=…`, as the library takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.data.array_files import open_array
from flexgen.data.sources import open_image, printable
from flexgen.metrics import load_classifier
from flexgen.reversal.loading import load_generator


def read_labels(name: str | None) -> Tensor | None:
    """Labels `(n,)` or features `(n, c)` of all data, in a file."""
    if name is None:
        return None
    rows = open_array(Path(name), numbers=True)
    labels = rows.read(torch.arange(rows.shape[0]))
    return labels.float() if labels.is_floating_point() else labels.long()


def read_mask(name: str | None, shape: tuple[int, ...]) -> Tensor | None:
    """What is known of each sample, true there, `(*shape)`: an image, white there, or an array."""
    if name is None:
        return None
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no mask {name}; give an image, or an array in .npy")
    if path.suffix == ".npy":
        rows = open_array(path, numbers=True)
        known = rows.read(torch.arange(rows.shape[0])) > 0
    else:
        with open_image(path) as image:
            grey = np.array(image.convert("I" if image.mode.startswith("I") else "L"))
        known = torch.from_numpy(grey > grey.max() / 2)
    try:
        known = known.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"the mask {printable(name)} must be of the generator's images, {shape[-2:]} or "
            f"{shape}, got {tuple(known.shape)}"
        ) from error
    if not known.any():
        raise ValueError(f"the mask {printable(name)} leaves nothing known; white is known")
    return known


def with_features(loss: Any, asked: dict[str, Any], device: torch.device) -> Any:
    """A loss as asked for, with the networks of features in the place of their names."""
    if isinstance(loss, list):
        return [with_features(term, asked, device) for term in loss]
    term = {"name": loss} if isinstance(loss, str) else loss
    if not isinstance(term, dict) or term.get("name") != "perceptual":
        return loss
    return {**term, "features": _features(term.get("features"), asked, device)}


def _features(
    source: str | None, asked: dict[str, Any], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The network that is named; of a FlexGen run, if none is, the classifier of its data."""
    if source is None:
        if not (Path(asked["generator"]) / "config.yaml").is_file():
            raise ValueError(
                "loss 'perceptual' needs a network of features: a classifier's .safetensors of "
                "FlexGen's, or with trust=true a program; reverse.loss=[{name: perceptual, "
                "features: FILE}]; a FlexGen run's data have their own"
            )
        from flexgen.callbacks.quality import classifier_of
        from flexgen.runs.run import open_run

        data = open_run(Path(asked["generator"]), asked["trust"]).data
        if not data.num_classes:
            raise ValueError(f"{data.name} has no classes to learn features from; give features")
        cache = Path(asked["paths"]["cache_dir"]) / "classifiers"
        return classifier_of(data, "validation", cache).to(device).features
    if str(source).endswith(".safetensors"):
        return load_classifier(source).to(device).features
    return load_generator(source, trust=asked["trust"], device=device).generator
