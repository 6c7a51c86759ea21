"""Pictures: grids of images, scatter plots, curves; each file is written whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from flexgen.files import write_atomically


def draw_images(
    x: Tensor, value_range: tuple[float, float], path: Path, *, columns: int | None = None
) -> None:
    """Draw images `(n, channels, height, width)` as a grid, small ones enlarged."""
    from PIL import Image
    from torchvision.utils import make_grid

    low, high = value_range
    x = ((x.detach().cpu().float() - low) / (high - low)).clamp(0, 1)
    n, _, height, width = x.shape
    columns = columns or max(1, round((n * height / width) ** 0.5))
    zoom = max(1, 40 // height)
    x = x.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid = make_grid(x, nrow=columns, pad_value=1.0)
    pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    write_atomically(path, lambda beside: Image.fromarray(pixels).save(beside, format="png"))


def draw_pairs(x: Tensor, x_hat: Tensor, value_range: tuple[float, float], path: Path) -> None:
    """Draw images and, to the right of each, its reconstruction."""
    pairs = torch.stack([x.cpu(), x_hat.cpu()], 1).flatten(0, 1)
    draw_images(pairs, value_range, path, columns=10)


def draw_samples(
    x: Tensor, value_range: tuple[float, float] | None, path: Path, *, real: Tensor | None = None,
    columns: int | None = None,
) -> None:  # fmt: skip
    """Draw samples as what they are: images as a grid, points in the plane as a scatter plot.

    Raises:
        ValueError: for data that are neither.
    """
    if x.ndim == 4 and value_range is not None:
        draw_images(x, value_range, path, columns=columns)
    elif x.ndim == 2 and x.shape[1] == 2:

        def scatter(figure: Any) -> None:
            axes = figure.add_subplot()
            if real is not None:
                axes.scatter(*real.cpu().numpy().T, s=3, alpha=0.3, color="#999999", label="data")
            axes.scatter(*x.cpu().numpy().T, s=3, alpha=0.5, color="#0072B2", label="samples")
            axes.set_aspect("equal")
            axes.legend(loc="upper right", fontsize=8)

        draw_figure(scatter, path, size=(4.5, 4.5))
    else:
        raise ValueError(f"only images and points in the plane can be drawn, got {tuple(x.shape)}")


def draw_figure(
    draw: Callable[[Any], None], path: Path, *, size: tuple[float, float] = (6.4, 4.0)
) -> None:
    """Have `draw` fill a matplotlib figure, then write it as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a `matplotlibrc` of the working directory may be anybody's
        matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        write_atomically(path, lambda beside: figure.savefig(beside, format="png"))
