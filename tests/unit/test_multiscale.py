"""Multiscale PixelCNN: what a group depends on, that probabilities add up, that draws are exact."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.contracts import PixelOutput
from flexgen.networks import MultiscalePixelCNN
from flexgen.outputs import Bernoulli, LogisticMixture
from tests.unit.test_pixels import OUTPUTS, images

two_levels = pytest.mark.parametrize(
    "output", [Bernoulli(), LogisticMixture((0, 1), 2, 2)], ids=lambda output: type(output).__name__
)


def build(
    shape: tuple[int, int, int], output: str | PixelOutput = "bernoulli", **more: Any
) -> MultiscalePixelCNN:
    """A network as far from its start as trained ones are."""
    torch.manual_seed(0)
    named = OUTPUTS[output]() if isinstance(output, str) else output
    sizes = {
        "channels": 4,
        "num_blocks": 1,
        "base_features": 8,
        "head_features": 16,
        "position_bias": True,
        "dense_features": 8,
    }
    sizes |= more
    network = MultiscalePixelCNN(shape, named, **sizes).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def groups_of(side: int, num_doublings: int) -> tuple[Tensor, Tensor]:
    """Of each pixel its doubling, 0 for the small image, and its group in the doubling, 1 to 3."""
    doubling, group = torch.zeros(2, side, side).long()
    for k in range(num_doublings):
        stride = 2 ** (num_doublings - 1 - k)
        for g, (i, j) in enumerate([(0, 1), (1, 0), (1, 1)], 1):
            own = slice(i * stride, None, 2 * stride), slice(j * stride, None, 2 * stride)
            doubling[own], group[own] = k + 1, g
    return doubling, group


def expected_field(side: int, num_doublings: int, reach: int) -> Tensor:
    """Which pixels each sees, `(pixels, pixels)`, where E and each group's blocks reach so far."""
    doubling, group = groups_of(side, num_doublings)
    sees = torch.zeros(side, side, side, side).bool()
    for a, b, i, j in itertools.product(range(side), repeat=4):
        d, g = int(doubling[a, b]), int(group[a, b])
        if d == 0:
            sees[a, b, i, j] = doubling[i, j] == 0 and (i, j) < (a, b)
            continue
        stride = 2 ** (num_doublings - d)
        if i % stride or j % stride:  # of a later doubling
            continue
        q = int(group[i, j]) if doubling[i, j] == d else 0
        cells = max(abs(a // (2 * stride) - i // (2 * stride)),
                    abs(b // (2 * stride) - j // (2 * stride)))  # fmt: skip
        sees[a, b, i, j] = q < g and cells <= reach + (g - q) * reach
    return sees.view(side**2, side**2)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("side", "num_doublings", "dense"), [(8, 1, 0), (8, 2, 0), (8, 2, 8)])
def test_a_group_sees_the_groups_before_it_and_no_other(
    side: int, num_doublings: int, dense: int, channels: int
) -> None:
    network = build(
        (channels, side, side), num_doublings=num_doublings, first_kernel_size=3,
        dense_features=dense,
    )  # fmt: skip
    sees = expected_field(side, num_doublings, side if dense else 1)
    found = torch.zeros(side**2, channels, side**2, channels).bool()
    for _ in range(4):  # a rectifier may be off at one image
        x = torch.randn(3, *network.shape, dtype=torch.float64, requires_grad=True)
        parameters = network.parameters_of(x)
        weights = torch.rand_like(parameters)
        for pixel, c in itertools.product(range(side**2), range(channels)):
            total = (weights * parameters)[:, c].flatten(2)[:, :, pixel].sum()
            (grad,) = torch.autograd.grad(total, x, retain_graph=True)
            found[pixel, c] |= (grad != 0).any(0).flatten(1).mT
    expected = sees[:, None, :, None].expand(-1, channels, -1, channels).clone()
    for pixel in range(side**2):  # and of its own channels those before
        expected[pixel, :, pixel] = torch.ones(channels, channels).tril(-1).bool()
    assert not (found & ~expected).any(), "a pixel sees what is not yet known"
    assert torch.equal(found, expected)
    assert not sees.all(1).any()
    assert sees.sum() < torch.ones(side**2, side**2).tril(-1).sum()


@two_levels
def test_the_probabilities_of_all_images_add_up_to_1(output: PixelOutput) -> None:
    network = build((1, 4, 4), output, num_doublings=1)
    with torch.no_grad():
        log_prob = network().log_prob(images((1, 4, 4), output))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.std() > 0.1


def moments(x: Tensor, probability: Tensor | None = None) -> Tensor:
    """E x and E x xᵀ."""
    x = x.flatten(1)
    weights = (
        torch.full((len(x),), 1 / len(x), dtype=x.dtype) if probability is None else probability
    )
    return torch.cat([(weights @ x)[None], x.T @ (weights[:, None] * x)])


@pytest.mark.parametrize("known", [0, 4])
def test_images_are_drawn_as_they_are_likely_given_the_smaller_one(known: int) -> None:
    network, n = build((1, 4, 4), num_doublings=1), 20_000
    everything = images((1, 4, 4), Bernoulli())
    given = torch.tensor([[1.0, 0.0], [0, 1]]).double().repeat_interleave(2, 0)
    given = given.repeat_interleave(2, 1)[None]
    with torch.no_grad():
        probability = network().log_prob(everything).exp()
    if known:
        fits = everything[..., ::2, ::2] == given[..., ::2, ::2]
        probability = probability * fits.flatten(1).all(1)
        probability /= probability.sum()
    x = network().sample((n,), given=given, known=known)
    expected = moments(everything, probability)
    assert ((moments(x) - expected).abs() < 4.5 / (4 * n) ** 0.5).all()
    assert (expected - 0.5).abs().max() > 0.1


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [None, [2, 0]])
def test_draws_by_groups_are_those_of_a_pass_a_pixel(
    output: str, dtype: torch.dtype, labels: list[int] | None
) -> None:
    num_classes = None if labels is None else 3
    network = build((2, 8, 12), output, num_classes=num_classes).to(dtype)
    p = network(None if labels is None else torch.tensor(labels))
    draws = []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(p.sample((2,), cached=cached))
    assert draws[0].shape == (2, *p.batch_shape, 2, 8, 12)
    assert torch.equal(*draws)
    assert draws[0].unique().numel() > 1
    torch.manual_seed(2)
    assert not torch.equal(p.sample((2,)), draws[0])


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_smaller_image_is_kept(output: str) -> None:
    network = build((2, 8, 8), output)
    own = network().sample((3,))
    for known, stride in ((4, 4), (16, 2), (64, 1)):
        x = network().sample((3,), given=own, known=known)
        assert torch.equal(x[..., ::stride, ::stride], own[..., ::stride, ::stride])
    assert torch.equal(x, own)
    for known, given in ((5, own), (-1, own), (16, None)):
        with pytest.raises(ValueError, match=r"must be 0 or .* one of \[4, 16, 64\].*gated"):
            network().sample((3,), given=given, known=known)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_every_parameter_gets_a_gradient(output: str, num_classes: int | None) -> None:
    network = build((2, 16, 16), output, num_classes=num_classes)
    p = network(None if num_classes is None else torch.arange(3))
    p.log_prob(p.sample((4,))).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_class_changes_every_doubling() -> None:
    network = build((1, 8, 8), num_classes=3)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64).round().expand(3, -1, -1, -1)
    parameters = network.parameters_of(x, torch.arange(3))
    assert (parameters[0] != parameters[1]).all()
    assert network(torch.arange(3)).log_prob(x.expand(2, -1, -1, -1, -1)).shape == (2, 3)
    with pytest.raises(ValueError, match="3 classes must be given labels"):
        network().log_prob(x)
    with pytest.raises(ValueError, match="takes no context"):
        build((1, 8, 8))(torch.arange(3)).log_prob(x)


@pytest.mark.parametrize("shape", [(1, 28, 30), (1, 10, 8), (1, 4, 8)])
def test_an_image_that_cannot_be_halved_so_often_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4, two or more, got \(.*; set fewer"):
        build(shape)
    assert build((1, 28, 28)).base.shape == (1, 7, 7)
    assert build((1, 8, 8)).base.shape == (1, 2, 2)


def test_a_doubling_has_dense_ways_of_its_first_groups() -> None:
    network = build((1, 8, 8), dense_groups=[3, 1])
    assert [len(doubling.dense) for doubling in network.doublings] == [3, 1]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most 3.*got \[3, 4\]; set \[3\]"):
        build((1, 8, 8), dense_groups=[3, 4])
