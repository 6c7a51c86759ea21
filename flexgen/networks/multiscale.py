"""Multiscale PixelCNN: an image by doublings of a small one, a quarter of its pixels at once."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.checks import check_integer, check_share, check_sizes
from flexgen.contracts import PixelOutput
from flexgen.networks.dense_pixels import DensePixels
from flexgen.networks.pixels import PixelDensity, PixelHead, PixelProduct, reach_of, scale_weights

_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


class MultiscalePixelCNN(PixelDensity):
    r"""Of a small image each pixel given those before; then doublings, three groups each.

    Let $x^{(s)}$ be the image's pixels at rows and columns that are multiples of s. With D
    doublings the smallest image is $x^{(2^D)}$, and

    .. math:: p(x) = p(x^{(2^D)}) \prod_{s = 1, 2, …, 2^{D-1}}
        p(x^{(s)}_{01} | x^{(2s)})\, p(x^{(s)}_{10} | x^{(2s)}, x^{(s)}_{01})\,
        p(x^{(s)}_{11} | x^{(2s)}, x^{(s)}_{01}, x^{(s)}_{10})

    where $x^{(s)}_{ij}$ are the pixels of $x^{(s)}$ at row i and column j of each block of 2 × 2,
    and $x^{(s)}_{00} = x^{(2s)}$. Pixels of one group are independent given the groups before, so
    a group is one pass of a small network and a draw takes O(log pixels) passes after the small
    image. The density is exact: subsampling leaves each pixel as it is.

    A doubling's network is one residual stream on the small image's grid, which takes up each group
    once it is known, $h_g = f_g(h_{g-1} + E_g * x_g + D_g(x_g))$ with blocks
    $h + W_2\, a(W_1 * h)$, a = ReLU, and gives the next group's parameters by a head. D is dense,
    of all pixels of the group to all maps: $V\, a(U x + u) + v$.

    Args:
        shape: `(channels, height, width)` of one image.
        output: what the parameters mean.
        num_doublings: D.
        channels: maps of a doubling's stream.
        num_blocks: residual blocks between two groups.
        first_kernel_size: side of E, odd.
        kernel_size: side of W₁, odd.
        dense_features: hidden units of D, which tells a place what lies anywhere in the image and
            where it lies itself; 0: no D. For images that are small and alike, as MNIST's digits.
        dense_dropout: share of its pixels that D does not see in training, in [0, 1]: it has most
            of the weights, and overfits first.
        dense_groups: of each doubling, in turn, how many groups have a D, the first ones, up to 3.
        base_features: units for each pixel of the small image, whose network is a
            :class:`~flexgen.networks.dense_pixels.DensePixels`.
        head_features: hidden units of the doublings' heads; null: `channels`.
        position_bias: whether the network knows where a pixel lies, by a learned bias at each pixel
            of a stream that takes a group.
        num_classes: of the labels `(n,)` that the context is; null: none.

    Raises:
        ValueError: for sizes out of range, a kernel of an even side, or an image that cannot be
            halved so often and keep 2 × 2 pixels.

    Source: Reed et al., "Parallel multiscale autoregressive density estimation", 2017, eq. 1,
    figures 2 and 3. Departures: an image is doubled in both directions by one stream, not by a
    network for each; no shallow PixelCNN inside a group; a pixel's channels are ordered by the
    head; the small image's network, and D, are FlexGen's own.

    Example:
        >>> from flexgen.outputs import Bernoulli
        >>> p = MultiscalePixelCNN((1, 8, 8), Bernoulli(), channels=4, num_blocks=1)()
        >>> p.log_prob(p.sample((5,))).shape
        torch.Size([5])
    """

    doublings: "Sequence[_Doubling]"

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, *, num_doublings: int = 2,
        channels: int = 16, num_blocks: int = 3, first_kernel_size: int = 5, kernel_size: int = 3,
        dense_features: int = 0, dense_dropout: float = 0.0, dense_groups: Sequence[int] = (3,),
        base_features: int = 32, head_features: int | None = None, position_bias: bool = False,
        num_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(shape, output)
        colours, *sides = self.shape
        whole = 2 ** check_integer("num_doublings", num_doublings)
        if any(side % whole or side < 2 * whole for side in sides):
            raise ValueError(
                f"an image that is halved `num_doublings` = {num_doublings} times must have sides "
                f"that are multiples of {whole}, two or more, got {tuple(sides)}; set fewer, or "
                "take network=gated_pixelcnn"
            )
        check_integer("num_blocks", num_blocks)
        small = (colours, *(side // whole for side in sides))
        self.base = DensePixels(small, output, num_features=base_features, num_classes=num_classes)
        p, hidden = check_integer("channels", channels), head_features or channels
        first = reach_of("first_kernel_size", first_kernel_size)
        reach = reach_of("kernel_size", kernel_size)
        check_integer("dense_features", dense_features, 0)
        check_share("dense_dropout", dense_dropout)
        dense = check_sizes("dense_groups", dense_groups) or (3,)
        if max(dense) > 3:
            raise ValueError(
                f"`dense_groups` must be at most 3, as a doubling has, got {list(dense)}; set [3]"
            )
        doublings = [
            _Doubling(
                [PixelHead(colours, output, p, hidden) for _ in range(3)], self.num_seen, p,
                num_blocks, first, reach, dense_features and dense[k % len(dense)], dense_features,
                dense_dropout, self.base.context_size, [2**k * side // whole for side in sides],
                position_bias,
            )
            for k in range(num_doublings)
        ]  # fmt: skip
        self.doublings = nn.ModuleList(doublings)  # type: ignore[assignment]
        self.strides = [whole >> k for k in range(1, num_doublings + 1)]
        self.to(memory_format=torch.channels_last)

    def parameters_of(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen, maps, stride = self.output.seen(x), self.base.context_maps(context), self.stride
        small = seen[..., ::stride, ::stride]
        parameters: Tensor = self.base.head(self.base.features(small, maps), small)
        for doubling, stride in zip(self.doublings, self.strides, strict=True):
            parts = doubling(groups(seen, stride), maps)
            rows = [
                torch.stack(pair, -1).flatten(-2) for pair in ([parameters, parts[0]], parts[1:])
            ]
            parameters = torch.stack(rows, -2).flatten(-3, -2)
        return parameters

    @property
    def stride(self) -> int:
        """Of the smallest image."""
        return 2 * self.strides[0]

    def forward(self, context: Tensor | None = None) -> "MultiscalePixels":
        return MultiscalePixels(self, context)


def groups(images: Tensor, stride: int) -> list[Tensor]:
    """The four groups of every stride-th pixel, `(…, height / 2 stride, width / 2 stride)`."""
    return [images[..., i * stride :: 2 * stride, j * stride :: 2 * stride] for i, j in _PLACES]


class _Doubling(nn.Module):
    """The parameters of three groups, each of the groups before."""

    heads: Sequence[PixelHead]

    def __init__(
        self, heads: list[PixelHead], num_seen: int, p: int, num_blocks: int, first: int,
        reach: int, num_dense: int, dense: int, dropout: float, context_size: int,
        size: Sequence[int], position_bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        enter = [nn.Conv2d(num_seen, p, 2 * first + 1, padding=first) for _ in heads]
        scale_weights(*enter)
        self.enter = nn.ModuleList(enter)
        self.heads = nn.ModuleList(heads)  # type: ignore[assignment]
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Block(p, reach) for _ in range(num_blocks))) for _ in heads
        )
        self.dense = nn.ModuleList(
            _Dense(num_seen, dense, p, size, dropout) for _ in range(num_dense)
        )
        self.conditioner = None
        if context_size:
            self.conditioner = nn.Conv2d(context_size, len(heads) * p, 1, bias=False)
        self.position_bias = None
        if position_bias:
            self.position_bias = nn.Parameter(torch.zeros(1, len(heads) * p, *size))

    def shares(self, context: Tensor | None) -> Sequence[Tensor | None]:
        """What the context, and the place, add to the stream before each group."""
        added: Tensor | None = self.position_bias
        if self.conditioner is not None:
            of_context: Tensor = self.conditioner(context)
            added = of_context if added is None else of_context + added
        return [None] * len(self.heads) if added is None else added.chunk(len(self.heads), 1)

    def grow(self, k: int, h: Tensor | None, group: Tensor, share: Tensor | None) -> Tensor:
        """The stream once group k is known too."""
        group = group.contiguous()  # a convolution of a view, every other pixel, is slow
        own = self.enter[k](group)
        if k < len(self.dense):
            own = own + self.dense[k](group)
        own = own if share is None else own + share.to(own.dtype)
        grown: Tensor = self.blocks[k](own if h is None else own + h)
        return grown

    def forward(self, known: Sequence[Tensor], context: Tensor | None) -> list[Tensor]:
        h, parameters = None, []
        for k, share in enumerate(self.shares(context)):
            h = self.grow(k, h, known[k], share)
            parameters.append(self.heads[k](h, known[k + 1]))
        return parameters


class _Dense(nn.Module):
    """Maps `(n, p, *size)` of all that a group has, `(n, num_seen, *size)`."""

    def __init__(
        self, num_seen: int, hidden: int, p: int, size: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        pixels, self.dropout = math.prod(size), dropout
        self.first, self.last = nn.Linear(num_seen * pixels, hidden), nn.Linear(hidden, pixels * p)
        scale_weights(self.first, self.last)

    def forward(self, group: Tensor) -> Tensor:
        seen = functional.dropout(group.flatten(1), self.dropout, self.training)
        rows = self.last(functional.relu(self.first(seen)))
        maps: Tensor = rows.view(len(rows), *group.shape[2:], -1).permute(0, 3, 1, 2)
        return maps


class _Block(nn.Module):
    def __init__(self, p: int, reach: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(p, p, 2 * reach + 1, padding=reach)
        self.out = nn.Conv2d(p, p, 1)
        scale_weights(self.wide, self.out)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = h + self.out(functional.relu(self.wide(h)))
        return y


class MultiscalePixels(PixelProduct):
    """A multiscale network's distribution over images, whose draws take a pass for each group.

    Args:
        network: the multiscale network.
        context: labels, one for each image of a batch; None: none, no batch shape.
    """

    network: MultiscalePixelCNN

    @torch.no_grad()
    def sample(
        self, sample_shape: Sequence[int] = (), *, given: Tensor | None = None, known: int = 0,
        cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """Images `(*sample_shape, *batch, *shape)`, exact draws.

        With `given` the smaller image of its `known` pixels is kept, those at rows and columns that
        are multiples of a power of two, and the others are drawn from p(· | these).

        Args:
            sample_shape: how many.
            given: images that broadcast to the result.
            known: how many pixels of each are kept: all, those of one of the smaller images, or 0.
            cached: whether a group is drawn in one pass of its doubling; if not, each pixel and
                channel takes a pass through the whole network: the same draws.

        Raises:
            ValueError: if `known` is another number, or without `given`.
        """
        network, output = self.network, self.network.output
        shape, (channels, height, width) = (
            self._extended_shape(torch.Size(sample_shape)),
            network.shape,
        )
        sizes = {height * width // s**2: s for s in (network.stride, *network.strides)}
        if known and (known not in sizes or given is None):
            raise ValueError(
                f"`known` must be 0 or the pixels of a smaller image, one of {list(sizes)}, with "
                f"`given` images that hold them, got {known}; for a raster prefix take "
                "network=gated_pixelcnn"
            )
        weight, sets, n = network.base.head.first.weight, network.base.head.sets, shape[:-3].numel()
        x = weight.new_zeros(n, network.num_seen, height, width)
        stride = sizes.get(known, network.stride)
        small = x[..., ::stride, ::stride]
        if given is not None and known:
            kept = given.to(x).expand(shape).reshape(n, *network.shape)[..., ::stride, ::stride]
        else:
            kept = network.base(self.context).sample(sample_shape, cached=cached)
        small.copy_(output.seen(kept.reshape(n, channels, *small.shape[2:])))
        num_uniforms = output.num_uniforms(channels // sets)
        uniform = weight.new_empty(num_uniforms, sets, n, height, width).uniform_()
        noise = output.noise(uniform.movedim(0, -1)).movedim(-1, 0)
        draw = self._draw if cached else self._draw_naively
        context = self._of_rows(shape[:-3])
        with torch.inference_mode():
            draw(x, noise, stride, context)
        return output.data(x).view(shape)

    def _draw(self, x: Tensor, noise: Tensor, stride: int, context: Tensor | None) -> None:
        """Fill in `x (n, *shape)`, as the network sees it, but for every stride-th pixel."""
        network = self.network
        maps = network.base.context_maps(context)
        for doubling, finer in zip(network.doublings, network.strides, strict=True):
            if finer >= stride:
                continue
            known, own, h = groups(x, finer), groups(noise, finer), None
            for k, share in enumerate(doubling.shares(maps)):
                h = doubling.grow(k, h, known[k], share)
                features, group = h.transpose(0, 1).flatten(1), known[k + 1].transpose(0, 1)
                found, numbers = features.new_empty(1, *group.flatten(1).shape), own[k + 1]
                draw = doubling.heads[k].stepper(network.output, found)
                draw(0, features, numbers.flatten(2).movedim(0, -1).unbind())
                group.copy_(found.view(group.shape))

    def _draw_naively(self, x: Tensor, noise: Tensor, stride: int, context: Tensor | None) -> None:
        network = self.network
        (height, width), sets = network.shape[1:], noise.shape[1]
        for finer in (s for s in network.strides if s < stride):
            for i, j in _PLACES[1:]:
                rows = range(i * finer, height, 2 * finer)
                columns = range(j * finer, width, 2 * finer)
                for row, column in itertools.product(rows, columns):
                    pixel = x[:, :, row, column].mT.split(network.num_seen // sets)
                    for k, own in enumerate(pixel):
                        parameters = network.parameters_of(network.output.data(x), context)
                        network.output.draw(
                            parameters[:, k, :, row, column], noise[:, k, :, row, column].mT, own.mT
                        )
