"""Every data configuration builds what its file says."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flexgen.data import SPECS, DataModule

OWN = {"images", "toys", "array", "folder", "table"}  # parents, and data that tests of theirs make
CONF = Path(__file__).parents[2] / "conf" / "data"
FILES = [path for path in sorted(CONF.glob("*.yaml")) if path.stem not in OWN]


def load(path: Path) -> DictConfig:
    config = OmegaConf.create({"seed": 3, "paths": {"data_dir": "/nowhere"}})
    config.data = merged(path)
    return config.data


def merged(path: Path) -> DictConfig:
    """A file over those that it inherits from, as Hydra composes it."""
    own = OmegaConf.load(path)
    parents = [merged(path.with_stem(name)) for name in own.pop("defaults", [])]
    return OmegaConf.merge(*parents, own)  # type: ignore[return-value]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_builds(path: Path) -> None:
    config = load(path)
    data = instantiate(config)
    assert isinstance(data, DataModule)
    assert data.name == path.stem
    assert data.shape == tuple(config.shape)
    assert data.seed == 3
    assert data.range == (None if config.range is None else tuple(config.range))


def test_toys_and_digits_need_no_files() -> None:
    for name in ("ring8", "grid25", "swiss_roll", "digits"):
        data = instantiate(load(next(path for path in FILES if path.stem == name)))
        batch = next(data.stream())
        assert batch.x.shape == (data.batch_size, *data.shape)


def test_every_set_of_the_table_has_a_configuration() -> None:
    categories = {name for name in SPECS if name.startswith("lsun_")}
    stems = {path.stem for path in FILES}
    assert set(SPECS) - categories - OWN <= stems
    assert {"lsun_bedroom", "lsun_kitchen"} <= stems
