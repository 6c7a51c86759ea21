"""HTML built from calls, so that what is not markup is escaped, and the frame of every page."""

import base64
import hashlib
import html
import json
import math
import re
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

_VOID = {"img", "meta", "br", "circle", "line", "path", "polygon", "rect"}

# A place in the page, an image in it, or a file below it; no `javascript:`, whoever named a folder.
_LINK = re.compile(r"#|data:image/png;base64,|[^:/?#\\][^:\\]*$")


class Html(str):
    """Text that is markup already; every other string is escaped where it enters a page."""


def tag(name: str, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        name: the element's name.
        children: `Html` is taken as it is, None and False are left out, all else is escaped.
        attributes: underscores become hyphens and a last one is dropped (`class_`,
            `data_metric`); None and False leave the attribute out, True gives it no value.

    Raises:
        ValueError: if an address could be anything but a part of the page or a file below it.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            if key in ("href", "src") and not _LINK.match(str(value)):
                raise ValueError(f"`{key}` must lead to a part or a file, got {value!r:.40}")
            parts.append(f'{key}="{html.escape(str(value))}"')
    opening = " ".join(parts)
    if name in _VOID:
        return Html(f"<{opening}/>")  # without the slash, SVG elements would swallow what follows
    return Html(f"<{opening}>{join(*children)}</{name}>")


def link(path: PurePath) -> str:
    """What leads to a file below the page, whatever its folders are called."""
    return quote(path.as_posix())


def join(*children: object) -> Html:
    """The children one after the other, escaped unless they are `Html`."""
    kept = (child for child in children if child is not None and child is not False)
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in kept))


def image(file: Path, alt: str) -> Html:
    """A PNG file as an image within the page; small ones keep hard pixels when enlarged."""
    content = file.read_bytes()
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        alt=alt,
        width=width,
        height=height,
        class_="pixels" if width < 400 else None,
        loading="lazy",
        decoding="async",
    )


def plain(value: Any) -> Any:
    """The value with numbers that JSON does not have, NaN and infinities, replaced by None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def document(title: str, body: Html, data: dict[str, Any]) -> str:
    """A whole page that needs nothing but itself.

    A content security policy forbids every request and every script but the page's own, whatever
    a configuration may contain. `data` is put into `<script id="flexgen-data">` as JSON.
    """
    style, script = (
        files("flexgen.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    # "<" would let a value end the script element or open a comment in it.
    content = json.dumps(plain(data), allow_nan=False).replace("<", "\\u003c")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    scripts = join(
        tag("script", Html(content), type="application/json", id="flexgen-data"),
        tag("script", Html(script)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body, scripts), lang='en')}\n"
