"""Pages from the templates beside this file, in which all text is escaped."""

import base64
import hashlib
import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from flexgen.files import open_file
from flexgen.report.catalogue import describe, number, plus_minus, typeset
from flexgen.untrusted import printable

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **context: Any) -> str:
    """The text of a template of `flexgen/report/templates/`.

    A page's template extends `base.html`, whose content security policy forbids every request and
    every script but the page's own, whatever a configuration may contain. A page's `data` are put
    into `<script id="flexgen-data">` as JSON.
    """
    return _environment().get_template(template).render(context)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("flexgen.report"), autoescape=True, undefined=StrictUndefined,
        finalize=_plain, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = (
        files("flexgen.report").joinpath("templates", name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    environment.globals.update(
        describe=describe,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # The two files of our own that are no text of a page, and the only ones.
        style=Markup(style),
        script=Markup(script),
    )
    environment.filters.update(
        exact=repr, json_numbers=_json_numbers,
        link=lambda path: quote(path.as_posix()),  # leads below the page, whatever it is called
        picture=_picture,
        number=lambda value, digits=4: typeset(number(value, digits)),
        plus_minus=lambda mean, std: typeset(plus_minus(mean, std)),
    )  # fmt: skip
    environment.tests["finite"] = math.isfinite
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _picture(png: Path | bytes) -> dict[str, Any]:
    """A PNG, or its file `images/KIND/FILE` in a run, as an address, with its size in pixels."""
    if isinstance(png, Path):
        with open_file(png, within=png.parents[2]) as file:
            png = file.read()
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    src = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"src": src, "width": width, "height": height, "plot": b"Matplotlib" in png[:500]}


def _plain(value: Any) -> Any:
    """What is shown of a value; of text but what is a template's own, all is visible."""
    known = isinstance(value, int | float) or hasattr(value, "__html__")
    return value if known else printable(str(value), keep="\n\t")


def _json_numbers(value: Any) -> Any:
    """The value with numbers that JSON does not have, NaN and infinities, replaced by None."""
    if isinstance(value, dict):
        return {str(key): _json_numbers(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        finite = np.isfinite(value).all()
        return value.tolist() if finite else _json_numbers(value.tolist())
    if isinstance(value, list | tuple):
        return [_json_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
