"""PixelRNN: LSTMs that go down an image's rows, or along its diagonals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.checks import check_integer
from flexgen.contracts import PixelOutput
from flexgen.networks.layers import image_shape
from flexgen.networks.pixel_cache import PixelCache, RowAbove, RowSoFar, of_columns, of_row
from flexgen.networks.pixelcnn import CausalConv
from flexgen.networks.pixels import PixelNetwork, reach_of, scale_weights


class _PixelRNN(PixelNetwork):
    """What both have: a first convolution of what is before a pixel, and residual LSTM layers."""

    layers: "Sequence[Any]"

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, p: int, layers: Sequence[nn.Module],
        gates: int, first_kernel_size: int, head_features: int | None, **context: int | None,
    ) -> None:  # fmt: skip
        super().__init__(shape, output, 2 * p, head_features or 2 * p, **context)  # type: ignore[arg-type]
        first = reach_of("first_kernel_size", first_kernel_size)
        self.first = CausalConv(self.num_seen, 2 * p, first, 1, centre=False)
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.conditioner = None
        if self.context_size:
            self.conditioner = nn.Conv2d(self.context_size, len(layers) * gates, 1, bias=False)

    def features(self, seen: Tensor, context: Tensor | None) -> Tensor:
        x: Tensor = self.first(seen)
        for layer, share in zip(self.layers, self.shares(context), strict=True):
            x = x + layer.out(layer(x, seen, share))
        return functional.relu(x)

    def shares(self, context: Tensor | None) -> Sequence[Tensor | None]:
        """The context's part in the gates of each layer."""
        if self.conditioner is None:
            return [None] * len(self.layers)
        parts: Sequence[Tensor] = self.conditioner(context).chunk(len(self.layers), 1)
        return parts


class RowLSTM(_PixelRNN):
    r"""Layers of LSTMs that go down the rows, all columns of a row at once.

    Row i of a layer has, with its input x and * along the row,

    .. math:: o, f, u, g = σ, σ, σ, \tanh\,(K * h_{i-1} + L * x_i + V c), \quad
        s_i = f ⊙ s_{i-1} + u ⊙ g, \quad h_i = o ⊙ \tanh s_i, \quad x'_i = x_i + R\, h_i

    L takes the pixel and those to its left, K both sides of it in the row above, so that the
    context is a triangle above the pixel. The first layer is a convolution of what is before the
    pixel.

    Args:
        channels: p, size of h; between layers there are 2p maps.
        num_layers: LSTM layers.
        first_kernel_size: side of the first convolution's kernel, odd.
        kernel_size: of K, odd; L has the half of it that is known.
        head_features: hidden units of the head; null: 2p.
        **pixels: see :class:`~flexgen.networks.pixels.PixelNetwork`.

    Raises:
        ValueError: for sizes out of range, or a kernel of an even side.

    Source: van den Oord et al., "Pixel recurrent neural networks", 2016, section 3.1, eq. 3,
    table 1 and figure 5. Departures: kernels are cropped to their causal half instead of masked; f
    starts at σ(1); colours are ordered by the head.
    """

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, *, channels: int = 16,
        num_layers: int = 3, first_kernel_size: int = 7, kernel_size: int = 3,
        head_features: int | None = None, num_classes: int | None = None,
        context_features: int = 0,
    ) -> None:  # fmt: skip
        p, reach = check_integer("channels", channels), reach_of("kernel_size", kernel_size)
        layers = [_RowLayer(p, reach) for _ in range(check_integer("num_layers", num_layers))]
        super().__init__(
            shape, output, p, layers, 4 * p, first_kernel_size, head_features,
            num_classes=num_classes, context_features=context_features,
        )  # fmt: skip

    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        return _RowCache(self, n, context)


