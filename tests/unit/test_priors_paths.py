"""Paths between codes: where they start, end and pass."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexgen.priors.interpolation import linear, slerp

T = torch.linspace(0, 1, 9)


def codes(n: int = 6, d: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
    return a, 3 * b


@pytest.mark.parametrize("path", [linear, slerp])
def test_paths_join_their_ends(path: Callable[..., Tensor]) -> None:
    a, b = codes()
    z = path(a, b, T)
    assert z.shape == (6, 9, 20)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z[:, 0], a)
    torch.testing.assert_close(z[:, -1], b)


def test_slerp_is_shoemakes_formula_for_equal_norms() -> None:
    a, b = (4 * torch.nn.functional.normalize(z.double()) for z in codes())
    theta = torch.arccos((a * b).sum(1, keepdim=True) / 16)
    for i, t in enumerate(T.tolist()):
        expected = (((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin()
        torch.testing.assert_close(slerp(a, b, T)[:, i], expected, rtol=1e-6, atol=1e-6)


def test_slerp_turns_and_stretches_at_constant_rates() -> None:
    a, b = (z.double() for z in codes())
    z = slerp(a, b, T)
    norms = z.norm(dim=-1)
    torch.testing.assert_close(norms.diff(dim=1), norms.diff(dim=1)[:, :1].expand(-1, 8))
    unit = z / norms.unsqueeze(-1)
    cosines = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    torch.testing.assert_close(cosines, cosines[:, :1].expand(-1, 8))


def test_the_straight_path_leaves_the_sphere_and_slerp_does_not() -> None:
    a, b = (20 * torch.nn.functional.normalize(z) for z in codes(d=400))
    half = torch.tensor([0.5])
    torch.testing.assert_close(slerp(a, b, half).norm(dim=-1), torch.full((6, 1), 20.0))
    assert (linear(a, b, half).norm(dim=-1) < 16).all()  # about 20/√2


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("off", [0.0, 1e-12, 1e-6])
def test_ends_in_one_direction_are_joined_straight(scale: float, off: float) -> None:
    a = codes()[0].double()
    b = scale * (a + off * a.roll(1, dims=1))
    torch.testing.assert_close(slerp(a, b, T), linear(a, b, T.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("off", [0.0, 1e-12, 1e-6])
def test_opposite_ends_are_joined_by_half_a_circle(off: float) -> None:
    a = codes()[0].double()
    b = -a + off * a.roll(1, dims=1)
    z = slerp(a, b, T)
    assert z.isfinite().all()
    torch.testing.assert_close(z[:, -1], b, rtol=1e-5, atol=1e-5)
    norms = a.norm(dim=1, keepdim=True).expand(-1, 9)
    torch.testing.assert_close(z.norm(dim=-1), norms, rtol=1e-5, atol=0)
    step = 2 * math.sin(math.pi / 16) * a.norm(dim=1, keepdim=True)
    torch.testing.assert_close(z.diff(dim=1).norm(dim=-1), step.expand(-1, 8), rtol=1e-5, atol=0)


def test_an_end_at_zero_has_the_direction_of_the_other() -> None:
    a = codes()[0]
    zero = torch.zeros_like(a)
    torch.testing.assert_close(slerp(a, zero, T), linear(a, zero, T))
    torch.testing.assert_close(slerp(zero, a, T), linear(zero, a, T))
    assert torch.equal(slerp(zero, zero, T), torch.zeros(6, 9, 20))


def test_one_dimension_has_no_circle() -> None:
    z = slerp(torch.tensor([[2.0], [2.0]]), torch.tensor([[-2.0], [6.0]]), T)
    assert z.isfinite().all()
    torch.testing.assert_close(z[:, -1], torch.tensor([[-2.0], [6.0]]))
    assert (z[0].diff(dim=0) < 0).all()


def test_a_straight_path_stays_in_the_box() -> None:
    a, b = 2 * torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0)) - 1
    assert linear(a, b, T).abs().max() <= 1
