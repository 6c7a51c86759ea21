"""Images stand in their grid in order, in their own colours."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from flexgen.drawing import draw_images, draw_pairs, draw_samples


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_images_go_row_by_row_with_white_between(tmp_path: Path) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5])[:, None, None, None].expand(3, 1, 40, 40)
    draw_images(x, (-1.0, 1.0), tmp_path / "grid.png", columns=2)
    pixels = _pixels(tmp_path / "grid.png")
    assert pixels.shape == (2 * 42 + 2, 2 * 42 + 2, 3)
    assert (pixels[2:42, 2:42] == 0).all()
    assert (pixels[2:42, 44:84] == 128).all()
    assert (pixels[44:84, 2:42] == 191).all()
    assert (pixels[44:84, 44:84] == 255).all()
    assert (pixels[:2] == 255).all()


def test_small_images_are_enlarged_and_values_out_of_range_are_cut(tmp_path: Path) -> None:
    x = torch.stack([torch.full((3, 8, 8), -9.0), torch.full((3, 8, 8), 9.0)])
    draw_images(x, (0.0, 1.0), tmp_path / "grid.png", columns=2)
    pixels = _pixels(tmp_path / "grid.png")
    assert pixels.shape == (44, 86, 3)
    assert (pixels[2:42, 2:42] == 0).all()
    assert (pixels[2:42, 44:84] == 255).all()


def test_a_reconstruction_stands_to_the_right_of_its_image(tmp_path: Path) -> None:
    x = torch.zeros(2, 1, 40, 40)
    draw_pairs(x, x + 1, (0.0, 1.0), tmp_path / "pairs.png")
    centres = _pixels(tmp_path / "pairs.png")[22, 22::42, 0]
    assert centres[:4].tolist() == [0, 255, 0, 255]


def test_a_matplotlibrc_of_the_working_directory_changes_no_picture(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 20).reshape(10, 2)
    draw_samples(x, None, tmp_path / "plain.png")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        draw_samples(x, None, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
