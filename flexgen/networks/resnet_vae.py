"""Networks of a ResNet VAE: a residual way up the data, and one down the levels that are maps."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, interpolate

from flexgen.checks import check_integer, check_positive, check_sizes
from flexgen.contracts import Decodes, Rung
from flexgen.distributions import normal_of
from flexgen.networks import layers
from flexgen.networks.dcgan import map_sizes
from flexgen.networks.resconv import Size, convolution


def _level_sizes(shape: Sequence[int], blocks: Sequence[int]) -> list[tuple[Size, Size]]:
    """Of each level, the lowest first: the map below it and its own, half of it at most once."""
    counts = check_sizes("blocks", blocks, "write one number of blocks for each size of map")
    if not counts:
        raise ValueError("`blocks` must name at least one size of map, got []; use [2]")
    _, height, width = shape
    sides = map_sizes(height, width, len(counts))[1:]
    own = [side for side, count in zip(sides, counts, strict=True) for _ in range(count)]
    return list(zip([own[0], *own[:-1]], own, strict=True))


class BottomUpResNet(nn.Module):
    r"""A residual network whose every block keeps maps for one level of a ResNet VAE's posterior.

    .. math:: u_l = W_l * a(h_{l-1}), \quad h_l = S(h_{l-1}) + c\, V_l * a(v_l), \quad a = ELU

    with W_l's outputs cut into u_l and v_l, and S the identity, or every second pixel where the
    map halves. The features of a datum are all a(u_l), flattened, the lowest level first.

    Args:
        shape: `(channels, height, width)` of one image.
        channels: maps of each block.
        blocks: blocks, one a level, of each size of map, the largest first, which is half the
            image's; each further one halves, if the sides do not fall below 4.
        weight_norm: whether each layer's weights are a direction and a length for each output.
        residual_scale: c; at 0.1 the sum of twenty blocks keeps the size of one.

    Raises:
        ValueError: for a shape that is no image, or sizes out of range.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    appendix (ResNet VAE), and the code that was published with it. Departure: the posterior's layer
    stands after the block's first, not beside it.
    """

    def __init__(
        self, shape: Sequence[int], channels: int = 160, blocks: Sequence[int] = (10, 10),
        weight_norm: bool = True, residual_scale: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape = layers.image_shape(shape)
        self.channels = check_integer("channels", channels)
        self.residual_scale = check_positive("residual_scale", residual_scale, "use 0.1")
        sizes = _level_sizes(self.shape, blocks)
        self.first = convolution(self.shape[0], channels, 5, self.shape[1:], sizes[0][0])
        self.enter = nn.ModuleList(convolution(channels, 2 * channels, 3, *ends) for ends in sizes)
        # The highest level's maps are the last that a datum is asked for.
        self.leave = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in sizes[:-1])
        self.out_features = sum(channels * math.prod(own) for _, own in sizes)
        if weight_norm:
            layers.normalise_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        h, found = self.first(x), []
        for enter, leave in itertools.zip_longest(self.enter, self.leave):
            own, v = enter(elu(h)).chunk(2, 1)
            found.append(elu(own).flatten(1))
            if leave is not None:
                stride = 1 if v.shape[2:] == h.shape[2:] else 2
                h = h[:, :, ::stride, ::stride] + self.residual_scale * leave(elu(v))
        return torch.cat(found, 1)


class TopDownResNet(nn.Module, Decodes):
    r"""A residual network from the highest level of a code down to the data, and its prior.

    .. math:: (m_l, \log s_l, d_l) = W_l * a(h_l), \quad z_l ∼ N(m_l, s_l^2), \quad
        h_{l-1} = S(h_l) + c\, V_l * a([z_l, d_l]), \quad a = ELU

    from learned constants h_L; S repeats pixels where the map doubles. Given a code it is a
    generator of data: `prior=top_down` and `posterior=bidirectional` walk down the same network.

    Args:
        latent_dim: d, of all levels.
        shape: `(channels, height, width)` of one output.
        output_range: null (identity), [-1, 1] (tanh) or [0, 1] (sigmoid).
        code_channels: maps of each level.

    The other arguments, and what is refused, are :class:`BottomUpResNet`'s; another range is too,
    and a `latent_dim` that is not the levels'.

    Source: as :class:`BottomUpResNet`.
    """

    def __init__(
        self, latent_dim: int, shape: Sequence[int], output_range: Sequence[float] | None = None,
        code_channels: int = 32, channels: int = 160, blocks: Sequence[int] = (10, 10),
        weight_norm: bool = True, residual_scale: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape = layers.image_shape(shape)
        self.code_channels = check_integer("code_channels", code_channels)
        self.residual_scale = check_positive("residual_scale", residual_scale, "use 0.1")
        sizes = _level_sizes(self.shape, blocks)
        self.level_shapes = tuple((code_channels, *own) for _, own in sizes)
        self.maps = [(channels, *own) for _, own in sizes]
        self.feature_shapes = tuple(self.maps)
        self.levels = tuple(map(math.prod, self.level_shapes))
        self.latent_dim = check_integer("latent_dim", latent_dim)
        if latent_dim != (size := sum(self.levels)):
            raise ValueError(
                f"`latent_dim` must be the {size} numbers of levels {self.level_shapes}, got "
                f"{latent_dim}; set `latent_dim={size}`"
            )
        # Not 0, where the first layer's weights would get no gradient.
        self.top = nn.Parameter(0.1 * torch.randn(channels))
        outputs = 2 * code_channels + channels
        self.enter = nn.ModuleList(nn.Conv2d(channels, outputs, 3, padding=1) for _ in sizes)
        self.leave = nn.ModuleList(
            convolution(code_channels + channels, channels, 3, own, below) for below, own in sizes
        )
        self.last = convolution(channels, self.shape[0], 5, sizes[0][0], self.shape[1:])
        self.to_range = layers.output_map(output_range)
        if weight_norm:
            layers.normalise_weights(self)

    def start(self, n: int) -> Tensor:
        return self.top[:, None, None].expand(n, *self.maps[-1])

    def rung(self, level: int, state: Tensor) -> Rung:
        features = elu(state)
        code = self.code_channels
        out: Tensor = self.enter[level](features)
        prior = normal_of(out[:, :code].flatten(1), out[:, code : 2 * code].flatten(1))
        return Rung(prior, features, (state, out[:, 2 * code :]))

    def below(self, level: int, state: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
        h, determined = state
        own = z.view(len(z), *self.level_shapes[level]).to(determined.dtype)
        added = self.leave[level](elu(torch.cat([own, determined], 1)))
        if added.shape[2:] != h.shape[2:]:
            h = interpolate(h, added.shape[2:])
        y: Tensor = h + self.residual_scale * added
        return y

    def output(self, state: Tensor) -> Tensor:
        x: Tensor = self.to_range(self.last(elu(state)))
        return x

    def forward(self, z: Tensor) -> Tensor:
        state: Any = self.start(len(z))
        parts = z.split(self.levels, 1)
        for level in reversed(range(len(parts))):
            state = self.below(level, self.rung(level, state).state, parts[level])
        return self.output(state)
