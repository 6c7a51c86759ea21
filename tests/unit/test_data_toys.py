"""Toys have the moments that their sizes say, and a sample that no run changes."""

import math

import pytest
import torch
from torch import Tensor

from flexgen.data import Grid, Line, Ring, SwissRoll, Toy, ToyData, ring8


def module(distribution: Toy, **options: object) -> ToyData:
    return ToyData(distribution, num_train=20_000, num_validation=500, num_test=400, **options)


def test_ring_is_on_the_circle() -> None:
    centres = Ring().centres
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 0.8))
    torch.testing.assert_close(centres[0], torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(centres[2], torch.tensor([0.0, 0.8]), atol=1e-6, rtol=0)


def test_grid_is_even_about_the_origin() -> None:
    centres = Grid().centres
    assert centres.shape == (25, 2)
    torch.testing.assert_close(centres.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert torch.cdist(centres, centres).add(torch.eye(25)).min().item() == pytest.approx(0.4)
    assert centres.abs().max().item() == pytest.approx(0.8)


@pytest.mark.parametrize("toy", [Ring(), Grid(), Ring(num_modes=3, radius=2.0, std=0.1)])
def test_points_of_a_mode_have_its_mean_and_deviation(toy: Ring | Grid) -> None:
    x, y = module(toy).split("train")
    assert y is not None
    counts = y.bincount()
    assert len(counts) == len(toy.centres)
    expected = 20_000 / len(counts)
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    noise = x - toy.centres[y]
    assert noise.std().item() == pytest.approx(toy.std, rel=0.02)
    for mode in range(len(counts)):
        assert noise[y == mode].mean(0).abs().max() < 5 * toy.std / math.sqrt(expected / 1.2)


def test_roll_lies_on_its_spiral() -> None:
    x, y = module(SwissRoll(std=1e-4)).split("train")
    assert y is None
    t = x.norm(dim=1) * 4.5 * math.pi
    assert t.min() > 1.5 * math.pi - 0.02
    assert t.max() < 4.5 * math.pi + 0.02
    spiral = torch.stack((t.cos(), t.sin()), dim=1) * x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(spiral, x, atol=0.01, rtol=0)
    # t is uniform on [1.5π, 4.5π]
    assert t.mean().item() == pytest.approx(3 * math.pi, rel=0.02)
    assert t.std().item() == pytest.approx(3 * math.pi / math.sqrt(12), rel=0.02)


def test_the_line_is_a_normal() -> None:
    x, y = module(Line(std=2.0), shape=[1]).split("train")
    assert x.shape == (20_000, 1)
    assert y is None
    assert x.mean().item() == pytest.approx(0, abs=5 * 2 / math.sqrt(20_000))
    assert x.std().item() == pytest.approx(2, rel=0.02)


def test_module_says_what_mode_coverage_needs() -> None:
    data = ring8(num_modes=5, std=0.1)
    assert data.centres is not None
    assert data.centres.shape == (5, 2)
    assert (data.std, data.num_classes, data.shape, data.range) == (0.1, 5, (2,), None)
    assert module(SwissRoll()).centres is None
    assert module(SwissRoll()).num_classes is None


def test_sample_is_the_same_for_every_seed_of_a_study() -> None:
    a, b = module(Ring(), seed=0).split("train")[0], module(Ring(), seed=1).split("train")[0]
    assert torch.equal(a, b)


def test_splits_are_different_draws() -> None:
    data = module(Ring())
    points = torch.cat([data.split(name)[0] for name in ("train", "validation", "test")])
    assert len(points) == 20_900
    assert len(points.unique(dim=0)) == 20_900


@pytest.mark.parametrize("build", [lambda: Ring(std=0.0), lambda: Grid(spacing=math.nan)])
def test_impossible_sizes_are_refused(build: object) -> None:
    with pytest.raises(ValueError, match=r"must be positive and finite, got .*data.distribution"):
        build()  # type: ignore[operator]


class Broken:
    """A user's toy that gives what it should not."""

    centres = None
    std = 1.0

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return self.x.expand(n, -1).clone(), None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), "the train points of toy hold NaN or infinity"),
        (torch.zeros(1, 3), r"`shape` must equal .* \(2,\), got torch.float32 \(3,\)"),
        (torch.zeros(1, 2, dtype=torch.long), r"`shape` must equal .* got torch.int64 \(2,\)"),
    ],
)
def test_bad_points_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(Broken(x)).setup()


def test_toys_have_no_range() -> None:
    with pytest.raises(ValueError, match="`range` must be null"):
        ToyData(Ring(), range=(-1, 1))  # type: ignore[arg-type]
