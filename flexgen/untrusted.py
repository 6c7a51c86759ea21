"""Runs from elsewhere: their files are read as plain values, and none outside their folder."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from flexgen.files import keep_within, open_file

_MOST_BYTES = 2**18  # without libyaml, 50 KB are read a second; a run's configuration has 5 KB
_MOST_VALUES = 20_000
_DEEPEST = 50
_STEPS = {yaml.MappingStartEvent: 1, yaml.SequenceStartEvent: 1,
          yaml.MappingEndEvent: -1, yaml.SequenceEndEvent: -1}  # fmt: skip
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_start(path: Path) -> str:
    """The text of a file, so much of it at most that :func:`parse_plain` refuses more; an OSError
    if it is no file, a ValueError if it is no UTF-8."""
    with open_file(path) as file:
        return file.read(_MOST_BYTES + 1).decode()


def parse_plain(text: str) -> dict[str, Any]:
    """The keys of a YAML text of plain values: nothing in it is computed, and its size is bounded.

    Aliases are allowed as far as what they stand for is small when written out.

    Raises:
        ValueError: saying why it is none, in a few words.
    """
    if len(text.encode()) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    try:
        level = 0
        for event in yaml.parse(text, _Loader):  # composing a deeply nested text ends the process
            level += _STEPS.get(type(event), 0)
            if level > _DEEPEST:
                raise ValueError(f"it is nested deeper than {_DEEPEST}")
        loader = _Loader(text)
        node = loader.get_single_node()
        if "*" in text or len(text) > _MOST_VALUES:  # a value takes a character, or is an alias
            check_size(node, _children, _MOST_VALUES)
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:120]) from error
    if not isinstance(value, dict):
        raise ValueError(f"it must hold keys, got {type(value).__name__}")
    _check_plain(value)
    return value


def check_size(
    value: Any, children: Callable[[Any], Iterable[Any]], most: int, deepest: int = _DEEPEST
) -> None:
    """Refuse what has many values when each is counted as often as it occurs, as in an alias bomb.

    Of a value, the root first, `children` gives those that it holds. A ValueError tells if there
    are more or deeper ones, or a value holds itself.
    """
    seen: dict[int, tuple[int, int]] = {}

    def measure(value: Any, level: int) -> tuple[int, int]:
        if level > deepest:
            raise ValueError(f"it is nested deeper than {deepest}")
        if id(value) not in seen:
            seen[id(value)] = most + 1, 0  # as long as it is inside itself
            found = [measure(child, level + 1) for child in children(value)]
            count, depth = (sum(n for n, _ in found), max((d for _, d in found), default=0))
            seen[id(value)] = 1 + count, 1 + depth
        return seen[id(value)]

    count, depth = measure(value, 1)
    if count > most:
        raise ValueError(f"it holds more than {most:,} values, or itself")
    if depth > deepest:
        raise ValueError(f"it is nested deeper than {deepest}")


def nodes(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Each value in a plain one, itself first, and where it stands, as `model.layers[0]`."""
    yield where, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from nodes(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from nodes(item, f"{where}[{i}]")


def check_folder(run_dir: Path) -> None:
    """Refuse a run with a link in its folder, and follow none that is put there from now on.

    W&B's own folder is left out: each run in there links to a log elsewhere, and it is not read.

    Raises:
        ValueError: naming the link, what is neither a file nor a folder, a folder that cannot be
            listed, or settings of W&B.
    """

    keep_within(run_dir, links=False)

    def refuse(path: str, what: str, remedy: str) -> NoReturn:
        raise ValueError(f"{path} {what}; {remedy}, or if you trust this run say trust=true")

    def unlisted(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # one that is gone holds no link
            refuse(str(error.filename), f"cannot be listed ({error.strerror})", "chmod u+rwx it")

    for where, folders, files in os.walk(run_dir, onerror=unlisted):
        own = where in (os.path.join(run_dir, "wandb"), os.path.join(run_dir, "control", "wandb"))
        if os.path.basename(where) in ("wandb", ".wandb") and "settings" in (*folders, *files):
            # Started in the folder above, W&B would take its server from it.
            refuse(f"{where}/settings", "would set up W&B", "remove it")
        for path in () if own else (os.path.join(where, name) for name in (*folders, *files)):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # one that was being written
                continue
            if stat.S_ISLNK(mode):
                refuse(path, f"is a link, to {os.readlink(path)}", "put there what it links to")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                refuse(path, "is neither a file nor a folder", "remove it")
        if own:
            folders.clear()


def printable(text: str, keep: str = "") -> str:
    r"""A text, but for characters that stay, with what a terminal would obey or turn as `\x1b`."""
    if text.isprintable() or (keep and text.translate(dict.fromkeys(map(ord, keep))).isprintable()):
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _children(node: yaml.Node | None) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_plain(value: Any) -> None:
    for where, node in nodes(value):
        for key in node if isinstance(node, dict) else ():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.40} of `{where}` is no text")
        for text in node if isinstance(node, dict) else [node] if isinstance(node, str) else []:
            if "${" in text:
                raise ValueError(
                    f"`{where}` is {text!r:.60}, to be computed; write the value itself"
                )
            # Half of a surrogate pair is in no path, and not to be printed.
            if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"`{where}` is no text: {text!r:.40}")
        if isinstance(node, int) and abs(node) >= 2**63:
            raise ValueError(f"`{where}` is too large a number")
        if not (node is None or isinstance(node, (dict, list, str, int, float))):
            raise ValueError(f"`{where}` is no plain value, got {type(node).__name__}")
