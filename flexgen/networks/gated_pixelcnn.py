"""Gated PixelCNN: a vertical and a horizontal stack."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import PixelOutput
from flexgen.differentiation import differentiable_once
from flexgen.networks.pixel_cache import PixelCache, RowAbove, RowSoFar, of_columns, of_row
from flexgen.networks.pixels import PixelNetwork, reach_of, scale_weights


class GatedPixelCNN(PixelNetwork):
    r"""Two stacks of causal convolutions whose receptive field is all pixels before, no blind spot.

    Layer l makes of the vertical stack v, which sees the rows above, and of the horizontal one h,
    which sees them through v and its own row to the left,

    .. math:: a = W * v, \quad v' = v + g(a), \quad b = U * h + L a + V c, \quad h' = h + R\, g(b),
        \quad g(a_1, a_2) = \tfrac12 \tanh(a_1 / 2) ⊙ σ(a_2) = (σ(a_1) - \tfrac12) ⊙ σ(a_2)

    (c acts on v in the same way.) The first layer takes rows and columns before the pixel, with no
    residual; with `position_bias` its gates have a learned bias at each pixel. Kernels are cropped
    to their causal half: there is no mask, and no weight that one would hide. Both gates are one
    sigmoid; the factors ½ are the weights' affair.

    Args:
        channels: p, maps of a stack.
        num_layers: how many layers; 0: no pixel sees another, all are given the context alone.
        first_kernel_size: side of the first layer's kernel, odd.
        kernel_size: side of the others, odd.
        dilations: of each layer but the first, in turn; [1]: none.
        head_features: hidden units of the head; null: `channels`.
        position_bias: whether the first layer knows where a pixel lies. Without it only padding
            tells; where objects are centred, as MNIST's digits are, that costs nats.
        **pixels: see :class:`~flexgen.networks.pixels.PixelNetwork`.

    Raises:
        ValueError: for sizes out of range, a kernel of an even side, neither layers nor context, or
            a position bias without layers.

    Source: van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016,
    eq. 2 and 4, figure 2. Departures: the vertical stack has a residual connection too, and weights
    start at a scale that keeps the variance, without which likelihoods come much later; R has no
    bias; colours are ordered by the head; the position bias is FlexGen's own.

    Example:
        >>> from flexgen.outputs import Bernoulli
        >>> p = GatedPixelCNN((1, 8, 8), Bernoulli(), channels=4, num_layers=2)()
        >>> p.log_prob(p.sample((5,))).shape
        torch.Size([5])
    """

    layers: "Sequence[_Layer]"

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, *, channels: int = 32,
        num_layers: int = 7, first_kernel_size: int = 7, kernel_size: int = 3,
        dilations: Sequence[int] = (1,), head_features: int | None = None,
        position_bias: bool = False,
        num_classes: int | None = None, context_features: int = 0,
    ) -> None:  # fmt: skip
        p = check_integer("channels", channels)
        super().__init__(
            shape, output, p, head_features or p, num_classes=num_classes,
            context_features=context_features,
        )  # fmt: skip
        self.channels = p
        if check_integer("num_layers", num_layers, 0) == 0 and not self.context_size:
            raise ValueError(
                "without layers a pixel sees the context alone, and there is none; set "
                "`num_layers=1`, or `context_features`"
            )
        if position_bias and not num_layers:
            raise ValueError(
                "a position bias is of the first layer, and there is none; set `num_layers=1`, or "
                "`position_bias=false`"
            )
        first, reach = (
            reach_of("first_kernel_size", first_kernel_size),
            reach_of("kernel_size", kernel_size),
        )
        steps = check_sizes("dilations", dilations) or (1,)
        later = [
            _Layer(p, p, reach, steps[k % len(steps)], is_first=False)
            for k in range(num_layers - 1)
        ]
        layers = [_Layer(self.num_seen, p, first, 1, is_first=True), *later]
        self.layers = nn.ModuleList(layers[:num_layers])  # type: ignore[assignment]
        self.position_bias = None
        if position_bias:
            self.position_bias = nn.Parameter(torch.zeros(1, 4 * p, *self.shape[1:]))
        self.conditioner = None
        if self.context_size:
            maps = num_layers * 4 * p or p
            self.conditioner = nn.Conv2d(self.context_size, maps, 1, bias=False)
        self.to(memory_format=torch.channels_last)  # four fifths of a training step's time on a CPU

    def features(self, seen: Tensor, context: Tensor | None) -> Tensor:
        if not self.layers:
            return self._of_context(context)
        v = h = seen
        for layer, (of_v, of_h) in zip(self.layers, self.shares(context), strict=True):
            v, h = layer(v, h, of_v, of_h, last=layer is self.layers[-1])
        return h

    def shares(self, context: Tensor | None) -> list[tuple[Tensor | None, Tensor | None]]:
        """What the context, and the place, add to the gates of each layer, of v and of h."""
        parts: list[Tensor | None] = [None] * (2 * len(self.layers))
        if self.conditioner is not None:
            parts = list(self.conditioner(context).chunk(len(parts), 1))
        if self.position_bias is not None:
            own = self.position_bias.chunk(2, 1)
            parts[:2] = [a if b is None else a + b for a, b in zip(own, parts[:2], strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        return _Cache(self, n, context) if self.layers else _Known(self._of_context(context))

    def _of_context(self, context: Tensor | None) -> Tensor:
        """What a pixel is given that sees no other."""
        assert self.conditioner is not None
        maps: Tensor = self.conditioner(context)
        return maps.expand(-1, -1, *self.shape[1:])


def _rows(maps: Tensor) -> Tensor:
    """Maps as `(n · height · width, channels)`; a view of those whose channels lie together."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """The other way round."""
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


class _Gate(Function):
    """v + g(a) where there is a v to add to, and x + L a where there is an x.

    One node: in small networks passes over memory take the time, so what is added to is added to by
    the products themselves, and the gradients too.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, v: Tensor | None, weight: Tensor | None, x: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        rows, linked = _rows(a), None
        sigmoid = rows.sigmoid()
        # Of both halves, since of rows that are not side by side a difference, and addcmul, of
        # bfloat16 are five times slower.
        centred = (sigmoid - 0.5).chunk(2, 1)[0]
        gated = centred * sigmoid.chunk(2, 1)[1]
        if v is not None:
            gated += _rows(v)
        if weight is not None and x is not None:
            linked = _maps(torch.addmm(_rows(x), rows, weight.to(a.dtype).mT), a)
        ctx.save_for_backward(a, weight, sigmoid, centred)
        return _maps(gated, a), linked

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_x: Tensor | None) -> tuple[Tensor | None, ...]:
        a, weight, sigmoid, centred = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.no_grad():
            rows, of_sigmoid = _rows(grad), torch.empty_like(sigmoid)
            of_first, of_second = of_sigmoid.chunk(2, 1)
            torch.mul(rows, sigmoid.chunk(2, 1)[1], out=of_first)
            torch.mul(rows, centred, out=of_second)
            of_a, of_weight = torch.ops.aten.sigmoid_backward(of_sigmoid, sigmoid), None
            if weight is not None and of_x is not None:
                back = _rows(of_x)
                of_weight = (back.mT @ _rows(a)).to(weight.dtype)
                of_a.addmm_(back, weight.to(a.dtype))
        of_v = grad if ctx.needs_input_grad[1] else None
        grads = [_maps(of_a, grad), of_v, of_weight, of_x if weight is not None else None]
        if again:
            why = "a gated network has no second derivatives; take network=pixelcnn, which has"
            inputs = [tensor for tensor in (a, weight, grad, of_x) if tensor is not None]
            grads = differentiable_once(why, grads, inputs)
        return tuple(grads)


