"""Docstrings as the site shows them: their reStructuredText roles and formulas as Markdown."""

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^([ ]*)Example:$", re.MULTILINE)
_SAID = re.compile(r"^([ ]*)(Source|Memory): ", re.MULTILINE)
_FORMULA = re.compile(r"^([ ]*)\.\. math::((?:.*\n?)(?:\1[ ]+\S.*\n?)*)", re.MULTILINE)


def readable(text: str) -> str:
    """A docstring, its roles and formulas as Markdown."""
    text = _EXAMPLE.sub(r"\1Examples:", text)  # the heading whose code is shown as code
    text = _SAID.sub(r"\1**\2:** ", text)  # a paragraph, not the title of a box
    return _ROLE.sub(lambda found: linked(found[1]), _FORMULA.sub(_formula, text))


def linked(name: str) -> str:
    """A dotted name, shown as its last part; a link where the site has it."""
    shown = name.rpartition(".")[2]
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'


def _formula(found: re.Match[str]) -> str:
    return f"\n{found[1]}$$ {' '.join(found[2].split())} $$\n"


class Readable(griffe.Extension):
    """mkdocstrings' hook on each object of the package."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
