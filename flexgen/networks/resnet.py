"""Deep residual generators and critics, sized by the image: 101 layers as they come."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.networks import conditioning, layers
from flexgen.networks.dcgan import Double, map_sizes

Size = tuple[int, int]


class _Bottleneck(nn.Module):
    """x + F(x), F normalised, activated convolutions of 1 x 1, 3 x 3 and 1 x 1, from size to size.

    What changes the size comes first: copies of pixels up, means of pixels down.
    """

    def __init__(
        self, cin: int, cout: int, inner: int, change: nn.Module, norm: layers.Norm, act: str,
        slope: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.change = change
        gates, bias = layers.units_before(act), norm != "batch"
        self.enter = nn.Conv2d(cin, gates * cin, 1) if gates > 1 else nn.Identity()
        self.residual = nn.Sequential(
            *layers.after_map(cin, norm, act, slope),
            nn.Conv2d(cin, gates * inner, 1, bias=bias),
            *layers.after_map(inner, norm, act, slope),
            nn.Conv2d(inner, gates * inner, 3, padding=1, bias=bias),
            *layers.after_map(inner, norm, act, slope),
            nn.Conv2d(inner, cout, 1),
        )
        self.shortcut = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)
        y: Tensor = self.shortcut(x) + self.residual(self.enter(x))
        return y


def _stages(
    maps: Sequence[int], sizes: Sequence[Size], blocks: Sequence[int], squeeze: int,
    norm: layers.Norm, act: str, slope: float,
) -> list[nn.Module]:  # fmt: skip
    """Blocks of each stage, whose first changes channels and, from the second stage on, size."""
    net: list[nn.Module] = []
    now = sizes[0]
    for (cin, cout), after, num in zip(itertools.pairwise(maps), sizes, blocks, strict=True):
        inner = max(1, cout // squeeze)
        for k in range(num):
            change: nn.Module = nn.Identity()
            if now != after:
                change = Double(after) if after > now else nn.AdaptiveAvgPool2d(after)
            net.append(_Bottleneck(cout if k else cin, cout, inner, change, norm, act, slope))
            now = after
    return net


def _checked(channels: Sequence[int], blocks: Sequence[int], squeeze: int, norm: Any) -> None:
    check_one_of("norm", norm, layers.NORMS)
    check_integer("squeeze", squeeze)
    if len(check_sizes("blocks", blocks)) != len(layers.map_channels(channels)):
        raise ValueError(
            f"`blocks` must name a number for each of `channels`, got {list(blocks)} and "
            f"{list(channels)}; give both one length"
        )


class ResNetGenerator(conditioning.ConditionalGenerator):
    r"""A residual generator: a small first map from the code, stages that double it, the image.

    .. math:: h ← S(h) + F(h), \quad F = W_3\, a\, W_2\, a\, W_1\, a

    with convolutions W of 1 × 1, 3 × 3 and 1 × 1, each after norm and activation a. With `blocks`
    [3, 4, 23, 3] it has 3 · 33 + 2 = 101 layers of weights, without those of shortcuts S.

    Args:
        latent_dim: size d of a code.
        shape: `(channels, height, width)` of one image.
        output_range: range of the data: null (identity), [-1, 1] (tanh) or [0, 1] (sigmoid).
        channels: of each stage, the smallest map first; each stage doubles the map but the first.
        blocks: how many of each stage.
        squeeze: how many times fewer channels are inside a block.
        activation: name of the hidden activation in torch.nn, or "Gated".
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each activation.
        weight_std: standard deviation of normal initial weights, "he": √(2 / inputs of a unit);
            null keeps torch's.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalGenerator`.

    Raises:
        ValueError: for a shape that is no image, sizes out of range or of different lengths, or an
            unknown activation, norm or range.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs", 2017, section 5.1 (a ResNet
    of 101 layers); He et al., "Identity mappings in deep residual networks", 2016. Departures:
    numbers of blocks are those of He et al.'s 101 layers, as the paper does not give its own; with
    `condition="norm"` the last normalisation alone is conditional.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        output_range: Sequence[float] | None = None,
        channels: Sequence[int] = (64, 64, 32, 32),
        blocks: Sequence[int] = (3, 23, 4, 3),
        squeeze: int = 4,
        activation: str = "ReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = "batch",
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        _checked(channels, blocks, squeeze, norm)
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.image_shape(shape)
        sizes = map_sizes(*self.shape[1:], num_layers=len(channels) - 1)[::-1]
        first = (channels[0], *sizes[0])
        how: Any = (norm, activation, negative_slope)
        stages = _stages((channels[0], *channels), sizes, blocks, squeeze, *how)
        last = nn.Conv2d(channels[-1], self.shape[0], 3, padding=1)
        gates = layers.units_before(activation)
        enter = [nn.Conv2d(channels[-1], gates * channels[-1], 1)] if gates > 1 else []
        self.net = self.sequential([
            nn.Linear(self.latent_dim + self.labels_beside, math.prod(first)),
            nn.Unflatten(1, first), *stages, *enter,
            *layers.after_map(channels[-1], *how), last, layers.output_map(output_range),
        ])  # fmt: skip
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        x: Tensor = self.net(conditioning.beside(z, context, self.labels_beside), context)
        return x


class ResNetCritic(conditioning.ConditionalCritic):
    """A residual critic: the image, stages that halve it, the mean over pixels, one output.

    Args:
        channels: of each stage, the largest map first; each stage halves the map but the first.
        norm: null, "batch" or "layer", before each activation. Batch norm ties the outputs of a
            batch together, which a gradient penalty per sample does not allow.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalCritic`.

    The other arguments, what is refused, and the source are the generator's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 32, 64, 64),
        blocks: Sequence[int] = (3, 4, 23, 3),
        squeeze: int = 4,
        activation: str = "ReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        _checked(channels, blocks, squeeze, norm)
        self.shape = layers.image_shape(shape)
        sizes = map_sizes(*self.shape[1:], num_layers=len(channels) - 1)
        how: Any = (norm, activation, negative_slope)
        gates = layers.units_before(activation)
        enter = [nn.Conv2d(channels[-1], gates * channels[-1], 1)] if gates > 1 else []
        self.net = nn.Sequential(
            nn.Conv2d(self.shape[0] + self.labels_beside, channels[0], 3, padding=1),
            *_stages((channels[0], *channels), sizes, blocks, squeeze, *how), *enter,
            *layers.after_map(channels[-1], *how), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.output = conditioning.Projection(channels[-1], self.labels_within)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        logits: Tensor = self.output(super().forward(x, context), context)
        return logits
