"""Toy distributions in the plane, and the data module that samples them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_positive
from flexgen.data.module import SPLIT_SEED, DataModule
from flexgen.data.sampler import Purpose, generator
from flexgen.data.stream import Points, Split


class Toy:
    """A distribution to draw a data set from; write one dataclass to add a toy.

    Attributes:
        std: standard deviation of the noise in each coordinate.

    Raises:
        ValueError: if a field of the dataclass, all of which are sizes, is not above 0.
    """

    std: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_positive(name, value, f"set `data.distribution.{name}` to such a number")

    @property
    def centres(self) -> Tensor | None:
        """Means of the modes, `(modes, 2)`, or None where there are no modes."""
        return None

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw `x (n, 2)` and the index of each point's mode, `(n,)` or None."""
        raise NotImplementedError


class _Mixture(Toy):
    """Gaussians of equal weight."""

    @property
    def centres(self) -> Tensor:
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        centres = self.centres
        y = torch.randint(len(centres), (n,), generator=generator)
        return centres[y] + self.std * torch.randn(n, 2, generator=generator), y


@dataclass(frozen=True)
class Ring(_Mixture):
    """Gaussians of equal weight, evenly spaced on a circle, the first at angle 0.

    p(x) = 1/k Σᵢ N(x; r (cos 2πi/k, sin 2πi/k), std² I)

    Args:
        num_modes: number of Gaussians k.
        radius: radius r of the circle.
        std: standard deviation in each coordinate.
    """

    num_modes: int = 8
    radius: float = 0.8
    std: float = 0.02

    @property
    def centres(self) -> Tensor:
        angle = torch.arange(self.num_modes, dtype=torch.float64) * (2 * math.pi / self.num_modes)
        return (self.radius * torch.stack((angle.cos(), angle.sin()), dim=1)).float()


@dataclass(frozen=True)
class Grid(_Mixture):
    """Gaussians of equal weight on a square grid about the origin.

    The defaults are the usual 25 modes at (−4, −2, 0, 2, 4)² with standard deviation 0.05 (Lin et
    al., 2018, "PacGAN", section 4.1), all divided by 5 so that the modes lie in [−0.8, 0.8]².

    Args:
        side: modes along an edge, `side`² in all.
        spacing: distance between neighbouring modes.
        std: standard deviation in each coordinate.
    """

    side: int = 5
    spacing: float = 0.4
    std: float = 0.01

    @property
    def centres(self) -> Tensor:
        ticks = (torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2) * self.spacing
        return torch.cartesian_prod(ticks, ticks).float().view(-1, 2)


@dataclass(frozen=True)
class SwissRoll(Toy):
    """A noisy spiral: x = t/4.5π · (cos t, sin t) + ε with t uniform on [1.5π, 4.5π].

    The plane of Marsland's roll (as in scikit-learn), scaled so that its outer end has radius 1.

    Args:
        std: standard deviation of ε in each coordinate.
    """

    std: float = 0.02

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
        spiral = (t / (4.5 * math.pi)).unsqueeze(1) * torch.stack((t.cos(), t.sin()), dim=1)
        return spiral + self.std * torch.randn(n, 2, generator=generator), None


@dataclass(frozen=True)
class Line(Toy):
    """N(0, std²) on the line, of points `(1,)`: set `shape=[1]`.

    Args:
        std: standard deviation.
    """

    std: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return self.std * torch.randn(n, 1, generator=generator), None


class ToyData(DataModule):
    """A distribution in the plane, sampled once from a fixed seed and kept on the device.

    The sample is the same whatever the run's seed, as it is for a data set; train, validation and
    test are different draws.

    Args:
        distribution: what to sample.
        name: of the data set; with it `shape`, `batch_size` and `seed` are as in `DataModule`.
        range: None, for toys are not scaled.
        num_train: points to train on.
        num_validation: points to validate on.
        num_test: points to test on.

    Raises:
        ValueError: if an argument is out of bounds, or the points have another shape or are not
            finite.
    """

    def __init__(
        self,
        distribution: Toy,
        name: str = "toy",
        shape: Sequence[int] = (2,),
        range: None = None,
        batch_size: int = 500,
        seed: int = 0,
        num_train: int = 100_000,
        num_validation: int = 10_000,
        num_test: int = 10_000,
    ) -> None:
        super().__init__(name=name, shape=shape, range=range, batch_size=batch_size, seed=seed)
        if range is not None:
            raise ValueError(
                f"`range` must be null for {name}, whose points are not scaled, got {self.range}"
            )
        self.distribution = distribution
        self.sizes = {"train": num_train, "validation": num_validation, "test": num_test}
        for part, size in self.sizes.items():
            check_integer(f"num_{part}", size, 1, f"set `data.num_{part}`")
        self.centres, self.std = distribution.centres, distribution.std

    @property
    def num_classes(self) -> int | None:
        """Number of modes, or None where there are none."""
        return None if self.centres is None else len(self.centres)

    def _build(self) -> dict[str, Split]:
        splits: dict[str, Split] = {}
        for i, (part, size) in enumerate(self.sizes.items()):
            x, y = self.distribution.sample(size, generator(Purpose.TOY, SPLIT_SEED, i))
            if x.shape[1:] != self.shape or not x.is_floating_point():
                raise ValueError(
                    f"`shape` must equal that of the points of {self.name}, floats "
                    f"{self.shape}, got {x.dtype} {tuple(x.shape[1:])}; set `data.shape`"
                )
            if not x.isfinite().all():
                raise ValueError(
                    f"the {part} points of {self.name} hold NaN or infinity; "
                    "look at the sizes under `data.distribution`"
                )
            splits[part] = Points(x.float(), y)
        return splits


def ring8(num_modes: int = 8, radius: float = 0.8, std: float = 0.02, **options: Any) -> ToyData:
    """The ring of eight Gaussians as a data module; `options` are those of `ToyData`."""
    return ToyData(Ring(num_modes, radius, std), **{"name": "ring8", **options})
