"""Residual networks of 101 layers, and gated multiplicative nonlinearities."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flexgen.networks import (
    DCGANCritic,
    DCGANGenerator,
    MLPGenerator,
    ResNetCritic,
    ResNetGenerator,
)
from tests.training import trainable, without_gradient

LAYERS = nn.Linear, nn.Conv2d


def num_layers(network: nn.Module) -> int:
    """Without those of the shortcuts."""
    parts = network.named_modules()
    return sum(isinstance(part, LAYERS) for name, part in parts if "shortcut" not in name)


@pytest.mark.parametrize("activation", ["LeakyReLU", "Gated"])
@pytest.mark.parametrize("size", [8, 28])
def test_101_layers_whose_every_weight_learns(activation: str, size: int) -> None:
    torch.manual_seed(0)
    how = {"squeeze": 2, "activation": activation}
    generator = ResNetGenerator(3, (1, size, size), (-1, 1), channels=(4, 4, 2, 2), **how)
    critic = ResNetCritic((1, size, size), channels=(2, 2, 4, 4), **how)
    x = generator(torch.randn(4, 3))
    assert x.shape == (4, 1, size, size)
    assert x.abs().max() <= 1
    logits = critic(x)
    assert logits.shape == (4,)
    logits.square().sum().backward()
    for network in (generator, critic):
        assert without_gradient(trainable(network)) == []
        if activation == "LeakyReLU":
            assert num_layers(network) == 101


@pytest.mark.parametrize(("name", "of"), [("Gated", torch.tanh), ("GLU", torch.Tensor.clone)])
def test_a_gate_is_the_product_of_its_halves(
    name: str, of: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    network = MLPGenerator(3, (2,), None, [5], activation=name)
    first, last = (part for part in network.modules() if isinstance(part, nn.Linear))
    z = torch.randn(4, 3)
    a, b = (z @ first.weight.mT + first.bias).split(5, 1)
    expected = (of(a) * b.sigmoid()) @ last.weight.mT + last.bias
    torch.testing.assert_close(network(z), expected)


@pytest.mark.parametrize("linear", [[], [6]])
@pytest.mark.parametrize(("act", "norm"), [("Gated", None), ("GLU", "batch"), ("Gated", "layer")])
def test_gated_maps_have_the_sizes_of_others(act: str, norm: str | None, linear: list[int]) -> None:
    torch.manual_seed(0)
    how = {"activation": act, "norm": norm, "linear_features": linear}
    generator = DCGANGenerator(3, (1, 9, 7), channels=[4, 2], **how)
    critic = DCGANCritic((1, 9, 7), channels=[2, 4], **how)
    assert critic(generator(torch.randn(5, 3))).shape == (5,)


def test_its_last_bias_starts_at_the_datas_mean() -> None:
    generator = ResNetGenerator(3, (2, 8, 8), (-1, 1), channels=(2,), blocks=(1,))
    mean = torch.tensor([0.5, -0.2])
    generator.start_at(mean[:, None, None].expand(2, 8, 8))
    last = [part for part in generator.modules() if isinstance(part, nn.Conv2d)][-1]
    torch.testing.assert_close(last.bias.tanh(), mean)


def test_blocks_are_as_many_as_channels() -> None:
    with pytest.raises(ValueError, match="`blocks` must name a number for each of `channels`"):
        ResNetCritic((1, 8, 8), channels=(2, 2), blocks=(1,))
