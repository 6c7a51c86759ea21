"""Checks of arguments: one line that names the argument, what was expected and got, the remedy."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any


def check_integer(name: str, value: Any, at_least: int = 1, remedy: str = "") -> int:
    """`value` as an int, refused unless it is a whole number of at least `at_least`.

    Args:
        name: of the argument.
        value: what was given.
        at_least: the smallest value allowed.
        remedy: what to do, the message's last clause; empty where that is plain.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise _refusal(name, f"a whole number of at least {at_least}", value, remedy)
    return int(value)


def check_sizes(name: str, values: Sequence[int], remedy: str = "") -> tuple[int, ...]:
    """A sequence of sizes as a tuple of ints of at least 1; it may be empty.

    Raises:
        ValueError: if it is a single number or a string, or if a size is below 1.
    """
    if isinstance(values, int | float | str) or values is None:
        raise _refusal(name, "a list of sizes", values, f"write it as [{values}]")
    return tuple(check_integer(f"{name}[{i}]", v, 1, remedy) for i, v in enumerate(values))


def check_positive(name: str, value: float, remedy: str = "") -> float:
    """`value` as a float, refused unless it is above 0 and finite.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise _refusal(name, "positive and finite", value, remedy)
    return float(value)


def check_not_negative(name: str, value: float, remedy: str = "") -> float:
    """`value` as a float, refused unless it is at least 0 and finite.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise _refusal(name, "at least 0 and finite", value, remedy)
    return float(value)


def check_share(name: str, value: float) -> float:
    """`value` as a float, refused unless it is in [0, 1].

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise _refusal(name, "from 0 to 1", value, "")
    return float(value)


def check_one_of(name: str, value: object, options: Iterable[object], remedy: str = "") -> None:
    """Refuse a value that is not one of the options.

    Raises:
        ValueError: if it is another; the message writes the options as YAML does.
    """
    options = tuple(options)
    if value not in options:
        words: dict[object, str] = {None: "null", True: "true", False: "false"}
        names = (words.get(option, str(option)) for option in options)
        raise _refusal(name, f"one of {', '.join(names)}", value, remedy)


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of an error's text, at most so many characters; its kind if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:most]


def _refusal(name: str, expected: str, value: object, remedy: str) -> ValueError:
    hint = f"; {remedy}" if remedy else ""
    return ValueError(f"`{name}` must be {expected}, got {value!r}{hint}")
