"""What the documentation says to type is known, its links lead somewhere, its modules run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from configuration import file_keys
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from flexgen import compose
from flexgen.cli import COMMANDS
from flexgen.report.catalogue import METRICS
from flexgen.runs.compose import grid
from tests.conftest import CONF

ROOT = CONF.parent
USED = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Pages whose commands and code are those of a user."""
WRITTEN = [
    *USED,
    *sorted(ROOT.glob("C*.md")),
    *sorted(p for f in ("experiments", "examples", "benchmarks") for p in (ROOT / f).rglob("*.md")),
]
OF_THE_READER = re.compile(r"--config-dir|(path|root)=|interval\(|(^| )…")
"""What is not to be had here: YAML and data of the reader's; ranges, of which a run has a value."""
TRAIN = yaml.safe_load((CONF / "train.yaml").read_text())
OF_RUNS = {"run", "checkpoint", "trust", "runs", "data", "prior", "logger", "trainer", "callbacks",
           "steps", "latent_dim"}  # fmt: skip
"""Keys that commands on runs take besides those of their own YAML: those of the run."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[list[str]]:
    """The words after `flexgen` of what is to be typed: lines after a `$`, rows of a table."""
    lines = "\n".join(blocks(path, "console")).replace("\\\n", " ").splitlines()
    typed = [
        m[1] for line in lines if (m := re.match(r"\$ (?:\w+=\S+ )*(?:\S*/)?flexgen (.*)", line))
    ]
    rows = re.findall(r"^\| `flexgen ([^`]+)` \|", path.read_text(), re.MULTILINE)
    typed += [re.sub(r" \[(\S+=\S+)\]", r" \1", row) for row in rows]
    return [shlex.split(words, comments=True) for words in dict.fromkeys(typed)]


def chosen(word: str) -> bool:
    """Whether it chooses a file that is there, or gives one of the first keys of a training."""
    key, _, value = word.partition("=")
    return (CONF / key / f"{value}.yaml").is_file() or key in TRAIN


@pytest.mark.parametrize("path", [p for p in USED if commands(p)], ids=name)
def test_every_command_is_known(path: Path) -> None:
    for command, *words in commands(path):
        if command == "--version" or OF_THE_READER.search(" ".join(words)):
            continue
        assert command in COMMANDS, f"flexgen {command}"
        if command == "train":
            cell = grid([w for w in words if w != "-m" and not w.startswith("hydra")])[0]
            if not all(map(chosen, cell)):
                compose(cell)
            continue
        root = "reverse_generator" if any(w.startswith("generator=") for w in words) else command
        text = (CONF / f"{root}.yaml").read_text()
        known = {*(yaml.safe_load(text) or ()), *re.findall(r"^# (\w+)=", text, re.MULTILINE)}
        if command not in ("table", "report", "dashboard"):
            known |= OF_RUNS
        for word in words:
            key, equals, _ = word.partition("=")
            top = re.split(r"[.@]", key.lstrip("+~"))[0]
            assert not equals or top in known, f"flexgen {command} {word}"


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    made = ROOT / "docs" / "reference"  # pages that the site's build makes
    for link in re.findall(r"\]\((?!#|[a-z]+:)([^)#\s]+)(?:#[^)\s]*)?\)", path.read_text()):
        target = (path.parent / link).resolve()
        assert target.exists() or target.is_relative_to(made), f"{name(path)}: {link}"


MODULES = [
    (path, block)
    for path in USED
    for block in blocks(path, "python")
    if re.match(r"# \w+\.py\n", block)
]
"""Code that begins with the name of the file that it is."""


@pytest.mark.parametrize(
    ("path", "code"), MODULES, ids=lambda v: name(v) if isinstance(v, Path) else ""
)
def test_code_that_is_a_file_runs(
    path: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name(path), "exec"), {"__name__": "documented"})


def test_what_an_agent_of_wandb_types_is_known() -> None:
    page = ROOT / "docs" / "howto" / "wandb.md"
    (recipe,) = (b for b in blocks(page, "yaml") if b.startswith("# sweep.yaml"))
    sweep = yaml.safe_load(recipe)
    ranges = sweep["parameters"].items()
    drawn = {key: {"value": p.get("values", [p.get("min")])[-1]} for key, p in ranges}
    typed = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    program, command, *words, last = create_sweep_command(sweep["command"])
    assert (program, command, last) == ("flexgen", "train", "${args_no_hyphens}")
    config = compose([*words, *typed])
    assert config["model"]["prior"]["_target_"] == "flexgen.priors.Masked"
    assert config["model"]["generator_optimizer"]["lr"] == 1e-5
    assert config["seed"] == 2
    assert sweep["metric"]["name"] in METRICS


def test_all_code_is_python() -> None:
    for path in USED:
        for block in blocks(path, "python"):
            compile(block, name(path), "exec")


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=name)
def test_the_reference_has_every_key(path: Path) -> None:
    def leaves(tree: object, where: str = "") -> set[str]:
        if not isinstance(tree, dict) or not tree:
            return {where.strip(".")}
        return set().union(*(leaves(value, f"{where}.{key}") for key, value in tree.items()))

    written = yaml.safe_load(path.read_text()) or {}
    written.pop("defaults", None)
    shown = {key.place for key in file_keys(path)}
    for leaf in leaves(written) - {""}:
        assert leaf in shown or any(leaf.startswith(f"{place}.") for place in shown), leaf
