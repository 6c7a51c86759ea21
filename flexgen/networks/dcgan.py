"""Convolutional generators and critics, sized by the image.

A generator makes a small first map from the code and doubles it up to the image; a critic halves
the image down to a map of the same size. The maps are found from the image: halve it, rounding up,
as often as there are layers, but never below 4 pixels. So 64 is 4-8-16-32-64, 28 is 4-7-14-28,
8 is 4-8, and layers beyond the number of halvings keep the size of the smallest map. All sizes in
between are reached by padding, never by resampling.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.networks import conditioning, layers

_SMALLEST = 4


def map_sizes(height: int, width: int, num_layers: int) -> list[tuple[int, int]]:
    """Sizes of the maps from the image down to the smallest one, `num_layers + 1` of them.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        num_layers: number of convolutions between the image and the smallest map.

    Returns:
        `(height, width)` of each map, the image first.
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


def _same(kernel: int, in_channels: int, out_channels: int, bias: bool) -> list[nn.Module]:
    # An even kernel needs one pixel more after than before to keep the size.
    before, after = (kernel - 1) // 2, kernel // 2
    pad: list[nn.Module] = [] if before == after else [nn.ZeroPad2d((before, after, before, after))]
    inside = before if before == after else 0
    return [*pad, nn.Conv2d(in_channels, out_channels, kernel, padding=inside, bias=bias)]


def _up(
    small: tuple[int, int], large: tuple[int, int], kernel: int, cin: int, cout: int, bias: bool
) -> list[nn.Module]:
    if small == large:
        return _same(kernel, cin, cout, bias)
    (pad_h, extra_h), (pad_w, extra_w) = (
        _crop(s, b, kernel) for s, b in zip(small, large, strict=True)
    )
    return [nn.ConvTranspose2d(cin, cout, kernel, 2, (pad_h, pad_w), (extra_h, extra_w), bias=bias)]


def _down(
    large: tuple[int, int], small: tuple[int, int], kernel: int, cin: int, cout: int, bias: bool
) -> list[nn.Module]:
    if small == large:
        return _same(kernel, cin, cout, bias)
    pad_h, pad_w = (_crop(s, b, kernel)[0] for s, b in zip(small, large, strict=True))
    return [nn.Conv2d(cin, cout, kernel, 2, (pad_h, pad_w), bias=bias)]


class _Double(nn.Module):
    """Nearest-neighbour doubling, cropped to a size (copies, so that its backward is exact)."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        doubled = x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
        return doubled[:, :, : self.size[0], : self.size[1]]


class DCGANGenerator(nn.Module):
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
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each hidden activation.
        weight_std: standard deviation of normal initial weights (DCGAN: 0.02); null keeps torch's.
        num_classes: of the labels that it takes as context; null: it takes none.
        condition: how it takes them: "input", one-hot beside the code, or "norm", by a scale and a
            shift of each class in every normalisation.

    Attributes:
        latent_dim: size of a code.
        shape: shape of one image.

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
        weight_std: float | None = None,
        num_classes: int | None = None,
        condition: conditioning.GeneratorCondition = "input",
    ) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.image_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        check_one_of("upsampling", upsampling, ("deconvolution", "nearest"))
        kernel = check_integer("kernel_size", kernel_size, 2, "its layers have stride 2")
        maps = (*layers.map_channels(channels), self.shape[0])
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)[::-1]
        first = (maps[0], *sizes[0])

        self.num_classes = num_classes
        classes = conditioning.check_classes(num_classes, condition, ("input", "norm"))
        self.labels_beside = classes if condition == "input" else 0
        widths = (
            self.latent_dim + self.labels_beside,
            *check_sizes("linear_features", linear_features),
        )
        net: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            net += layers.dense(narrow, wide, norm, activation, negative_slope)
        units = first[0] * first[1] * first[2]
        if len(widths) > 1:
            net += layers.dense(widths[-1], units, norm, activation, negative_slope)
            net += [nn.Unflatten(1, first)]
        else:
            net += [nn.Linear(widths[-1], units, bias=norm != "batch"), nn.Unflatten(1, first)]
            net += layers.map_norm(maps[0], norm)
            net += [layers.activation(activation, negative_slope)]
        for i, (cin, cout) in enumerate(itertools.pairwise(maps)):
            last = i == len(maps) - 2
            bias = last or norm != "batch"
            if upsampling == "nearest":
                net += [] if sizes[i] == sizes[i + 1] else [_Double(sizes[i + 1])]
                net += _same(kernel, cin, cout, bias)
            else:
                net += _up(sizes[i], sizes[i + 1], kernel, cin, cout, bias)
            if not last:
                net += layers.map_norm(cout, norm)
                net += [layers.activation(activation, negative_slope)]
        if classes and condition == "norm":
            net = conditioning.conditioned(net, classes)
        self.net = conditioning.Sequential(*net, layers.output_map(output_range))
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Generate images.

        Args:
            z: codes, `(batch, latent_dim)`.
            context: labels `(batch,)`, with `num_classes` alone.

        Returns:
            Images, `(batch, channels, height, width)`, in `output_range`.
        """
        x: Tensor = self.net(conditioning.beside(z, context, self.labels_beside), context)
        return x


