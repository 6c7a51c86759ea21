"""Residual convolutional encoders and generators, sized by the image, without batch norm.

A strided residual block halves the map, rounding up, and its mirror doubles it; the sizes are those
of `dcgan.map_sizes`, so 28 is 28-14-7-4, and a map that would fall below 4 pixels keeps its size.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flexgen.checks import check_integer, check_sizes
from flexgen.networks import layers
from flexgen.networks.conditioning import Conditional
from flexgen.networks.dcgan import map_sizes

Size = tuple[int, int]


def convolution(cin: int, cout: int, kernel: int, before: Size, after: Size) -> nn.Module:
    """A convolution between maps of two sizes: of stride 2 down, transposed of stride 2 up."""
    if before == after:
        return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    if after < before:
        return nn.Conv2d(cin, cout, kernel, 2, kernel // 2)
    # A transposed one gives 2 small - 1 pixels, one too few for an even size.
    extra = tuple(large - (2 * small - 1) for small, large in zip(before, after, strict=True))
    return nn.ConvTranspose2d(cin, cout, kernel, 2, kernel // 2, (extra[0], extra[1]))


class ResidualBlock(nn.Module):
    """y = F(x) + S(x): F two 3 x 3 convolutions with an activation between, S one of 1 x 1.

    The convolution that changes size and channels comes first on the way down, last on the way up.
    S is the identity where neither changes.
    """

    def __init__(
        self, cin: int, cout: int, before: Size, after: Size, act: str, slope: float, up: bool
    ) -> None:
        super().__init__()
        change = convolution(cin, cout, 3, before, after)
        size, channels = (before, cin) if up else (after, cout)
        keep = convolution(channels, channels, 3, size, size)
        first, second = (keep, change) if up else (change, keep)
        self.residual = nn.Sequential(first, layers.activation(act, slope), second)
        same = cin == cout and before == after
        self.shortcut = nn.Identity() if same else convolution(cin, cout, 1, before, after)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.residual(x) + self.shortcut(x)
        return y


def residual_blocks(
    maps: Sequence[int], sizes: Sequence[Size], plain_blocks: int, act: str, slope: float, up: bool
) -> list[nn.Module]:
    """Blocks from each map to the next, plain ones between them, an activation after each."""
    check_integer("plain_blocks", plain_blocks, 0, "0 is none")
    net: list[nn.Module] = []
    ends = list(zip(maps, sizes, strict=True))
    for i, ((cin, before), (cout, after)) in enumerate(itertools.pairwise(ends)):
        steps = [(cin, cout, before, after)]
        if i < len(ends) - 2:
            steps += [(cout, cout, after, after)] * plain_blocks
        for step in steps:
            net += [ResidualBlock(*step, act, slope, up), layers.activation(act, slope)]
    return net


class ResConvEncoder(Conditional):
    """A residual convolutional encoder: halvings of the image, then fully connected features.

    Each entry of `channels` is one strided block, h = a(F(x) + S(x)), with F two 3 x 3 convolutions
    and S a strided 1 x 1 convolution.

    Args:
        shape: `(channels, height, width)` of one image.
        channels: channels of the maps, the largest map first.
        linear_features: widths of the fully connected layers after the maps.
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        plain_blocks: blocks of stride 1 between each two strided ones.
        weight_norm: whether each layer's weights are a direction and a length for each output.
        **labels: see :class:`~flexgen.networks.conditioning.Conditional`.

    Raises:
        ValueError: for a shape that is no image, a size that is not positive, an unknown
            activation.

    Source: Huang et al., 2017 (LED), table 1, whose defaults these are. The paper names the maps
    and refers to He et al., 2015 for the block: theirs, with the activation after the sum and a
    projection (their option B) as shortcut. Departure: no batch norm, so that a likelihood does not
    depend on the batch. Plain blocks and weight norm are reported of Kingma et al., 2016 (IAF), on
    MNIST; departure: initial lengths are those of the drawn weights, not found from data.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 32),
        linear_features: Sequence[int] = (450,),
        activation: str = "ELU",
        negative_slope: float = 0.2,
        plain_blocks: int = 0,
        weight_norm: bool = False,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.shape = layers.image_shape(shape)
        maps = (self.shape[0] + self.labels_beside, *layers.map_channels(channels))
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)
        net = residual_blocks(maps, sizes, plain_blocks, activation, negative_slope, up=False)
        units = maps[-1] * math.prod(sizes[-1])
        widths = (units, *check_sizes("linear_features", linear_features))
        dense = layers.dense(widths, None, activation, negative_slope)
        self.net = nn.Sequential(*net, nn.Flatten(), *dense)
        self.out_features = widths[-1]
        if weight_norm:
            layers.normalise_weights(self)


class ResConvGenerator(Conditional):
    """The mirror of `ResConvEncoder`: fully connected layers, then doublings up to the image.

    Each entry of `channels` is one block up to the next; the last one, up to the image, has no
    activation after its sum.

    Args:
        latent_dim: size d of a code.
        shape: `(channels, height, width)` of one output; more channels than the image has where a
            likelihood takes several parameters a pixel.
        output_range: null (identity: logits), [-1, 1] (tanh) or [0, 1] (sigmoid).
        channels: channels of the maps, the smallest map first.
        linear_features: widths of fully connected layers between the code and the first map.

    The other arguments, and what is refused, are the encoder's; another range is too.

    Source: as `ResConvEncoder`. The paper does not describe its decoder; this one mirrors the
    encoder layer by layer, with transposed convolutions of stride 2.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        output_range: Sequence[float] | None = None,
        channels: Sequence[int] = (32, 32, 16),
        linear_features: Sequence[int] = (450,),
        activation: str = "ELU",
        negative_slope: float = 0.2,
        plain_blocks: int = 0,
        weight_norm: bool = False,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.image_shape(shape)
        maps = (*layers.map_channels(channels), self.shape[0])
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)[::-1]
        first = (maps[0], *sizes[0])
        hidden = check_sizes("linear_features", linear_features)
        widths = (self.latent_dim + self.labels_beside, *hidden, math.prod(first))
        net = layers.dense(widths, None, activation, negative_slope)
        net += [nn.Unflatten(1, first)]
        net += residual_blocks(maps, sizes, plain_blocks, activation, negative_slope, up=True)
        net[-1] = layers.output_map(output_range)
        self.net = nn.Sequential(*net)
        if weight_norm:
            layers.normalise_weights(self)
