"""Schedules of the step size by name: a factor of it for each generator step that was made."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flexgen.checks import check_integer, check_share


class WarmupLR(LambdaLR):
    """The optimizer's step sizes after a warm-up, which all schedules here begin with.

    The first w generator steps take 1/(w + 1), 2/(w + 1), … of the step size; what follows is a
    function of the steps since then. A run that is resumed goes on at its step by the settings of
    its configuration, as a checkpoint holds none of them.

    Args:
        optimizer: whose groups keep their step sizes relative to each other.
        factor: of the step size, by the steps since the warm-up.
        warmup: generator steps w of the warm-up.

    Raises:
        ValueError: if `warmup` is below 0.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Callable[[int], float] = lambda step: 1.0, /, *,
        warmup: int = 0,
    ) -> None:  # fmt: skip
        check_integer("warmup", warmup, 0)

        # A function, for torch saves the attributes of any other callable.
        def scale(step: int) -> float:
            return (step + 1) / (warmup + 1) if step < warmup else factor(step - warmup)

        super().__init__(optimizer, scale)


class LinearLR(WarmupLR):
    """A straight line from the step size to a share e of it at the last step: 1 − (1 − e)·s/S.

    Args:
        optimizer: see :class:`WarmupLR`.
        steps: generator steps of the whole run, of which S come after the warm-up; afterwards the
            step size stays.
        warmup: see :class:`WarmupLR`.
        end: share of the step size at the end, in [0, 1].

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self, optimizer: Optimizer, *, steps: int, warmup: int = 0, end: float = 0.0
    ) -> None:
        check_share("end", end)
        share = _shares(steps, warmup)
        super().__init__(optimizer, lambda s: 1 - (1 - end) * share(s), warmup=warmup)


class CosineLR(WarmupLR):
    """Half a cosine from the step size to a share e of it: e + (1 − e)·(1 + cos(π·s/S))/2.

    Args and raises: as :class:`LinearLR`. Source: Loshchilov & Hutter, *SGDR*, 2017, equation 5,
    without restarts.
    """

    def __init__(
        self, optimizer: Optimizer, *, steps: int, warmup: int = 0, end: float = 0.0
    ) -> None:
        check_share("end", end)
        share = _shares(steps, warmup)

        def factor(step: int) -> float:
            return end + (1 - end) * (1 + math.cos(math.pi * share(step))) / 2

        super().__init__(optimizer, factor, warmup=warmup)


class StepLR(WarmupLR):
    """The step size times a factor after each so many generator steps: f^⌊s/every⌋.

    Args:
        optimizer: see :class:`WarmupLR`.
        every: generator steps between two changes.
        factor: f of each change, in [0, 1].
        warmup: see :class:`WarmupLR`.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self, optimizer: Optimizer, *, every: int, factor: float = 0.1, warmup: int = 0
    ) -> None:
        check_integer("every", every, 1, "it counts generator steps")
        check_share("factor", factor)
        super().__init__(optimizer, lambda s: factor ** (s // every), warmup=warmup)


def _shares(steps: int, warmup: int) -> Callable[[int], float]:
    """The share of the steps after the warm-up that were made, at most 1."""
    if check_integer("steps", steps, 1) <= check_integer("warmup", warmup, 0):
        raise ValueError(
            f"`warmup` must be below the {steps} steps of the schedule, got {warmup}; set "
            "`schedule.warmup=0`"
        )
    return lambda step: min(1.0, step / (steps - warmup))
