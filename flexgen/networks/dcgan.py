"""Convolutional generators and critics, sized by the image.

A generator makes a small first map from the code and doubles it up to the image; a critic halves
the image down to a map of the same size. The maps are found from the image: halve it, rounding up,
as often as there are layers, but never below 4 pixels. So 64 is 4-8-16-32-64, 28 is 4-7-14-28,
8 is 4-8, and layers beyond the number of halvings keep the size of the smallest map. All sizes in
between are reached by padding, never by resampling.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.networks import conditioning, layers

_SMALLEST = 4


def map_sizes(height: int, width: int, num_layers: int) -> list[tuple[int, int]]:
    """`(height, width)` of the maps from the image down to the smallest, `num_layers + 1` of them.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        num_layers: number of convolutions between the image and the smallest map.
    """
    sizes = [(height, width)]
    for _ in range(num_layers):
        height, width = sizes[-1]
        halved = (-(-height // 2), -(-width // 2))
        sizes.append(halved if min(halved) >= _SMALLEST else (height, width))
    return sizes


def _crop(small: int, large: int, kernel: int) -> tuple[int, int]:
    # A stride-2 transposed convolution gives 2 (small - 1) + kernel - 2 padding + extra pixels.
    surplus = 2 * (small - 1) + kernel - large
    return -(-surplus // 2), surplus % 2


def _convolution(
    before: tuple[int, int], after: tuple[int, int], kernel: int, cin: int, cout: int, bias: bool
) -> list[nn.Module]:
    """A convolution between maps of two sizes: of stride 2 down, transposed of stride 2 up."""
    if before == after:
        # An even kernel needs one pixel more after than before to keep the size.
        low, high = (kernel - 1) // 2, kernel // 2
        pad: list[nn.Module] = [] if low == high else [nn.ZeroPad2d((low, high, low, high))]
        return [*pad, nn.Conv2d(cin, cout, kernel, padding=0 if pad else low, bias=bias)]
    (pad_h, extra_h), (pad_w, extra_w) = (
        _crop(min(sides), max(sides), kernel) for sides in zip(before, after, strict=True)
    )
    if after < before:
        return [nn.Conv2d(cin, cout, kernel, 2, (pad_h, pad_w), bias=bias)]
    return [nn.ConvTranspose2d(cin, cout, kernel, 2, (pad_h, pad_w), (extra_h, extra_w), bias=bias)]


class Double(nn.Module):
    """Nearest-neighbour doubling, cropped to a size (copies, so that its backward is exact)."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        doubled = x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
        return doubled[:, :, : self.size[0], : self.size[1]]