class DiagonalBiLSTM(_PixelRNN):
    r"""Layers of two LSTMs along the diagonals: the context is all pixels before, in every layer.

    The one from the left has at row i and column j

    .. math:: o, f, u, g = σ, σ, σ, \tanh\,(K_1 h_{i-1,j} + K_2 h_{i,j-1} + L x_{ij} + V c), \quad
        s_{ij} = f ⊙ s_{i,j-1} + u ⊙ g, \quad h_{ij} = o ⊙ \tanh s_{ij}

    and the one from the right, h̄, the same with j + 1 for j − 1. All of a diagonal i + j is done at
    once, on the map skewed by one column a row. To a pixel h̄ is that of the row above, so that it
    sees nothing to the pixel's right: $x'_{ij} = x_{ij} + R\,(h_{ij} + \bar h_{i-1,j})$. The first
    layer is a convolution of what is before the pixel.

    Args:
        channels: p, size of h; between layers there are 2p maps.
        num_layers: layers of two LSTMs.
        first_kernel_size: side of the first convolution's kernel, odd.
        head_features: hidden units of the head; null: 2p.
        **pixels: see :class:`~flexgen.networks.pixels.PixelNetwork`.

    Raises:
        ValueError: for sizes out of range, or a kernel of an even side.

    Source: van den Oord et al., "Pixel recurrent neural networks", 2016, section 3.2, figure 3 and
    table 1. Departures: in the first layer h̄ takes a pixel's own channels too, as what it gives is
    used one row below; without them the last pixel of the row above is seen by those near it alone.
    f starts at σ(1); colours are ordered by the head.
    """

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, *, channels: int = 16,
        num_layers: int = 3, first_kernel_size: int = 7, head_features: int | None = None,
        num_classes: int | None = None, context_features: int = 0,
    ) -> None:  # fmt: skip
        p, num_layers = check_integer("channels", channels), check_integer("num_layers", num_layers)
        layers = [_DiagonalLayer(p, 0 if k else image_shape(shape)[0]) for k in range(num_layers)]
        super().__init__(
            shape, output, p, layers, 8 * p, first_kernel_size, head_features,
            num_classes=num_classes, context_features=context_features,
        )  # fmt: skip

    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        return _DiagonalCache(self, n, context)


