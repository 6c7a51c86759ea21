"""What a pixel network keeps from pixel to pixel while it draws; vectors are columns."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PixelCache(ABC):
    """A network's activations for n images at once, as far as their pixels are known.

    A vector is a column: features are `(features, n)`. Rows are gone through from the top, and in
    each the columns from the left: `features` of one, then `put` what was drawn there.
    """

    @abstractmethod
    def start_row(self, row: int) -> None:
        """Take in that all rows above are known."""

    @abstractmethod
    def features(self, column: int) -> Tensor:
        """Of a pixel of this row, once all before it are known; `(features, n)`."""

    @abstractmethod
    def put(self, column: int, seen: Tensor) -> None:
        """A pixel's channels `(channels, n)`, as the network sees them."""


class RowAbove:
    """A convolution over rows that are known, one row of its image at a time.

    Args:
        conv: of kernel `(rows, columns)`; its own padding does not count.
        n: images.
        width: of a row.
        shift: by how many rows the last that it takes lies above its image's: 0, or its dilation.
    """

    def __init__(self, conv: nn.Conv2d, n: int, width: int, shift: int) -> None:
        (kernel, wide), (step, aside) = conv.kernel_size, conv.dilation
        latest = min(shift, 1)  # the row above is the latest that is known, or the row itself
        back = [shift - latest + k * step for k in range(kernel)][::-1]
        side, size = (wide - 1) * aside // 2, back[0] + 1
        rows = conv.weight.new_zeros(size, conv.in_channels, width + 2 * side, n)
        # The latest row takes the place of the oldest: of each place a view, and what is taken.
        self.places = [row[:, side : side + width] for row in rows]
        self.taken = [
            [rows[place - k][:, j * aside : j * aside + width] for k in back for j in range(wide)]
            for place in range(size)
        ]
        self.place = size - 1
        self.weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
        bias = conv.bias if conv.bias is not None else rows.new_zeros(conv.out_channels)
        self.bias = bias[:, None]
        # Memory that is asked for anew goes back to the system each time, and costs as much.
        self.x = rows.new_empty(self.weight.shape[1], width, n)
        self.out = rows.new_zeros(conv.out_channels, width, n)
        self._x, self._out = self.x.flatten(1), self.out.flatten(1)

    def next(self) -> Tensor:
        """Where the next row that is known goes, `(in, width, n)`."""
        self.place = (self.place + 1) % len(self.places)
        return self.places[self.place]

    def __call__(self) -> Tensor:
        """The next row of the image, `(out, width, n)`, good until the next call."""
        torch.cat(self.taken[self.place], out=self.x)
        torch.addmm(self.bias, self.weight, self._x, out=self._out)
        return self.out


class RowSoFar:
    """The columns of a row that are known, where a convolution's taps lie side by side.

    Args:
        like: of its type and device.
        channels: of a column.
        n: images.
        width: of the row.
        taps: of the kernel.
        dilation: columns from tap to tap.
        shift: 0, or 1 if the last tap is not the column itself but the one before.

    Attributes:
        column: of each column a view, to be filled in.
        taken: of each column what the convolution takes, `(taps · channels, n)`.
    """

    def __init__(
        self, like: Tensor, channels: int, n: int, width: int, taps: int, dilation: int = 1,
        shift: int = 0,
    ) -> None:  # fmt: skip
        # Every dilation-th column is stored together, after zeros left of the image.
        left = taps - 1 + shift
        length = -(-width // dilation) + left
        store = like.new_zeros(dilation, length, channels, n)
        columns = [row[left:].unbind() for row in store]
        windows = [row.flatten(0, 1).unfold(0, taps * channels, channels) for row in store]
        taken = [of_row.mT.unbind() for of_row in windows]  # a view each, all made in one call
        places = [(j % dilation, j // dilation) for j in range(width)]
        self.column = [columns[k][at] for k, at in places]
        self.taken = [taken[k][at] for k, at in places]

    def row(self) -> Tensor:
        """All columns, `(channels, width, n)`."""
        return torch.stack(self.column, 1)


def of_row(maps: Tensor, row: int) -> Tensor:
    """A row `(c, width or 1, n)` of maps `(n, c, height or 1, width or 1)`."""
    return maps[:, :, min(row, maps.shape[2] - 1)].permute(1, 2, 0)


def of_columns(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The bias `(out, 1)` and the weight `(out, in)` that make a 1 × 1 convolution of columns."""
    assert conv.bias is not None
    return conv.bias[:, None], conv.weight.flatten(1)