class DCGANCritic(nn.Module):
    """A convolutional critic: halvings of the image, then fully connected layers to one output.

    Args:
        shape: `(channels, height, width)` of one image.
        channels: channels of the maps, the largest map first.
        kernel_size: side of the square filters, pixels.
        linear_features: widths of fully connected hidden layers after the maps (not normalised).
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", after each convolution. Batch norm ties the outputs of a
            batch together, which a gradient penalty per sample does not allow.
        weight_std: standard deviation of normal initial weights (DCGAN: 0.02); null keeps torch's.
        num_classes: of the labels that it takes as context; null: it takes none.
        condition: how it takes them: "projection" of the last features on the class's direction,
            or "concatenation", one-hot beside the data.

    Attributes:
        shape: shape of one image.

    Raises:
        ValueError: for a shape that is no image, a size that is not positive, an unknown
            activation or norm.
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
        weight_std: float | None = None,
        num_classes: int | None = None,
        condition: conditioning.CriticCondition = "projection",
    ) -> None:
        super().__init__()
        self.shape = layers.image_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        kernel = check_integer("kernel_size", kernel_size, 2, "its layers have stride 2")
        self.num_classes = num_classes
        known = ("projection", "concatenation")
        classes = conditioning.check_classes(num_classes, condition, known)
        self.labels_beside = classes if condition == "concatenation" else 0
        maps = (self.shape[0] + self.labels_beside, *layers.map_channels(channels))
        sizes = map_sizes(*self.shape[1:], num_layers=len(maps) - 1)
        net: list[nn.Module] = []
        for i, (cin, cout) in enumerate(itertools.pairwise(maps)):
            net += _down(sizes[i], sizes[i + 1], kernel, cin, cout, bias=norm != "batch")
            net += [
                *layers.map_norm(cout, norm),
                layers.activation(activation, negative_slope),
            ]
        widths = (
            maps[-1] * sizes[-1][0] * sizes[-1][1],
            *check_sizes("linear_features", linear_features),
        )
        net += [nn.Flatten()]
        for wide, narrow in itertools.pairwise(widths):
            net += layers.dense(wide, narrow, None, activation, negative_slope)
        self.net = nn.Sequential(*net)
        projected = classes if condition == "projection" else 0
        self.output = conditioning.Projection(widths[-1], projected)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Criticise images.

        Args:
            x: images, `(batch, channels, height, width)`.
            context: labels `(batch,)`, with `num_classes` alone.

        Returns:
            Raw outputs, `(batch,)`; what they mean is the objective's affair.
        """
        features = self.net(conditioning.beside(x, context, self.labels_beside))
        logits: Tensor = self.output(features, context)
        return logits
