"""YAML keys equal constructor arguments both ways, and a default lives in one place.

A value that is not the constructor's default says so on its line, `# Python default X`; one that
interpolates takes its value from elsewhere. A file that inherits holds only what differs.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from flexgen.callbacks import PriorRefit, ReversalScore
from flexgen.reversal import posterior_codes, reverse
from flexgen.runs import resolvers
from flexgen.training import WandbLogger
from tests.conftest import CONF

FILES = {
    str(path.relative_to(CONF).with_suffix("")): path
    for path in sorted(CONF.rglob("*.yaml"))
    if path.parts[-2] not in ("launcher", "job_logging")  # of Hydra and its plugins
}
PARENTS = {"data/images", "data/toys", "model/adversarial"}  # whole in their heirs alone
GROUPS = sorted({name for name in FILES if "/" in name} - PARENTS)

OWN_DATA = ["data.shape=[1,8,8]", "data.range=[0,1]"]  # not found from files that are not there
GIVEN = {"context", "generator", "mask", "x", "latent_shape", "index", "seed", "history", "watch"}
DRAWN = GIVEN - {"latent_shape"} | {"prior", "known", "precision", "batch_size", "progress"}
PASSED: dict[tuple[str, str], tuple[Callable[..., Any], set[str]]] = {
    ("callbacks/reversal", "reversal.options"): (reverse, GIVEN),
    ("reverse", "reverse"): (ReversalScore, {"every", "at", "at_end"}),
    ("reverse", "reverse.options"): (reverse, GIVEN),
    ("refit", "refit"): (PriorRefit, {"at"}),
    ("refit", "refit.options"): (reverse, GIVEN),
    ("reverse_generator", "reverse"): (reverse, GIVEN - {"seed"} | {"progress"}),
    ("reverse_generator", "posterior"): (posterior_codes, DRAWN),
}
"""Mappings without a `_target_`: who takes them, and which arguments it is given otherwise."""


def is_own(target: Callable[..., Any]) -> bool:
    return target.__module__.startswith("flexgen.")


def arguments(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Defaults by name, and whether any other argument is taken: by a library's open `**kwargs`.

    `**options` of a constructor of FlexGen's are its parent's keyword-only arguments: what it hands
    on by position is its own affair.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [c.__init__ for c in target.__mro__[:-1] if "__init__" in vars(c)]
    found: dict[str, Any] = {}
    for i, function in enumerate(functions):
        if i and not is_own(function):
            return found, True
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            named = p.kind is p.KEYWORD_ONLY or (i == 0 and p.kind is p.POSITIONAL_OR_KEYWORD)
            if named and p.name != "self":
                found.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found, False
    return found, bool(functions)


def nodes(tree: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(tree, dict) and "_target_" in tree:
        yield where, tree
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from nodes(value, f"{where}.{key}".strip("."))


@functools.cache
def composed(name: str) -> dict[str, Any]:
    """The configuration of `flexgen train` with this file."""
    resolvers.register()
    group, _, stem = name.partition("/")
    words = {
        "callbacks": [f"callbacks=[reversal,{stem}]"],
        "objective": [f"model={stem}"],
        "optimizer": [f"optimizer@model.generator_optimizer={stem}"],
        "data": [f"data={stem}", *(OWN_DATA if stem in ("array", "folder", "table") else ())],
        "output": ["model=density", f"output={stem}"],
        "posterior": ["model=vae", f"posterior={stem}"],
        "likelihood": ["model=vae", f"likelihood={stem}"],
        "regulariser": ["model=wae", f"regulariser@model.regulariser={stem}"],
    }.get(group, [f"{group}={stem}"])  # fmt: skip
    if group == "network" and "joint_critic" in OmegaConf.load(FILES[name]):
        words.append("model=ali")
    elif group == "network" and "encoder" in OmegaConf.load(FILES[name]):
        words.append("model=vae")
    if group == "network" and "pixels" in OmegaConf.load(FILES[name]):
        words.append("model=density")
    if stem == "refit":
        words.append("callbacks.refit.at=[3]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*words, "paths.run_dir=nowhere"])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize("name", GROUPS)
def test_every_key_is_an_argument_and_every_argument_has_a_key(name: str) -> None:
    for where, node in nodes(composed(name)):
        check(where, node, get_object(node["_target_"]))


def pins(name: str) -> set[str]:
    """The keys that an experiment or one that it inherits from gives."""
    own = yaml.safe_load(FILES[name].read_text())
    above = [e for e in own["defaults"] if isinstance(e, str) and e.startswith("/experiment/")]
    keys = {*own, *(f"data.{key}" for key in own.get("data", ()))}
    return keys.union(*(pins(e.removeprefix("/")) for e in above))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiment/")])
def test_every_experiment_composes_and_is_pinned(name: str) -> None:
    assert composed(name)["steps"] >= 1
    text = FILES[name].read_text()
    assert text.startswith("# @package _global_\n#"), "an experiment says what it reproduces"
    if "\nname: " in text:  # else it is for heirs alone
        assert {"seed", "steps", "data.batch_size"} <= pins(name)


def check(
    where: str, node: dict[str, Any], target: Callable[..., Any], given: Iterable[str] = ()
) -> None:
    keys = {key for key in node if not key.startswith("_")}
    known, takes_more = arguments(target)
    assert takes_more or keys <= known.keys(), f"{where}: {target.__name__} takes no such arguments"
    if is_own(target):
        # Of what is built in part whoever calls it gives the first, a size.
        later = {*given, *[*known][:1]} if node.get("_partial_") else {*given}
        assert known.keys() - keys <= later, f"{where}: arguments without a key"


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
def test_what_a_command_builds_takes_its_keys(name: str) -> None:
    for where, node in nodes(OmegaConf.to_container(OmegaConf.load(FILES[name]))):
        check(where, node, get_object(node["_target_"]))


@pytest.mark.parametrize(("name", "where"), PASSED)
def test_options_that_are_passed_on_are_arguments_too(name: str, where: str) -> None:
    node = OmegaConf.to_container(OmegaConf.select(OmegaConf.load(FILES[name]), where))
    assert isinstance(node, dict)
    check(f"{name}: {where}", node, *PASSED[name, where])  # type: ignore[arg-type]


def test_keys_of_wandb_are_its_own() -> None:
    keys = composed("logger/wandb")["logger"]["wandb"].keys() - {"_target_"}
    assert keys <= inspect.signature(WandbLogger).parameters.keys() | set(
        inspect.signature(wandb.init).parameters
    )


def own_values(name: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Where a file gives a value to a node that it builds: place, value, default, comment."""
    lines = FILES[name].read_text().splitlines()

    def walk(node: yaml.Node, where: str) -> Iterator[tuple[str, Any, Any, str]]:
        if not isinstance(node, yaml.MappingNode):
            return
        tree = {key.value: value for key, value in node.value}
        target: Any = PASSED.get((name, where), (None,))[0]
        if "_target_" in tree:
            target = get_object(tree["_target_"].value)
        known = arguments(target)[0] if target is not None and is_own(target) else {}
        for key, value in tree.items():
            place = f"{where}.{key}".strip(".")
            yield from walk(value, place)
            if isinstance(value, yaml.MappingNode) or known.get(key, inspect.Parameter.empty) is (
                inspect.Parameter.empty
            ):
                continue
            comment = lines[value.start_mark.line].partition("  #")[2]
            yield place, yaml.safe_load(yaml.serialize(value)), known[key], comment

    root = yaml.compose(FILES[name].read_text())
    assert root is not None
    yield from walk(root, "")


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", [n for n in FILES if "/" in n and "experiment" not in n])
def test_a_value_is_the_default_or_says_that_it_is_not(name: str) -> None:
    for place, value, default, comment in own_values(name):
        if "${" in str(value) or value == "???":
            continue
        said = re.match(r" Python default (\[.*?\]|[^:;]*)", comment)
        if plain(value) == plain(default):
            assert said is None, f"{name}: {place} has its default and says it has not"
        else:
            assert said, f"{name}: {place} is {value}; say on its line `# Python default {default}`"
            assert yaml.safe_load(said[1]) == plain(default), f"{name}: {place}"


def leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        place = f"{where}.{key}".strip(".")
        if isinstance(value, dict) and value:
            yield from leaves(value, place)
        elif key != "defaults":
            yield place, value


def parents(name: str) -> list[str]:
    """The files of the same group that a file inherits from."""
    entries = OmegaConf.load(FILES[name]).get("defaults", ())
    near = [entry for entry in entries if isinstance(entry, str)]
    near = [n.lstrip("/") if n.startswith("/") else f"{name.partition('/')[0]}/{n}" for n in near]
    return [n for n in near if n in FILES and name.startswith(n.partition("/")[0])]


def written(name: str) -> dict[str, Any]:
    """What a file and those that it inherits from hold."""
    over = [OmegaConf.create(written(parent)) for parent in parents(name)]
    own = OmegaConf.load(FILES[name])
    own.pop("defaults", None)
    return OmegaConf.to_container(OmegaConf.merge(*over, own))  # type: ignore[return-value]


@pytest.mark.parametrize("name", [name for name in FILES if parents(name)])
def test_a_file_that_inherits_holds_only_what_differs(name: str) -> None:
    inherited = {place: value for p in parents(name) for place, value in leaves(written(p))}
    own = OmegaConf.to_container(OmegaConf.load(FILES[name]))
    for place, value in leaves(own):
        assert inherited.get(place, "nothing") != value, f"{name}: {place}, as in {parents(name)}"


def test_a_study_has_one_baseline() -> None:
    studies: dict[str, list[str]] = {}
    for name in FILES:
        if name.startswith("experiment/") and name.count("/") == 2 and not parents(name):
            studies.setdefault(name.split("/")[1], []).append(name)
    assert studies
    assert all(len(roots) == 1 for roots in studies.values()), studies
