"""A page of pairs: data above what a generator makes of their codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexgen.report.templating import render


@dataclass(frozen=True)
class Pair:
    """A sample above its reconstruction, a PNG; its name, its loss, whether its code converged."""

    png: bytes
    name: str
    loss: float
    converged: bool

    @property
    def failure(self) -> str | None:
        """What went wrong, if anything did."""
        if not math.isfinite(self.loss):
            return "loss not finite"
        return None if self.converged else "not converged"


def pairs_page(
    title: str, facts: Sequence[tuple[str, str]], groups: Mapping[str, Sequence[Pair]]
) -> str:
    """The page's HTML; it holds its images and asks for nothing from the network.

    Its head shows the facts, figures by name, its sections the groups of pairs, by their titles.
    """
    pairs = [pair for group in groups.values() for pair in group]
    failed = sum(pair.failure is not None for pair in pairs)
    return render(
        "pairs.html", title=title, facts=facts, groups=groups, shown=len(pairs), failed=failed,
        data={"facts": dict(facts), "curves": {}},
    )  # fmt: skip
