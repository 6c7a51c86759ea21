"""A page of pairs: data above what a generator makes of their codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexgen.report.templating import render


@dataclass(frozen=True)
class Pair:
    """A sample and its reconstruction.

    Attributes:
        png: a PNG file, the original above the reconstruction.
        name: what a person calls the sample.
        loss: its reconstruction loss.
        converged: whether its code settled.
    """

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

    Args:
        title: what was reversed.
        facts: figures by name, for the head.
        groups: pairs by the title of their section.
    """
    pairs = [pair for group in groups.values() for pair in group]
    return render(
        "pairs.html",
        title=title,
        facts=facts,
        groups=groups,
        shown=len(pairs),
        failed=sum(pair.failure is not None for pair in pairs),
        data={"facts": dict(facts), "curves": {}},
    )
