"""Text and numbers as LaTeX that compiles wherever booktabs is loaded."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from flexgen.report.catalogue import number, plus_minus
from flexgen.untrusted import printable

PREAMBLE = (
    r"In the preamble: \usepackage{booktabs}. Widths are for a column of the article class; "
    "letters that are neither Latin nor Greek need xelatex or lualatex and a font that has them."
)
"""What a document needs to take such a table."""

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after \\ and \midrule they would begin an argument
    "−": "$-$", "×": r"$\times$", "±": r"$\pm$", '"': "''", "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}  # fmt: skip


_SIGN = re.compile(r"(?:\\textbackslash\{\}|\\[_#&%]|[,.:/…=+])(?! )")


def latex_escape(text: str) -> str:
    """The text with LaTeX's special characters and Greek letters as commands, on one line."""
    return "".join(_LATEX.get(character) or _greek(character) for character in one_line(text))


def _greek(character: str) -> str:
    name = unicodedata.name(character, "")
    found = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    known = ("GAMMA", "DELTA", "THETA", "LAMDA", "XI", "PI", "SIGMA", "PHI", "PSI", "OMEGA")
    if found is None or (found[1] == "CAPITAL" and found[2] not in known):
        return character
    letter = found[2].lower().replace("lamda", "lambda")
    return rf"$\{letter if found[1] == 'SMALL' else letter.capitalize()}$"


def label(text: str) -> str:
    """The text for a column of a fixed width: ragged, and broken after any sign as well."""
    return r"\raggedright " + _SIGN.sub(r"\g<0>\\allowbreak{}", latex_escape(text))


def one_line(text: str) -> str:
    """The text without line breaks and what no terminal shows."""
    return printable(" ".join(text.split()))


def heading(lines: Sequence[str]) -> str:
    """The head of a column in one line or several."""
    escaped = r"\\".join(map(latex_escape, lines))
    return escaped if len(lines) == 1 else rf"\shortstack{{{escaped}}}"


def value(mean: float, std: float, *, bold: bool) -> str:
    """Mean ± standard deviation."""
    if not np.isfinite(mean):
        return number(mean)
    text = plus_minus(mean, std).replace("±", r"\pm")
    text = re.sub(r"e(?:\+|(-))0*(\d+)", r" \\times 10^{\1\2}", text)
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"