class DCGANGenerator(conditioning.ConditionalGenerator):
    """A convolutional generator: a small first map from the code, then doubled up to the image.

    The code becomes a map of `channels[0]` channels (a transposed convolution of a 1 x 1 map, done
    as the matrix product that it is), then each further entry of `channels` is one layer, and a
    last layer gives the image. Each hidden layer is convolution, normalisation, activation.

    Args:
        latent_dim: size d of a code.
        shape: `(channels, height, width)` of one image.
        output_range: range of the data: null (identity), [-1, 1] (tanh) or [0, 1] (sigmoid).
        channels: channels of the hidden maps, the smallest map first.
        kernel_size: side of the square filters, pixels.
        linear_features: widths of fully connected layers between the code and the first map. With
            any, the first map is a fully connected layer too: batch norm is per unit, not channel.
        upsampling: "deconvolution" (transposed convolution of stride 2) or "nearest" (nearest-
            neighbour doubling, then a convolution).
        activation: name of the hidden activation in torch.nn; or "Gated", tanh(a) ⊙ σ(b) of twice
            the channels.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each hidden activation.
        weight_std: standard deviation of normal initial weights (DCGAN: 0.02), "he": √(2 / inputs
            of a unit); null keeps torch's.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalGenerator`.

    Raises:
        ValueError: for a shape that is no image, a size that is not positive, an unknown
            activation, norm, upsampling or range.

    Source: Radford et al., 2016 (DCGAN). Departure: the number of layers does not have to match
    the image; see the module's docstring.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        output_range: Sequence[float] | None = None,
        channels: Sequence[int] = (256, 128, 64),
        kernel_size: int = 4,
        linear_features: Sequence[int] = (),
        upsampling: Literal["deconvolution", "nearest"] = "deconvolution",
        activation: str = "ReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = "batch",
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.image_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        check_one_of("upsampling", upsampling, ("deconvolution", "nearest"))
        kernel = check_integer("kernel_size", kernel_size, 2, "its layers have stride 2")
        maps = (*layers.map_channels(channels), self.shape[0])
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)[::-1]
        gates = layers.units_before(activation)
        first, units = (maps[0], *sizes[0]), maps[0] * math.prod(sizes[0])
        hidden = check_sizes("linear_features", linear_features)
        widths = (self.latent_dim + self.labels_beside, *hidden, *([units] if hidden else []))
        net = layers.dense(widths, norm, activation, negative_slope)
        if hidden:
            net += [nn.Unflatten(1, first)]
        else:
            net += [nn.Linear(widths[-1], gates * units, bias=norm != "batch")]
            net += [nn.Unflatten(1, (gates * maps[0], *sizes[0]))]
            net += layers.after_map(maps[0], norm, activation, negative_slope)
        for i, (cin, cout) in enumerate(itertools.pairwise(maps)):
            before, after, last = sizes[i], sizes[i + 1], i == len(maps) - 2
            if upsampling == "nearest" and before != after:
                net += [Double(after)]
                before = after
            wide = cout if last else gates * cout
            net += _convolution(before, after, kernel, cin, wide, last or norm != "batch")
            if not last:
                net += layers.after_map(cout, norm, activation, negative_slope)
        self.net = self.sequential([*net, layers.output_map(output_range)])
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        x: Tensor = self.net(conditioning.beside(z, context, self.labels_beside), context)
        return x


def _halvings(
    shape: tuple[int, int, int], channels: Sequence[int], kernel_size: int,
    linear_features: Sequence[int], act: str, slope: float, norm: layers.Norm,
) -> tuple[nn.Sequential, int]:  # fmt: skip
    """From an image to features, and how many they are."""
    check_one_of("norm", norm, layers.NORMS)
    kernel = check_integer("kernel_size", kernel_size, 2, "its layers have stride 2")
    maps = (shape[0], *layers.map_channels(channels))
    sizes = map_sizes(*shape[1:], num_layers=len(maps) - 1)
    net: list[nn.Module] = []
    for i, (cin, cout) in enumerate(itertools.pairwise(maps)):
        wide = cout * layers.units_before(act)
        net += _convolution(sizes[i], sizes[i + 1], kernel, cin, wide, norm != "batch")
        net += layers.after_map(cout, norm, act, slope)
    widths = (maps[-1] * math.prod(sizes[-1]), *check_sizes("linear_features", linear_features))
    dense = layers.dense(widths, None, act, slope)
    return nn.Sequential(*net, nn.Flatten(), *dense), widths[-1]


class DCGANEncoder(conditioning.Conditional):
    """A convolutional encoder, a :class:`DCGANCritic` that ends in features.

    Args:
        channels: channels of the maps, the largest map first.
        linear_features: widths of fully connected layers after the maps (not normalised).
        norm: null, "batch" or "layer", after each convolution.
        **labels: see :class:`~flexgen.networks.conditioning.Conditional`.

    The other arguments, and what is refused, are the generator's.

    Source: the place of the encoder of Dumoulin et al., "Adversarially learned inference", 2017,
    appendix A. Departure: DCGAN's maps, sized by the image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256),
        kernel_size: int = 4,
        linear_features: Sequence[int] = (),
        activation: str = "LeakyReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.shape = layers.image_shape(shape)
        self.net, self.out_features = _halvings(
            (self.shape[0] + self.labels_beside, *self.shape[1:]), channels, kernel_size,
            linear_features, activation, negative_slope, norm,
        )  # fmt: skip
        layers.draw_weights(self, weight_std)


class DCGANCritic(conditioning.ConditionalCritic):
    """A convolutional critic: halvings of the image, then fully connected layers to one output.

    Args:
        channels: channels of the maps, the largest map first.
        linear_features: widths of fully connected hidden layers after the maps (not normalised).
        norm: null, "batch" or "layer", after each convolution. Batch norm ties the outputs of a
            batch together, which a gradient penalty per sample does not allow.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalCritic`.

    The other arguments, and what is refused, are the generator's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256),
        kernel_size: int = 4,
        linear_features: Sequence[int] = (),
        activation: str = "LeakyReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.shape = layers.image_shape(shape)
        self.net, features = _halvings(
            (self.shape[0] + self.labels_beside, *self.shape[1:]), channels, kernel_size,
            linear_features, activation, negative_slope, norm,
        )  # fmt: skip
        self.output = conditioning.Projection(features, self.labels_within)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        logits: Tensor = self.output(super().forward(x, context), context)
        return logits
