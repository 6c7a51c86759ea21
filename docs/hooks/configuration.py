"""Pages of every configuration key: its default, and what the YAML and the docstring say of it."""

import functools
import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe
import yaml
from docstrings import linked, readable
from hydra.utils import get_object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from flexgen.cli import COMMANDS, explain

CONF = Path(__file__).parents[2] / "conf"
FOLDER = "reference/configuration"

CHOSEN = {
    "callbacks": "callbacks=[…,{}]",
    "hydra": "hydra/{}",
    "logger": "logger={}",
    "objective": "objective@model.objective={}",
    "optimizer": "optimizer@model.generator_optimizer={}",
    "regulariser": "regulariser@model.regulariser={}",
}
"""How a file of a group is chosen, where it is not by `GROUP=NAME`."""

TYPED = {
    "hydra": "hydra.launcher",
    "objective": "model.objective",
    "optimizer": "model.generator_optimizer",
    "regulariser": "model.regulariser",
}
"""What is typed before a key of a group, where it is not the group."""

ABOUT = {
    "callbacks": "What is measured, drawn and saved, and when.",
    "data": "Data sets, and their splits, sizes and ranges.",
    "experiment": "Whole experiments, each with its study, seed, steps and batch size.",
    "hydra": "Launchers of a sweep's cells.",
    "likelihood": "p(x|z) of a VAE or an autoencoder.",
    "logger": "Where values are written besides `metrics.csv`.",
    "model": "Families: what a training step is.",
    "network": "Generators, critics, encoders, decoders and pixel networks.",
    "objective": "What critic and generator of an adversarial game minimise.",
    "optimizer": "Optimizers of a model.",
    "output": "p(x) of a pixel network's outputs.",
    "posterior": "q(z|x) of a VAE or of a game with an encoder.",
    "prior": "p(z).",
    "regulariser": "What an autoencoder minimises besides its reconstruction.",
    "schedule": "How the step sizes move over the steps.",
    "trainer": "Devices and precision.",
}


class Key(NamedTuple):
    """A key of a YAML file: its dotted place, its value as written, its comment, who takes it."""

    place: str
    value: str
    comment: str
    target: str | None


def groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def on_config(config: MkDocsConfig) -> None:
    """Put a page for each group into the navigation, after the page of the commands."""
    pages = [f"{FOLDER}/index.md", *(f"{FOLDER}/{group}.md" for group in groups())]
    section = next(item["Reference"] for item in config.nav or () if "Reference" in item)
    section.append({"Configuration": pages})


def on_files(files: Files, config: MkDocsConfig) -> None:
    files.append(File.generated(config, f"{FOLDER}/index.md", content=commands_page()))
    for group in groups():
        content = group_page(group)
        files.append(File.generated(config, f"{FOLDER}/{group}.md", content=content))


def commands_page() -> str:
    """The keys of each command, as `flexgen COMMAND --help` prints them."""
    lines = [
        "# Configuration",
        "",
        "Every key of every command and part, with its default. Here are the commands' own keys,",
        "as `flexgen COMMAND --help` prints them; those of the parts have a page a group:",
        "",
        *(f"- [{group}]({group}.md): {ABOUT.get(group, '')}" for group in groups()),
        "",
    ]
    for command in (*COMMANDS, "reverse_generator"):
        about, _, keys = explain(command).partition("\n")
        lines += [f"## {command.replace('_', ' ')} {{#{command}}}", "", plain(about), ""]
        if keys.strip():
            lines += ["```yaml", keys.strip("\n"), "```", ""]
    lines += ["## common", "", *file_lines(CONF / "common.yaml")]
    return "\n".join(lines)


def group_page(group: str) -> str:
    lines = [f"# {group}", "", ABOUT.get(group, ""), ""]
    if group != "experiment":
        lines += [f"Keys are typed with `{TYPED.get(group, group)}.` before them.", ""]
    for path in sorted((CONF / group).rglob("*.yaml")):
        name = path.relative_to(CONF / group).with_suffix("").as_posix()
        chosen = CHOSEN.get(group, group + "={}")
        if group == "hydra":
            folder, _, name = name.partition("/")
            chosen = f"hydra/{folder}=" + "{}"
        lines += [f"## {name} {{#{name.replace('/', '-')}}}", "", f"`{chosen.format(name)}`", ""]
        if group == "experiment":
            lines += ["", header(path), "", '??? note "Its YAML"', ""]
            lines += ["    ```yaml", *("    " + line for line in body(path)), "    ```", ""]
        else:
            lines += file_lines(path)
    return "\n".join(lines)


def header(path: Path) -> str:
    """What the first comment of a file says of it, as Markdown."""
    lines = path.read_text(encoding="utf-8").splitlines()
    while lines and lines[0].startswith("# @package"):
        lines.pop(0)
    said = []
    for line in lines:
        if not line.startswith("#"):
            break
        said.append(line.removeprefix("#").strip())
    return plain(" ".join(said))


