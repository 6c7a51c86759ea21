"""PixelCNN: residual blocks of causal convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import PixelOutput
from flexgen.networks.pixel_cache import PixelCache, RowAbove, RowSoFar, of_columns, of_row
from flexgen.networks.pixels import PixelNetwork, reach_of, scale_weights


class PixelCNN(PixelNetwork):
    r"""Causal convolutions, one of kernel 7 × 7 without its centre and residual blocks with it.

    .. math:: h' = h + W_3\, a(W_2 * a(W_1 a(h)) + V c), \quad a = \mathrm{ReLU}

    W₁ and W₃ are 1 × 1, W₂ is causal: rows above the pixel, and its own up to it (mask B); the
    first layer takes what is before the pixel alone (mask A). Kernels are cropped: there is no
    mask, and no weight that one would hide. What lies above and to the right of a pixel beyond the
    kernels' cone is never seen, however many layers there are: the blind spot that
    :class:`~flexgen.networks.GatedPixelCNN` does not have.

    Args:
        channels: p, maps inside a block; between blocks there are 2p.
        num_blocks: how many residual blocks.
        first_kernel_size: side of the first layer's kernel, odd.
        kernel_size: side of the blocks', odd.
        dilations: of each block, in turn, smaller than the image; [1]: none.
        head_features: hidden units of the head; null: 2p.
        **pixels: see :class:`~flexgen.networks.pixels.PixelNetwork`.

    Raises:
        ValueError: for sizes out of range, or a kernel of an even side.

    Source: van den Oord et al., "Pixel recurrent neural networks", 2016, section 3.4, table 1 and
    figure 5. Departures: colours are ordered by the head, not by masks in each layer.
    """

    blocks: "Sequence[_Block]"

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, *, channels: int = 32,
        num_blocks: int = 7, first_kernel_size: int = 7, kernel_size: int = 3,
        dilations: Sequence[int] = (1,), head_features: int | None = None,
        num_classes: int | None = None, context_features: int = 0,
    ) -> None:  # fmt: skip
        p = check_integer("channels", channels)
        super().__init__(
            shape, output, 2 * p, head_features or 2 * p, num_classes=num_classes,
            context_features=context_features,
        )  # fmt: skip
        check_integer("num_blocks", num_blocks)
        first = reach_of("first_kernel_size", first_kernel_size)
        reach = reach_of("kernel_size", kernel_size)
        steps = check_sizes("dilations", dilations) or (1,)
        if max(steps) >= min(self.shape[1:]):
            raise ValueError(
                f"`dilations` must be below the image's sides {self.shape[1:]}, got {list(steps)}"
            )
        self.first = CausalConv(self.num_seen, 2 * p, first, 1, centre=False)
        blocks = [_Block(p, reach, steps[k % len(steps)]) for k in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.conditioner = None
        if self.context_size:
            self.conditioner = nn.Conv2d(self.context_size, num_blocks * p, 1, bias=False)

    def features(self, seen: Tensor, context: Tensor | None) -> Tensor:
        h: Tensor = self.first(seen)
        for block, share in zip(self.blocks, self.shares(context), strict=True):
            h = block(h, share)
        return functional.relu(h)

    def shares(self, context: Tensor | None) -> Sequence[Tensor | None]:
        """The context's part in each block."""
        if self.conditioner is None:
            return [None] * len(self.blocks)
        parts: Sequence[Tensor] = self.conditioner(context).chunk(len(self.blocks), 1)
        return parts

    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        return _Cache(self, n, context)


class CausalConv(nn.Module):
    """A convolution of the rows above a pixel and of its own up to it, with or without it."""

    def __init__(self, cin: int, cout: int, reach: int, dilation: int, centre: bool) -> None:
        super().__init__()
        self.reach, self.dilation, self.centre = reach * dilation, dilation, centre
        self.above = nn.Conv2d(cin, cout, (reach, 2 * reach + 1), dilation=dilation)
        taps = (1, reach + int(centre))
        self.left = nn.Conv2d(cin, cout, taps, dilation=dilation, bias=False)
        scale_weights(self.above, self.left)

    def forward(self, x: Tensor) -> Tensor:
        r = self.reach
        above = functional.pad(x[:, :, : -self.dilation], (r, r, r, 0))
        left = functional.pad(x if self.centre else x[..., :-1], (r, 0))
        y: Tensor = self.above(above) + self.left(left)
        return y


class _Block(nn.Module):
    def __init__(self, p: int, reach: int, dilation: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(2 * p, p, 1)
        self.causal = CausalConv(p, p, reach, dilation, centre=True)
        self.wide = nn.Conv2d(p, 2 * p, 1)
        scale_weights(self.narrow, self.wide)

    def forward(self, h: Tensor, share: Tensor | None) -> Tensor:
        inner = self.causal(functional.relu(self.narrow(functional.relu(h))))
        if share is not None:
            inner = inner + share
        y: Tensor = h + self.wide(functional.relu(inner))
        return y


class _Cache(PixelCache):
    """Of each convolution the rows above that it takes, and of the row at work its columns."""

    def __init__(self, network: PixelCNN, n: int, context: Tensor | None) -> None:
        weight, width = network.head.first.weight, network.shape[2]
        causal = [network.first, *(block.causal for block in network.blocks)]
        self.above = [RowAbove(conv.above, n, width, conv.dilation) for conv in causal]
        self.rows = [
            RowSoFar(
                weight, conv.left.in_channels, n, width, conv.left.kernel_size[1], conv.dilation,
                shift=int(not conv.centre),
            )
            for conv in causal
        ]  # fmt: skip
        self.left = [conv.left.weight.squeeze(2).transpose(1, 2).flatten(1) for conv in causal]
        self.shares = [None, *network.shares(context)]
        # Of each convolution and column, what the rows above make of it.
        self.sums = [weight.new_zeros(width, conv.left.out_channels, n) for conv in causal]
        self.blocks = [(*of_columns(b.narrow), *of_columns(b.wide)) for b in network.blocks]

    def start_row(self, row: int) -> None:
        for above, so_far, sums, share in zip(
            self.above, self.rows, self.sums, self.shares, strict=True
        ):
            if row:
                torch.stack(so_far.column, 1, out=above.next())
            sums.copy_(above().transpose(0, 1))
            if share is not None:
                sums += of_row(share, row).transpose(0, 1)

    def features(self, column: int) -> Tensor:
        h = self.sums[0][column].addmm_(self.left[0], self.rows[0].taken[column])
        for k, (narrow_bias, narrow, wide_bias, wide) in enumerate(self.blocks, 1):
            row = self.rows[k]
            torch.addmm(narrow_bias, narrow, h.relu(), out=row.column[column]).relu_()
            inner = self.sums[k][column].addmm_(self.left[k], row.taken[column]).relu_()
            h = torch.addmm(h, wide, inner).add_(wide_bias)
        return h.relu_()

    def put(self, column: int, seen: Tensor) -> None:
        self.rows[0].column[column].copy_(seen)
