"""A page of the API reference for each public module: its `__all__`, or all its public names."""

import inspect
from importlib import import_module
from types import ModuleType

from docstrings import readable
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = "reference/api"
MODULES = [
    "flexgen", "flexgen.priors", "flexgen.flows", "flexgen.distributions", "flexgen.posteriors",
    "flexgen.likelihoods", "flexgen.outputs", "flexgen.regularisers", "flexgen.networks",
    "flexgen.objectives", "flexgen.models", "flexgen.reversal", "flexgen.codes",
    "flexgen.metrics", "flexgen.data", "flexgen.callbacks", "flexgen.training", "flexgen.report",
    "flexgen.contracts",
]  # fmt: skip


def on_config(config: MkDocsConfig) -> None:
    section = next(item["Reference"] for item in config.nav or () if "Reference" in item)
    section.append({"Python": [{name: f"{FOLDER}/{name}.md"} for name in MODULES]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    for name in MODULES:
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=page(name)))


def page(name: str) -> str:
    module = import_module(name)
    lines = [f"# {name}", "", readable(inspect.cleandoc(module.__doc__ or "")), ""]
    for member in members(module):
        lines += [f"::: {name}.{member}", ""]
    return "\n".join(lines)


def members(module: ModuleType) -> list[str]:
    """Classes and functions, of a package those that it names, of a module those it defines."""
    named = getattr(module, "__all__", None)
    names = named or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]
