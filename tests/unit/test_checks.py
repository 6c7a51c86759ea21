"""Arguments are taken or refused in one line that names them, what was expected and the remedy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flexgen.checks import (
    check_integer,
    check_not_negative,
    check_one_of,
    check_positive,
    check_sizes,
    first_line,
)


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (check_integer, 1, 1),
        (check_integer, np.int64(7), 7),
        (check_positive, 2, 2.0),
        (check_positive, 1e-300, 1e-300),
        (check_not_negative, 0, 0.0),
        (check_sizes, (3, np.int32(4)), (3, 4)),
        (check_sizes, [], ()),
    ],
)
def test_what_is_allowed_is_given_back_as_plain_python(
    check: Callable[[str, Any], Any], value: Any, expected: Any
) -> None:
    taken = check("a", value)
    assert taken == expected
    assert type(taken) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_integer, 0, "`a` must be a whole number of at least 1, got 0"),
        (check_integer, True, "`a` must be a whole number of at least 1, got True"),
        (check_integer, 2.0, "`a` must be a whole number of at least 1, got 2.0"),
        (check_integer, "3", "`a` must be a whole number of at least 1, got '3'"),
        (check_positive, 0.0, "`a` must be positive and finite, got 0.0"),
        (check_positive, math.inf, "`a` must be positive and finite, got inf"),
        (check_positive, math.nan, "`a` must be positive and finite, got nan"),
        (check_positive, "1", "`a` must be positive and finite, got '1'"),
        (check_not_negative, -1e-9, "`a` must be at least 0 and finite, got -1e-09"),
        (check_not_negative, math.nan, "`a` must be at least 0 and finite, got nan"),
        (check_sizes, 3, "`a` must be a list of sizes, got 3; write it as [3]"),
        (check_sizes, [2, 0], "`a[1]` must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_not_is_named(check: Callable[[str, Any], Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check("a", value)
    assert str(caught.value) == message


def test_the_remedy_is_the_last_clause() -> None:
    with pytest.raises(ValueError, match=r"at least 2, got 1; set `prior\.a=2`$"):
        check_integer("a", 1, 2, "set `prior.a=2`")


def test_options_are_written_as_in_yaml() -> None:
    for value in (None, True, "x"):
        check_one_of("a", value, (None, True, "x"))
    with pytest.raises(ValueError, match=r"^`a` must be one of null, true, x, got \['x'\]$"):
        check_one_of("a", ["x"], (None, True, "x"))


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("a\nb"), "a"), (OSError(), "OSError"), (KeyError("x" * 500), "'" + 159 * "x")],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
