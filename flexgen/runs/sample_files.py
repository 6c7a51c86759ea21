"""Samples as files that programs of others read, to score them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flexgen.files import write_atomically, write_tensors


def write_samples(data: Any, x: Tensor, labels: Tensor | None, to: str, out: str | Path) -> Path:
    """Write samples as images, or as one file.

    Args:
        data: the data module, which knows what the samples are of.
        x: samples `(n, *shape)` in the range of the data.
        labels: of each, `(n,)`, where the model is conditional.
        to: "png": a file each, in a folder for each class; "npz": `arr_0`, images as uint8
            `(n, height, width, channels)`, others in the units of the data's file, and the labels
            `arr_1`; "safetensors": `x` as the model makes it, and `label`.
        out: the folder, or the file, which is given its ending.

    Returns:
        Where they lie.

    Raises:
        ValueError: if other data than images are to be PNG files, or the folder holds something.
    """
    x = x.cpu()
    images = x.ndim == 4 and x.shape[1] in (1, 3) and data.range is not None
    if to == "png":
        if not images:
            raise ValueError(f"`to` is png for images, got {tuple(x.shape[1:])}; set to=npz")
        return _write_images(_pixels(x, data.range), labels, data.class_names, Path(out))
    path = Path(out) if str(out).endswith(f".{to}") else Path(f"{out}.{to}")
    if to == "safetensors":
        write_tensors(path, {"x": x} | ({} if labels is None else {"label": labels}))
        return path
    arrays = [_pixels(x, data.range) if images else data.original(x).numpy()]
    arrays += [] if labels is None else [labels.cpu().numpy()]

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # numpy gives a path an ending of its own
            np.savez(file, *arrays)

    write_atomically(path, write)
    return path


def _pixels(x: Tensor, bounds: tuple[float, float]) -> Any:
    """uint8 `(n, height, width, channels)`."""
    low, high = bounds
    levels = ((x.float() - low) / (high - low) * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _write_images(
    pixels: Any, labels: Tensor | None, names: list[str] | None, folder: Path
) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds files already, which would be scored with the new ones; remove them, "
            "or set `out` to another folder"
        )
    for i, image in enumerate(pixels):
        where = folder
        if labels is not None:
            label = int(labels[i])
            where = folder / (names[label] if names else str(label))
        where.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        path = where / f"{i:05d}.png"
        write_atomically(path, lambda beside, p=picture: p.save(beside, "PNG"), lasting=False)  # type: ignore[misc]
    return folder
