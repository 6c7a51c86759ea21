"""What FlexGen imports is what it declares, so that a plain installation has all it needs."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONAL = {
    "torch_fidelity", "zuko", "lmdb", "onnx", "optuna", "pyarrow", "wandb-workspaces",
    "hydra-ray-launcher",
}  # fmt: skip
"""Of an extra: imported where they are asked for, and told of where they are missing."""


def imported() -> dict[str, str]:
    """Modules of others that the package's files import, each with one file that does."""
    found = {}
    for path in sorted((ROOT / "flexgen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names}:
                found.setdefault(top, str(path.relative_to(ROOT)))
    return {top: file for top, file in found.items() if top not in sys.stdlib_module_names}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[ ]", word)[0].lower() for word in project["dependencies"]}
    owners = packages_distributions()
    for top, file in imported().items():
        # What an extra gives may not be installed; then its module has its own name.
        names = {name.lower() for name in owners.get(top, [top])}
        assert names & (declared | OPTIONAL | {"flexgen"}), f"{file} imports {top}, not declared"