class _Layer(nn.Module):
    """One layer of both stacks; the first sees neither its own row nor its own column."""

    def __init__(self, cin: int, p: int, reach: int, dilation: int, is_first: bool) -> None:
        super().__init__()
        self.is_first, self.reach = is_first, reach * dilation
        own = 0 if is_first else 1
        self.vertical = nn.Conv2d(cin, 2 * p, (reach + own, 2 * reach + 1), dilation=dilation)
        self.horizontal = nn.Conv2d(cin, 2 * p, (1, reach + own), dilation=dilation)
        self.link = nn.Conv2d(2 * p, 2 * p, 1, bias=False)
        self.out = nn.Conv2d(p, p, 1, bias=False)
        scale_weights(self.vertical, self.horizontal, self.link, self.out)
        self.out.weight.data *= 2  # of a gate that lies in [-½, ½]

    def forward(
        self, v: Tensor, h: Tensor, of_v: Tensor | None, of_h: Tensor | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        r = self.reach
        above, left = (v[:, :, :-1], h[..., :-1]) if self.is_first else (v, h)
        a = self.vertical(functional.pad(above, (r, r, r, 0)))
        if of_v is not None:
            a = a + of_v.to(a.dtype)
        b = self.horizontal(functional.pad(left, (r, 0)))
        if of_h is not None:
            b = b + of_h.to(b.dtype)
        if last:
            b = b + self.link(a)
        else:
            v, b = _Gate.apply(a, None if self.is_first else v, self.link.weight.flatten(1), b)
        g = self.out(_Gate.apply(b, None, None, None)[0])
        return v, g if self.is_first else h + g


class _Known(PixelCache):
    """Features that no pixel changes, `(n, features, height, width)`."""

    def __init__(self, features: Tensor) -> None:
        self.rows = features.permute(2, 3, 1, 0)

    def start_row(self, row: int) -> None:
        self.row = self.rows[row]

    def features(self, column: int) -> Tensor:
        return self.row[column]

    def put(self, column: int, seen: Tensor) -> None: ...


class _Cache(PixelCache):
    """One vertical row of each layer, and of the row at work each layer's columns.

    A pixel takes four calls a layer, on views that were made before: its own convolution on top of
    the vertical stack's share, one sigmoid, the gate, the 1 × 1 on top of the residual.
    """

    def __init__(self, network: GatedPixelCNN, n: int, context: Tensor | None) -> None:
        weight, width, p = network.head.first.weight, network.shape[2], network.channels
        layers = list(network.layers)
        convs = [layer.horizontal for layer in layers]
        self.of_v, self.of_h = zip(*network.shares(context), strict=True)
        above = [RowAbove(layer.vertical, n, width, int(layer.is_first)) for layer in layers]
        links = [
            (of_columns(layer.horizontal)[0], layer.link.weight.flatten(1)) for layer in layers
        ]
        self.above, halves = above[0], [each.out.chunk(2) for each in above]
        self.vertical = list(zip(above, (each.out for each in above), halves, links, strict=True))
        self.rows = [
            RowSoFar(
                weight, conv.in_channels, n, width, conv.kernel_size[1], conv.dilation[1],
                shift=int(layer.is_first),
            )
            for layer, conv in zip(layers, convs, strict=True)
        ]  # fmt: skip
        self.b = weight.new_empty(2 * p, width * n)
        self.zero = weight.new_zeros(p, width, n)
        self.gates = weight.new_zeros(len(layers), width, 2 * p, n)
        outs = [*(row.column for row in self.rows[1:]), weight.new_zeros(width, p, n).unbind()]
        self.out, none = outs[-1], [weight.new_zeros(p, n)] * width
        # R (σ(b₁) − ½) σ(b₂) is a product with (σ(b₁) σ(b₂), σ(b₂)), which takes the gates' place.
        weights = [
            (conv.weight.squeeze(2).transpose(1, 2).flatten(1).contiguous(),
             torch.cat([out := layer.out.weight.flatten(1), -out / 2], 1))
            for layer, conv in zip(layers, convs, strict=True)
        ]  # fmt: skip
        # Of one image vectors, whose products take four fifths of the time of a column's.
        self.product = torch.addmv if n == 1 else torch.addmm
        # Of each column and layer: the gates with their halves, what the convolution takes, the
        # residual, the result, and both weights.
        views = [
            [gates.unbind(), *(half.unbind() for half in gates.chunk(2, 1)), row.taken,
             row.column if k else none, out]
            for k, (gates, row, out) in enumerate(zip(self.gates, self.rows, outs, strict=True))
        ]  # fmt: skip
        if n == 1:
            views = [[[view.squeeze(1) for view in each] for each in layer] for layer in views]
        self.steps = [
            [
                (*(each[j] for each in layer), *own)
                for layer, own in zip(views, weights, strict=True)
            ]
            for j in range(width)
        ]

    def start_row(self, row: int) -> None:
        if row:
            torch.stack(self.rows[0].column, 1, out=self.above.next())
        v = self.zero
        for k, (above, a, (first, second), (bias, link)) in enumerate(self.vertical):
            above()
            if (share := self.of_v[k]) is not None:
                a += of_row(share, row)
            torch.addmm(bias, link, a.flatten(1), out=self.b)
            if (share := self.of_h[k]) is not None:
                self.b.view_as(a).add_(of_row(share, row))
            self.gates[k].copy_(self.b.view_as(a).transpose(0, 1))
            if k + 1 < len(self.vertical):
                a.sigmoid_()
                grown = self.vertical[k + 1][0].next()
                v = torch.addcmul(v, first, second, out=grown).sub_(second, alpha=0.5)

    def features(self, column: int) -> Tensor:
        product = self.product
        for gates, first, second, taken, residual, out, kernel, weight in self.steps[column]:
            product(gates, kernel, taken, out=gates).sigmoid_()
            first.mul_(second)
            product(residual, weight, gates, out=out)
        return self.out[column]

    def put(self, column: int, seen: Tensor) -> None:
        self.rows[0].column[column].copy_(seen)
