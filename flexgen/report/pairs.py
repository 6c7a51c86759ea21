"""A page of pairs: data above what a generator makes of their codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexgen.report.templating import render


@dataclass(frozen=True)
class Pair:
    """A sample above its reconstruction, a PNG; its name, its loss, whether its code converged, and
    what else there is of "psnr", "rmse" and "ssim"."""

    png: bytes
    name: str
    loss: float
    converged: bool
    errors: Mapping[str, float] = field(default_factory=dict)

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
        measured=any(pair.errors for pair in pairs),
        similar=any("ssim" in pair.errors for pair in pairs),
        data={"facts": dict(facts), "curves": {}},
    )  # fmt: skip
