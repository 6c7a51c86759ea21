"""Encoders to maps of codes, and generators from them: convolutions alone."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.networks import layers
from flexgen.networks.conditioning import Conditional
from flexgen.networks.dcgan import map_sizes
from flexgen.networks.resconv import residual_blocks


class SpatialEncoder(Conditional):
    """Residual blocks down to a map and a 1 x 1 convolution to `code_channels` of it, flattened.

    The features of an image are `code_channels` · height · width numbers, channel by channel, of
    which each position sees the part of the image around it.

    Args:
        shape: `(channels, height, width)` of one image.
        code_channels: numbers at each position of the map.
        channels: channels of the maps before it, the largest map first; each but those that would
            fall below 4 pixels halves the map.
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        plain_blocks: blocks of stride 1 between each two strided ones.
        **labels: see :class:`~flexgen.networks.conditioning.Conditional`.

    Raises:
        ValueError: for a shape that is no image, a size that is not positive, an unknown
            activation.

    Source: the place of a VQ-VAE's encoder, van den Oord et al., "Neural discrete representation
    learning", 2017, section 4.1: strided convolutions and residual blocks. Departure: the blocks
    are those of :class:`~flexgen.networks.ResConvEncoder`.
    """

    def __init__(
        self, shape: Sequence[int], code_channels: int, channels: Sequence[int] = (16, 32),
        activation: str = "ReLU", negative_slope: float = 0.2, plain_blocks: int = 0,
        **labels: Any,
    ) -> None:  # fmt: skip
        super().__init__(**labels)
        self.shape = layers.image_shape(shape)
        code = check_integer("code_channels", code_channels)
        maps = (self.shape[0] + self.labels_beside, *layers.map_channels(channels))
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)
        net = residual_blocks(maps, sizes, plain_blocks, activation, negative_slope, up=False)
        self.net = nn.Sequential(*net, nn.Conv2d(maps[-1], code, 1), nn.Flatten())
        self.out_features = code * math.prod(sizes[-1])


class SpatialGenerator(Conditional):
    """The mirror of :class:`SpatialEncoder`: a 3 x 3 convolution of the map and residual blocks up.

    Args:
        shape: `(channels, height, width)` of one output.
        code_channels: numbers at each position of the map, whose sides are the encoder's.
        output_range: null (identity: logits), [-1, 1] (tanh) or [0, 1] (sigmoid).
        channels: channels of the maps, the smallest map first.

    The other arguments, and what is refused, are the encoder's; another range is too.

    Attributes:
        code_shape: `(code_channels, height, width)` of a map of codes.
        latent_dim: of such a map, flattened.
    """

    def __init__(
        self, shape: Sequence[int], code_channels: int,
        output_range: Sequence[float] | None = None, channels: Sequence[int] = (32, 16),
        activation: str = "ReLU", negative_slope: float = 0.2, plain_blocks: int = 0,
        **labels: Any,
    ) -> None:  # fmt: skip
        super().__init__(**labels)
        self.shape = layers.image_shape(shape)
        code = check_integer("code_channels", code_channels)
        maps = (*layers.map_channels(channels), self.shape[0])
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)[::-1]
        self.code_shape = (code, *sizes[0])
        self.latent_dim = math.prod(self.code_shape)
        net: list[nn.Module] = [
            nn.Conv2d(code + self.labels_beside, maps[0], 3, padding=1),
            layers.activation(activation, negative_slope),
        ]
        net += residual_blocks(maps, sizes, plain_blocks, activation, negative_slope, up=True)
        net[-1] = layers.output_map(output_range)
        self.net = nn.Sequential(*net)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(z.unflatten(1, self.code_shape), context)
