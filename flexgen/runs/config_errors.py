"""Mistakes in configurations and their overrides: the key, and what to write in its place."""

import itertools
import json
import re
import shlex
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import OverrideParseException

from flexgen._conf import conf_dir

_TOLD = {
    r"Interpolation key 'network\.(pixels)' not found":
        "this network is no density of pixels, which model=density asks for; use "
        "network=gated_pixelcnn, pixelcnn or made",
    r"Interpolation key 'network\.(\w+)' not found":
        "this network has no {}, which the model asks for; `network=mlp` has all that any model "
        "asks for",
    r"Interpolation key '([^']+)' not found":
        "the configuration refers to `{}`, which is not there; add what it belongs to",
    r"Unsupported interpolation type (\S+)":
        "`${{{}:…}}` is no resolver; `${{key}}` is the value of another key, `${{oc.env:NAME}}` "
        "that of an environment variable",
    r"Environment variable '([^']+)' not found":
        "the environment variable {} is not set; export it, or give the key another value",
    r"Error locating target '([^']+)'":
        "cannot import `{}`; check its `_target_`, and that its package is installed",
    r"An item is already at '([^']+)'": "`{0}` is there already; leave out the +: {0}=…",
    r"^(\S+) appears more than once in the final defaults list":
        "`{0}` is there already; leave out the +: {0}=NAME",
    r"Additional config directory '([^']+)' not found":
        "there is no folder {}; --config-dir names one with YAML of your own",
    r"Sweep parameters '(\w+=interval\(.*)' requires --multirun":
        "`{}` has no grid; `flexgen search` draws from an interval, `flexgen train -m` takes a=1,2",
    r"Sweep parameters '(.*)' requires --multirun":
        "`{}` gives several values; add -m for a run of each",
}  # fmt: skip


def configuration_error(error: BaseException) -> str:
    """What is wrong and what to do, in one line, of an error of Hydra's or OmegaConf's."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _grammar(error.override, text.splitlines()[0])
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text):
        key, value = found[1], found[2]
        listed = f", or write '{key}=[{value}]' for one list"
        return (
            f"`{key}={value}` gives several values; add -m for a run of each"
            f"{'' if _is_group(key) else listed}"
        )
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _no_such(found[1], text.partition("Config search path")[0].splitlines()[1:])
    unknown = r"Could not (?:override|delete.*) '([^']+)'"
    if found := re.search(rf"{unknown}|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        return f"unknown key `{key}`{did_you_mean(key.rpartition('.')[2])}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or found[1]
        return f"`{key}` has no value; give {key}=… on the command line"
    for pattern, told in _TOLD.items():
        if found := re.search(pattern, text):
            return told.format(found[1])
    if found := re.search(
        r"\w+ raised while resolving interpolation: (.*?)\s+full_key: ", text, re.S
    ):
        text = found[1]
    return " ".join(text.split())


def did_you_mean(key: str) -> str:
    """The nearest key that any part has, as the end of a line."""
    known: set[str] = set()
    for path in conf_dir().rglob("*.yaml"):
        known |= set(re.findall(r"^ *([A-Za-z]\w*):", path.read_text("utf-8"), re.MULTILINE))
        known.add(path.parent.name if path.parent != conf_dir() else path.stem)
    key = key.lstrip("+~")
    if (conf_dir() / key).is_dir():
        return f", a group that another part brings; name that too: model=vae {key}=…, say"
    if key in known:
        return (
            ", which is a key of another part; `--help` lists those that are here, and a sweep "
            "over the parts that have it takes `++key=value`"
        )
    near = get_close_matches(key, known, 1)
    return f"; did you mean `{near[0]}`?" if near else "; `--help` lists the keys"


def not_composed(error: Exception, words: list[str]) -> str:
    """What is wrong, of an error that is none of Hydra's own; "" if it is not known.

    Args:
        error: raised while a configuration was composed.
        words: of the command line.
    """
    if isinstance(error, RecursionError):
        return "defaults lists name each other in a circle; take one out"
    if isinstance(error, UnicodeDecodeError) and (path := _not_utf8(words)):
        return f"{path} is not UTF-8 ({error.reason}); save it as UTF-8"
    if "Config group override must be" not in str(error):
        return ""
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and not key:
            return f"cannot read `{word}`; write key=value"
        if re.fullmatch(r"null|true|false|[\d.e+-]+", value, re.I) and _is_group(key):
            return f"`{word}` names no {key}; there are {', '.join(_names(key.partition('@')[0]))}"
    return ""


def _not_utf8(words: list[str]) -> Path | None:
    """The YAML of a `--config-dir` that is not UTF-8."""
    folders = [
        *(after for word, after in itertools.pairwise(words) if word in _CONFIG_DIR),
        *(word.partition("=")[2] for word in words if word.startswith(_CONFIG_DIR)),
    ]
    for path in (path for folder in filter(None, folders) for path in Path(folder).rglob("*.yaml")):
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError:
            return path
    return None


_CONFIG_DIR = ("--config-dir", "-cd")


def _grammar(word: str, why: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"cannot read `{key}`; write key=value"
    if any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")):
        return f"cannot read `{word}`: a bracket is open; close it in `{key}`"
    quoted = shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
    if any(value.count(quote) % 2 for quote in "'\""):
        return f"cannot read `{word}`: a quote is open; close it, or quote the value: {quoted}"
    # Words of the parser's own are no help to anybody.
    why = "" if why.startswith(("LexerNoViableAlt", "Error parsing")) else f" ({why})"
    return f"cannot read `{word}`{why}; quote a value with special characters: {quoted}"


def _no_such(path: str, listed: list[str]) -> str:
    """That a group has no such part, and which it has."""
    group, _, name = path.rpartition("/")
    top, _, inside = path.partition("/")
    if inside and _is_group(top) and not _is_group(group):
        if _is_group(inner := group.rpartition("/")[2]) and inner != top:
            told = f"write `override /{inner}: {name}`"
            return f"no {group} called {name!r}; in a defaults list of {top} {told}"
        group, name, listed = top, inside, []
    options = [line.strip() for line in listed if line.startswith("\t")]
    options += [name for name in _names(group) if "/" in name or not listed]
    words = {word.rpartition("/")[2]: word for word in reversed(options)}
    near = get_close_matches(name, options, 1) or get_close_matches(
        name.rpartition("/")[2], words, 1
    )
    hint = f"did you mean `{group}={words.get(near[0], near[0])}`? " if near else ""
    if group == "hydra/launcher":
        hint = "joblib, slurm and ray are packages: pip install hydra-joblib-launcher, say; "
    own = "" if near else "; a file of your own ends in .yaml"
    return f"no {group} called {name!r}; {hint}there are {', '.join(options) or 'none'}{own}"


def _names(group: str) -> list[str]:
    folder = conf_dir() / group
    paths = folder.rglob("*.yaml")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def _is_group(key: str) -> bool:
    group = key.partition("@")[0]
    return bool(group) and (conf_dir() / group).is_dir()
