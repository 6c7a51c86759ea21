"""Binary images: thresholds for a Bernoulli draw, a fixed draw of a split, and Larochelle's files.

x ~ B(v / 255) of a grey value v in {0, …, 255} is x = 1 where v > u, with u uniform on {0, …, 254}.
The draw is exact in whole numbers: black is never on, white always, and what is binary already
stays as it is. Binary images are held as 0 and 255, so that all else treats them as images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import check_one_of
from flexgen.data.datasets import Origin
from flexgen.data.sampler import Purpose, thresholds
from flexgen.data.sources import Pixels, Source
from flexgen.data.stream import Split


def check_binarise(
    binarise: str | None, shape: Sequence[int], range: Sequence[float] | None
) -> None:
    """Refuse what cannot be binarised, or in no such way.

    Raises:
        ValueError: if `binarise` is not null, static or dynamic, or the images have not one channel
            in the range (0, 1).
    """
    check_one_of("binarise", binarise, (None, "static", "dynamic"))
    if binarise is None:
        return
    if len(shape) != 3 or shape[0] != 1:
        size = f"{shape[1]},{shape[2]}" if len(shape) == 3 else "28,28"
        raise ValueError(
            f"`shape` must have 1 channel with `binarise`, got {tuple(shape)}; "
            f"set `data.shape=[1,{size}]` or `data.binarise=null`"
        )
    if range is None or tuple(range) != (0, 1):
        got = None if range is None else list(range)
        raise ValueError(
            f"`range` must be [0, 1] with `binarise`, got {got}; set `data.range=[0,1]`"
        )


_BLOCK = 64
"""Images whose static draws come from one generator: to seed one costs as much as to draw 50 KB."""


class StaticDraw:
    """A split binarised once and for all: each image's draw is a function of (key, number).

    Args:
        grey: the split.
        numbers: a number for each of its images, `(n,)`, the same in every split that it is in.
        key: what else the draw depends on.
    """

    def __init__(self, grey: Split, numbers: Tensor, *key: int) -> None:
        self.grey, self.numbers, self.key = grey, numbers, key

    @property
    def labels(self) -> Tensor | None:
        return self.grey.labels

    def __len__(self) -> int:
        return len(self.grey)

    def read(self, index: Tensor) -> Tensor:
        x = self.grey.read(index)
        block, place = self.numbers[index] // _BLOCK, self.numbers[index] % _BLOCK
        for b in block.unique().tolist():
            rows = (block == b).nonzero().squeeze(1)
            u = thresholds((_BLOCK, *x.shape[1:]), Purpose.STATIC, *self.key, b)
            x[rows] = (x[rows] > u[place[rows]]).to(torch.uint8) * 255
        return x


@dataclass(frozen=True)
class Larochelle(Origin):
    """The static binarisation of MNIST by Larochelle & Murray, 2011: text, an image a line.

    Args:
        files: a file for each part, inside `root`, and its number of images.
    """

    files: Sequence[tuple[str, str, int]]

    def read(self, root: Path) -> dict[str, Source]:
        return {
            part: Pixels(read_amat(root / file, num, 784).view(-1, 1, 28, 28), None, file)
            for part, file, num in self.files
        }


def read_amat(path: Path, num_rows: int, num_columns: int) -> Tensor:
    """Zeros and ones of a text file, as uint8 `(num_rows, num_columns)` of 0 and 255.

    It is read line by line, so that no more than the result is in memory.

    Args:
        path: the file; values are separated by white space.
        num_rows: lines that it must have.
        num_columns: values that each line must have.

    Raises:
        ValueError: if the number of lines or values is another, or a value is neither 0 nor 1.
    """
    x = np.empty((num_rows, num_columns), np.uint8)
    num = 0
    with open(path, "rb") as lines:
        for num, line in enumerate(lines, 1):
            values = line.split()
            if len(values) != num_columns:
                raise _damaged(path, f"{num_columns} values in line {num}", len(values))
            if not {*values} <= {b"0", b"1"}:
                wrong = next(v for v in values if v not in (b"0", b"1"))
                raise _damaged(path, f"zeros and ones in line {num}", wrong[:20].decode("latin1"))
            if num <= num_rows:
                x[num - 1] = np.frombuffer(b"".join(values), np.uint8)
    if num != num_rows:
        raise _damaged(path, f"{num_rows} lines", num)
    x -= ord("0")
    x *= 255
    return torch.from_numpy(x)


def _damaged(path: Path, expected: str, found: object) -> ValueError:
    return ValueError(
        f"{path} must have {expected}, got {found}; it is cut short or another file: fetch it "
        "again, or remove it"
    )
