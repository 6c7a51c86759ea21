"""Every data configuration builds what its file says, from keys that the constructor knows."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from flexgen.data import SPECS, DataModule

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


def load(path: Path) -> DictConfig:
    config = OmegaConf.create({"seed": 3, "paths": {"data_dir": "/nowhere"}})
    own = OmegaConf.load(path)
    parents = [OmegaConf.load(path.with_stem(name)) for name in own.pop("defaults", [])]
    config.data = OmegaConf.merge(*parents, own)
    return config.data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_builds(path: Path) -> None:
    config = load(path)
    keys = set(config) - {"_target_"}
    assert keys <= set(inspect.signature(get_class(config._target_)).parameters)
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
    assert set(SPECS) - categories <= stems
    assert {"lsun_bedroom", "lsun_kitchen"} <= stems
