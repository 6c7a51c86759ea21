"""Short names for the rows of a table: the settings in which they differ, in one column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MOST_VALUE = 24


@dataclass(frozen=True)
class Labels:
    """The names of rows.

    Args:
        head: the keys that differ, each by its last part where that tells them apart.
        short: of each row its values of these keys, long ones cut in the middle.
        full: of each row `key=value, …` whole, empty where `short` and `head` say as much.
    """

    head: str
    short: list[str]
    full: list[str]

    @classmethod
    def of(cls, settings: Sequence[dict[str, str]], keys: Sequence[str]) -> "Labels":
        """Labels of rows by their values of `keys`."""
        heads = [_end_of(key, keys) for key in keys]
        short = [", ".join(_cut(row[key]) for key in keys) for row in settings]
        full = [""] * len(settings)
        if any(len(row[key]) > _MOST_VALUE for row in settings for key in keys):
            full = [", ".join(f"{key}={row[key]}" for key in keys) for row in settings]
            short = [f"{number}: {text}" for number, text in enumerate(short, 1)]
        return cls(", ".join(heads), short, full)

    @property
    def legend(self) -> list[str]:
        """The rows that were cut, whole, by their numbers."""
        return [f"{number}: {text}" for number, text in enumerate(self.full, 1) if text]


def _end_of(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a key that no other has."""
    parts = key.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts)))
    others = [f".{other}" for other in keys if other != key]
    return next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), key)


def _cut(value: str) -> str:
    if len(value) <= _MOST_VALUE:
        return value
    half = (_MOST_VALUE - 1) // 2
    return f"{value[:half]}…{value[-half:]}"


def name_bases(
    settings: Sequence[dict[str, str]], priors: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, str]], list[str]]:
    """The settings with a prior's base in its name where bases differ, and what to note of it.

    A prior over a base beside a plain one of another kind differs from it in two things.

    Args:
        settings: of each run, by key.
        priors: of each run the configuration of its model's prior.
    """
    bases = [prior.get("base") for prior in priors]
    roots = [_kind(base) or _kind(prior) for base, prior in zip(bases, priors, strict=True)]
    if len({row.get("prior") for row in settings}) < 2 or len({*roots} - {""}) < 2:
        return list(settings), []
    named, over = [], dict[str, str]()
    for row, base in zip(settings, bases, strict=True):
        if kind := _kind(base):
            row = row | {"prior": f"{row['prior']} on {kind}"}
            over[row["prior"]] = kind
        named.append(row)
    plain = {
        _kind(prior): row["prior"] if row["prior"] != "default" else _kind(prior)
        for row, prior, base in zip(settings, priors, bases, strict=True) if not base
    }  # fmt: skip
    alone = [name for name, kind in over.items() if plain and kind not in plain]
    if not alone:
        return named, []
    names = list(plain.values())
    return named, [
        f"{', '.join(alone)} against {', '.join(names)} compares two changes, the base and what is "
        f"done with it; in a grid with prior@base={names[0]} the base is the same"
    ]


def _kind(prior: Any) -> str:
    target = prior.get("_target_") if isinstance(prior, dict) else None
    return str(target).rpartition(".")[2].lower() if target else ""
