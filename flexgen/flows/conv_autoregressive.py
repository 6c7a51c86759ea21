"""Inverse autoregressive maps of maps, by masked convolutions."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import Cost
from flexgen.flows.transform import Mapped, Transform

# Of a network's outputs, so that a step starts near the identity.
_GAIN = 0.1


class ConvAutoregressive(Transform):
    r"""Inverse autoregressive steps on maps (IAF): base to z takes one pass.

    .. math:: z_i = (ε_i - m_i)\, e^{-s_i}, \quad (m_i, s_i) = 0.1\, f_i(ε_{<i}, c), \quad
        \log |\det ∂z/∂ε| = -\sum_i s_i

    f is a network of masked convolutions. A number may depend on those of the rows above its own,
    of the pixels to the left in its row, and of the channels before it in its pixel, within the
    kernels' reach; each further step takes everything in reverse. Codes are the maps flattened,
    channel by channel.

    The inverse, and so the density of a point from outside, takes a pass of the network for each
    number and step (`inverse_cost`).

    Args:
        shape: `(channels, height, width)` of a code.
        num_layers: how many steps, at least 1.
        hidden_channels: maps of each hidden layer of f, at least one layer; the first layer's are
            those of the context too.
        kernel_size: of each convolution, odd.
        use_context: whether f takes a context, maps of the code's size, flattened.

    Raises:
        ValueError: for sizes out of range, or an even kernel.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    Algorithm 1 and appendix (ResNet VAE), and the code that was published with it.

    Example:
        >>> flow = ConvAutoregressive((2, 4, 4), hidden_channels=[8])
        >>> z, ladj = flow(torch.randn(5, 32), torch.randn(5, 8 * 16))
        >>> z.shape, ladj.shape
        (torch.Size([5, 32]), torch.Size([5]))
    """

    inverse_cost = Cost.SEQUENTIAL

    def __init__(
        self, shape: Sequence[int], *, num_layers: int = 1,
        hidden_channels: Sequence[int] = (160, 160), kernel_size: int = 3, use_context: bool = True,
    ) -> None:  # fmt: skip
        channels, height, width = check_sizes("shape", shape)
        hidden = check_sizes("hidden_channels", hidden_channels)
        check_integer("num_layers", num_layers)
        if not hidden or kernel_size % 2 == 0:
            raise ValueError(
                f"`hidden_channels` must name at least one layer and `kernel_size` be odd, got "
                f"{list(hidden)} and {kernel_size}; use [160, 160] and 3"
            )
        context = hidden[0] * height * width if use_context else 0
        super().__init__(channels * height * width, context)
        self.shape = (channels, height, width)
        self.steps = nn.ModuleList(_Step(channels, hidden, kernel_size) for _ in range(num_layers))

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        batch, z, c = self._maps(eps, context)
        ladj = z.new_zeros(len(z))
        for k, step in enumerate(self.steps):
            flip = k % 2 == 1
            z = _turned(z) if flip else z
            m, s = step(z, None if c is None else _turned(c) if flip else c)
            z, ladj = (z - m) * (-s).exp(), ladj - s.flatten(1).sum(1)
            z = _turned(z) if flip else z
        return z.reshape(*batch, -1), ladj.view(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        batch, x, c = self._maps(z, context)
        ladj = x.new_zeros(len(x))
        for k, step in reversed(list(enumerate(self.steps))):
            flip = k % 2 == 1
            x = _turned(x) if flip else x
            given = None if c is None else _turned(c) if flip else c
            eps = torch.zeros_like(x)
            channels, height, width = self.shape
            for row, column, channel in itertools.product(*map(range, (height, width, channels))):
                m, s = step(eps, given)
                at = slice(None), channel, row, column
                found = x[at] * s[at].exp() + m[at]
                # Not in place, which transforms of torch.func do not all follow.
                place = torch.tensor([(channel * height + row) * width + column], device=x.device)
                eps = eps.flatten(1).index_copy(1, place, found[:, None]).view_as(x)
            ladj = ladj + step(eps, given)[1].flatten(1).sum(1)
            x = _turned(eps) if flip else eps
        return x.reshape(*batch, -1), ladj.view(batch)

    def _maps(
        self, code: Tensor, context: Tensor | None
    ) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch, and codes and context as maps of as many rows."""
        batch = code.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            context = context.expand(*batch, -1).reshape(math.prod(batch), -1, *self.shape[1:])
        return batch, code.expand(*batch, -1).reshape(-1, *self.shape), context


class _Step(nn.Module):
    """m and s of one step."""

    def __init__(self, channels: int, hidden: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        own = torch.arange(1, channels + 1)
        # How many channels of its own pixel each sees; those that see all are of later pixels.
        degrees = [own, *(torch.arange(h).remainder(channels).add(1) for h in hidden)]
        self.hidden = nn.ModuleList(
            _MaskedConvolution(above[:, None] >= below, kernel_size)
            for below, above in itertools.pairwise(degrees)
        )
        self.out = _MaskedConvolution(own.repeat(2)[:, None] > degrees[-1], kernel_size)

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        for k, layer in enumerate(self.hidden):
            x = layer(x)
            x = elu(x if k or context is None else x + context)
        m, s = (_GAIN * self.out(x)).chunk(2, 1)
        return m, s


class _MaskedConvolution(nn.Conv2d):
    """Of the rows above, the pixels to the left, and of its own pixel the channels of a mask."""

    mask: Tensor

    def __init__(self, centre: Tensor, kernel_size: int) -> None:
        cout, cin = centre.shape
        super().__init__(cin, cout, kernel_size, padding=kernel_size // 2)
        half = kernel_size // 2
        mask = torch.zeros(cout, cin, kernel_size, kernel_size)
        mask[:, :, :half] = 1
        mask[:, :, half, :half] = 1
        mask[:, :, half, half] = centre.float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def _turned(maps: Tensor) -> Tensor:
    """Rows, columns and channels in reverse."""
    return maps.flip(1, 2, 3)
