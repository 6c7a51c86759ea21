"""A page of pairs: data above what a generator makes of their codes."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexgen.report.markup import Html, document, join, tag


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
    failed = sum(pair.failure is not None for pairs in groups.values() for pair in pairs)
    shown = sum(map(len, groups.values()))
    body = join(
        tag(
            "header",
            tag("div", "FlexGen reversal", class_="brand"),
            tag("h1", title),
            tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
        ),
        tag(
            "main",
            tag(
                "p",
                f"Each original stands above G(z) of its code, {shown} pairs in all; ",
                f"{failed} of them are marked as failures." if failed else "none of them failed.",
                class_="quiet",
            ),
            *(
                tag("section", tag("h2", name), _strip(pairs), id=f"pairs-{number}")
                for number, (name, pairs) in enumerate(groups.items())
            ),
        ),
        tag("footer", "Written by flexgen reverse. Everything on this page is in this file."),
    )
    return document(f"{title} · FlexGen", body, {"facts": dict(facts), "curves": {}})


def _strip(pairs: Sequence[Pair]) -> Html:
    narrow = (
        "grid-template-columns: repeat(auto-fill, minmax(min(92px, 22vw), 1fr)); gap: 14px 12px"
    )
    return tag("div", *map(_figure, pairs), class_="strip", style=narrow)


def _figure(pair: Pair) -> Html:
    picture = tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(pair.png).decode()}",
        alt=f"{pair.name} above its reconstruction",
        class_="pixels",
        loading="lazy",
    )
    caption = tag(
        "figcaption",
        tag("b", f"{pair.loss:.4g}"),
        pair.failure is not None and join(tag("br"), tag("span", pair.failure, class_="control")),
        tag("br"),
        pair.name,
    )
    return tag("figure", picture, caption, data_loss=pair.loss, data_failed=pair.failure or False)