def _cell(gates: Tensor, s: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """h and s of a step."""
    o, f, u, g = gates.chunk(4, dim)
    s = f.sigmoid() * s + u.sigmoid() * g.tanh()
    return o.sigmoid() * s.tanh(), s


def _forget_little(bias: Tensor, p: int) -> None:
    """Set what f starts from, of gates or of several LSTMs' gates."""
    bias.data.view(-1, 4, p)[:, 1] = 1


class _RowLayer(nn.Module):
    def __init__(self, p: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.input = nn.Conv2d(2 * p, 4 * p, (1, reach + 1))
        self.state = nn.Conv2d(p, 4 * p, (1, 2 * reach + 1), padding=(0, reach), bias=False)
        self.out = nn.Conv2d(p, 2 * p, 1)
        scale_weights(self.input, self.state, self.out)
        _forget_little(self.input.bias, p)  # type: ignore[arg-type]

    def forward(self, x: Tensor, seen: Tensor, share: Tensor | None) -> Tensor:
        gates = self.input(functional.pad(x, (self.reach, 0)))
        if share is not None:
            gates = gates + share
        s = gates[:, : self.state.in_channels, :1] * 0
        rows: list[Tensor] = []
        for row in gates.split(1, 2):
            h, s = _cell(row + self.state(rows[-1]) if rows else row, s, 1)
            rows.append(h)
        return torch.cat(rows, 2)


class _DiagonalLayer(nn.Module):
    """Two LSTMs; `colours` of a pixel are taken by that from the right too."""

    def __init__(self, p: int, colours: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(2 * p, 8 * p, 1)
        self.own = nn.Conv2d(colours, 4 * p, 1, bias=False) if colours else None
        # Of each direction K₁ and K₂.
        self.states = nn.ModuleList(nn.Linear(2 * p, 4 * p, bias=False) for _ in range(2))
        self.out = nn.Conv2d(p, 2 * p, 1)
        scale_weights(self.input, self.out)
        _forget_little(self.input.bias, p)  # type: ignore[arg-type]

    def forward(self, x: Tensor, seen: Tensor, share: Tensor | None) -> Tensor:
        gates = self.input(x)
        if share is not None:
            gates = gates + share
        from_left, from_right = gates.chunk(2, 1)
        if self.own is not None:
            from_right = from_right + self.own(seen)
        left = self._scan(from_left, self.states[0])
        right = self._scan(from_right.flip(3), self.states[1]).flip(3)
        return left + functional.pad(right[:, :, :-1], (0, 0, 1, 0))

    def _scan(self, gates: Tensor, state: nn.Module) -> Tensor:
        """h `(n, p, height, width)` of an LSTM from the left, diagonal by diagonal.

        Left of the image gates are 0, which keeps s and h at 0; what is right of it reaches no
        pixel.
        """
        height, width = gates.shape[2:]
        skewed = functional.pad(gates, (0, height)).flatten(2)[..., :-height]
        diagonals = skewed.unflatten(2, (height, -1)).permute(3, 0, 2, 1).contiguous()
        hs = []
        h = s = diagonals[0].chunk(4, -1)[0] * 0
        for gates in diagonals:
            above = functional.pad(h[:, :-1], (0, 0, 1, 0))
            h, s = _cell(gates + state(torch.cat([above, h], -1)), s, -1)
            hs.append(h)
        skewed = torch.stack(hs).permute(1, 3, 2, 0).flatten(2)
        return functional.pad(skewed, (0, height)).unflatten(2, (height, -1))[..., :width]


class _FirstRows:
    """The first convolution of a network, a pixel at a time."""

    def __init__(self, network: _PixelRNN, n: int) -> None:
        conv, width, weight = network.first, network.shape[2], network.head.first.weight
        self.above = RowAbove(conv.above, n, width, 1)
        taps = conv.left.kernel_size[1]
        self.row = RowSoFar(weight, conv.left.in_channels, n, width, taps, shift=1)
        self.left = conv.left.weight.squeeze(2).transpose(1, 2).flatten(1)

    def start(self, row: int) -> None:
        if row:
            torch.stack(self.row.column, 1, out=self.above.next())
        self.sums = self.above()

    def __call__(self, column: int) -> Tensor:
        return torch.addmm(self.sums[:, column], self.left, self.row.taken[column])


class _RowCache(PixelCache):
    """Of each layer the gates' share of the row above, s of the row above, h of the row at work."""

    def __init__(self, network: RowLSTM, n: int, context: Tensor | None) -> None:
        self.first = _FirstRows(network, n)
        weight, width, layers = network.head.first.weight, network.shape[2], network.layers
        self.shares = network.shares(context)
        p = layers[0].state.in_channels
        self.states = [RowAbove(layer.state, n, width, 1) for layer in layers]
        self.rows = [RowSoFar(weight, 2 * p, n, width, layer.reach + 1) for layer in layers]
        self.bias = [layer.input.bias[:, None, None] for layer in layers]
        self.input = [layer.input.weight.squeeze(2).transpose(1, 2).flatten(1) for layer in layers]
        self.out = [of_columns(layer.out) for layer in layers]
        self.h, self.s = weight.new_zeros(2, len(layers), width, p, n)
        self.gates = weight.new_zeros(len(layers), width, 4 * p, n)

    def start_row(self, row: int) -> None:
        self.first.start(row)
        for k, state in enumerate(self.states):
            if row:
                state.next().copy_(self.h[k].transpose(0, 1))
            gates = state() + self.bias[k]
            if (share := self.shares[k]) is not None:
                gates += of_row(share, row)
            self.gates[k].copy_(gates.transpose(0, 1))

    def features(self, column: int) -> Tensor:
        x = self.first(column)
        for k, (weight, (bias, out)) in enumerate(zip(self.input, self.out, strict=True)):
            self.rows[k].column[column].copy_(x)
            gates = self.gates[k, column].addmm_(weight, self.rows[k].taken[column])
            h, self.s[k, column] = _cell(gates, self.s[k, column], 0)
            self.h[k, column] = h
            x = torch.addmm(x, out, h).add_(bias)
        return x.relu_()

    def put(self, column: int, seen: Tensor) -> None:
        self.first.row.column[column].copy_(seen)


class _DiagonalCache(PixelCache):
    """Of each layer h from the left along the row at work and above it, h̄ of the row above."""

    def __init__(self, network: DiagonalBiLSTM, n: int, context: Tensor | None) -> None:
        self.first = _FirstRows(network, n)
        weight, self.width, layers = network.head.first.weight, network.shape[2], network.layers
        self.shares = network.shares(context)
        p, num = layers[0].out.in_channels, len(layers)
        self.own = layers[0].own.weight.flatten(1)
        self.input = [of_columns(layer.input) for layer in layers]
        # Of each layer and direction.
        self.above = [[state.weight[:, :p] for state in layer.states] for layer in layers]
        self.beside = [[state.weight[:, p:] for state in layer.states] for layer in layers]
        self.out = [of_columns(layer.out) for layer in layers]
        self.x = weight.new_zeros(num, 2 * p, self.width, n)
        self.left, self.right = weight.new_zeros(2, num, p, self.width, n)
        self.gates = weight.new_zeros(num, 4 * p, self.width, n)
        self.s = weight.new_zeros(num, p, n)
        self.zero = weight.new_zeros(p, n)

    def start_row(self, row: int) -> None:
        self.first.start(row)
        for k, (bias, _) in enumerate(self.input):
            if row:
                self._go_back(k, row - 1)
            self.gates[k] = self._of_above(k, 0, self.left[k], bias, row)
        self.s.zero_()

    def _of_above(self, k: int, direction: int, h: Tensor, bias: Tensor, row: int) -> Tensor:
        """What the row above, the bias and the context make of a row's gates, `(4p, width, n)`."""
        gates = (self.above[k][direction] @ h.flatten(1)).unflatten(1, h.shape[1:])
        gates += bias.chunk(2)[direction][:, None]
        if (share := self.shares[k]) is not None:
            gates += of_row(share.chunk(2, 1)[direction], row)
        return gates

    def _go_back(self, k: int, row: int) -> None:
        """h̄ of a row that is known whole, in the place of that of the row above it."""
        bias, weight = self.input[k]
        gates = self._of_above(k, 1, self.right[k], bias, row)
        gates.flatten(1).addmm_(weight.chunk(2)[1], self.x[k].flatten(1))
        if k == 0:
            gates.flatten(1).addmm_(self.own, self.first.row.row().flatten(1))
        h = s = self.zero
        for column in range(self.width - 1, -1, -1):
            h, s = _cell(torch.addmm(gates[:, column], self.beside[k][1], h), s, 0)
            self.right[k, :, column] = h

    def features(self, column: int) -> Tensor:
        x = self.first(column)
        for k, ((_, weight), (bias, out)) in enumerate(zip(self.input, self.out, strict=True)):
            self.x[k, :, column] = x
            before = self.left[k, :, column - 1] if column else self.zero
            gates = torch.addmm(self.gates[k, :, column], weight.chunk(2)[0], x)
            h, self.s[k] = _cell(gates.addmm_(self.beside[k][0], before), self.s[k], 0)
            self.left[k, :, column] = h
            x = torch.addmm(x, out, h + self.right[k, :, column]).add_(bias)
        return x.relu_()

    def put(self, column: int, seen: Tensor) -> None:
        self.first.row.column[column].copy_(seen)