def body(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def file_lines(path: Path) -> list[str]:
    """What a file says of itself, what it stands on, and a table of its keys."""
    lines = [header(path), ""]
    root = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    below = [entry for entry in root.get("defaults", ()) if entry != "_self_"]
    if below:
        lines += ["Stands on " + ", ".join(f"`{parent(entry)}`" for entry in below) + ".", ""]
    keys = list(file_keys(path))
    for target in dict.fromkeys(key.value for key in keys if key.place.endswith("_target_")):
        lines += [f"Builds {linked(target)}.", ""]
    shown = [key for key in keys if not key.place.endswith(("_target_", "_partial_", "_convert_"))]
    if shown:
        lines += ["| key | default | what it is |", "|---|---|---|"]
        lines += [f"| `{key.place}` | {code(key.value)} | {what(key)} |" for key in shown]
    return [*lines, ""]


def parent(entry: Any) -> str:
    if isinstance(entry, dict):
        ((key, value),) = entry.items()
        shown = ",".join(value) if isinstance(value, list) else value
        return f"{key.removeprefix('override ').lstrip('/')}={'null' if shown is None else shown}"
    return str(entry).lstrip("/")


def file_keys(path: Path) -> Iterator[Key]:
    """Every key that holds a value, in the order of the file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from walk(root, "", lines, None)


def walk(node: yaml.MappingNode, where: str, lines: list[str], target: str | None) -> Iterator[Key]:
    entries = {key.value: value for key, value in node.value}
    if "_target_" in entries:
        target = entries["_target_"].value
    for key, value in node.value:
        place = f"{where}.{key.value}".strip(".")
        if place == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            said = comment(lines, key)
            if said:
                yield Key(place, "", said, target)
            yield from walk(value, place, lines, target if "_target_" in entries else None)
            continue
        block = isinstance(value, yaml.SequenceNode) and not value.flow_style
        shown = str(yaml.safe_load(yaml.serialize(value))) if block else source(lines, value)
        yield Key(place, shown, comment(lines, key if block else value, key), target)


def source(lines: list[str], node: yaml.Node) -> str:
    """The text of a value."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    middle = [*lines[start.line + 1 : end.line]]
    last = lines[end.line][: end.column] if end.line < len(lines) else ""
    parts = [lines[start.line][start.column :], *middle, last]
    return " ".join(part.partition("  #")[0].strip() for part in parts).strip()


def comment(lines: list[str], node: yaml.Node, key: yaml.Node | None = None) -> str:
    """The comment behind a value and on the lines after it, else the one above its key."""
    key = key or node
    end = node.end_mark
    rest = lines[end.line][end.column :] if end.line < len(lines) else ""
    found = re.match(r"\s*:?\s*#\s?(.*)", rest)
    indent = key.start_mark.column
    if found:
        said = [found[1]]
        for line in lines[end.line + 1 :]:
            bare = line.lstrip()
            if not bare.startswith("#") or len(line) - len(bare) <= indent:
                break
            said.append(bare.lstrip("# "))
        return " ".join(said)
    above: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        bare = line.lstrip()
        if not bare.startswith("#") or len(line) - len(bare) != indent:
            break
        above.insert(0, bare.lstrip("# "))
    # The first lines of a file are of the file.
    return "" if len(above) == key.start_mark.line else " ".join(above)


def what(key: Key) -> str:
    """What the docstring says of the argument, then the comment of the YAML."""
    name = key.place.rpartition(".")[2]
    described = arguments(key.target).get(name, "") if key.target else ""
    noted = f"*{sentence(plain(key.comment))}*" if key.comment and described else plain(key.comment)
    return " ".join(part for part in (described, noted) if part)


def sentence(said: str) -> str:
    return said if not said or said.endswith((".", "?", ":")) else said + "."


@functools.cache
def arguments(target: str) -> dict[str, str]:
    """What the docstrings of a class and of those above it say of each argument, as Markdown."""
    built = get_object(target)
    found: dict[str, str] = {}
    for owner in inspect.getmro(built) if inspect.isclass(built) else (built,):
        if not owner.__module__.startswith("flexgen.") or not owner.__doc__:
            continue
        docstring = griffe.Docstring(readable(inspect.cleandoc(owner.__doc__)))
        for section in griffe.parse_google(docstring, warnings=False):
            if section.kind is griffe.DocstringSectionKind.parameters:
                for argument in section.value:
                    said = " ".join(argument.description.split()).replace("|", "&#124;")
                    found.setdefault(argument.name, sentence(said))
    return found


def plain(said: str) -> str:
    """Words that Markdown shall not read."""
    escaped = re.sub(r"([*_\[\]`])", r"\\\1", html.escape(said, quote=False))
    return escaped.replace("|", "&#124;")


def code(value: str) -> str:
    shown = html.escape(value, quote=False).replace("|", "&#124;")
    return f"<code>{shown}</code>" if value else ""
