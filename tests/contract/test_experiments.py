"""Every study says what a rerun should give, in a table of its README."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexgen.report.catalogue import METRICS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def leaves(tree: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    for key, value in tree.items():
        if isinstance(value, dict) and "tolerance" in value:
            yield key, value
        elif isinstance(value, dict):
            yield from leaves(value, key)


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*/expected.yaml")), ids=lambda p: p.parent.name
)
def test_expected_values_stand_in_the_readme(path: Path) -> None:
    readme = (path.parent / "README.md").read_text()
    for study in yaml.safe_load(path.read_text()).values():
        assert f"## {study['table']}" in readme
        found = list(leaves(study))
        assert found
        for metric, expected in found:
            assert metric in METRICS or "/" not in metric, metric
            assert expected["tolerance"] > 0


def test_every_study_has_a_readme() -> None:
    for folder in EXPERIMENTS.iterdir():
        if folder.is_dir() and any(folder.iterdir()):
            assert (folder / "README.md").is_file()
            assert (folder / "expected.yaml").is_file()
