"""What has been done so far, and when the next thing is due, both in FlexGen's own steps."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from flexgen.checks import check_integer


@dataclass
class Counters:
    """Steps of a run, saved in its checkpoints and logged with every value.

    Lightning's `global_step` adds up every optimizer's steps and is never shown.

    Attributes:
        batches: batches of data taken by each process; the position of its stream.
        critic_steps: steps of the critic's optimizer.
        generator_steps: steps of the generator's optimizer, the unit of every schedule.
        images_seen: images of data seen, over all processes.
        critic_phase: critic steps taken since the last generator step.
    """

    batches: int = 0
    critic_steps: int = 0
    generator_steps: int = 0
    images_seen: int = 0
    critic_phase: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        for field in fields(self):
            setattr(self, field.name, int(state[field.name]))

    def axes(self) -> dict[str, int]:
        """The counters that are logged beside each value."""
        return {name: n for name, n in asdict(self).items() if name != "critic_phase"}


class Schedule:
    """The generator steps at which something is due.

    Training runs many updates in a row without leaving its inner loop, which is what makes it
    fast; whoever must act at a step registers it here, and the loop stops exactly there.

    Attributes:
        end: the last generator step of the run; None: it runs until it is stopped.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self._periods: set[int] = set()
        self._points: set[int] = set()

    def register(self, every: int | None = None, at: Iterable[int] = ()) -> None:
        """Stop at every multiple of `every`, and at each step in `at`.

        Raises:
            ValueError: for a period or a point under 1.
        """
        at = set(at)
        if every is not None:
            self._periods.add(check_integer("every", every, 1, "it counts generator steps"))
        if any(point < 1 for point in at):
            raise ValueError(f"`at` must hold generator steps of at least 1, got {sorted(at)}")
        self._points |= at

    def next_after(self, step: int) -> float:
        """The first due step after `step`; infinity if nothing is ever due again."""
        periodic = ((step // every + 1) * every for every in self._periods)
        points = self._points if self.end is None else self._points | {self.end}
        return min((*periodic, *(p for p in points if p > step)), default=math.inf)
