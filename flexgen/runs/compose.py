"""Configurations that Hydra composes from the YAML and overrides, as plain values."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flexgen._conf import conf_dir
from flexgen.runs.errors import error_line
from flexgen.runs.resolvers import register
from flexgen.untrusted import lies_in

# Groups that only feed the model, and the keys of a command that are no part of a run.
_NOT_SAVED = {
    "network", "prior", "base", "schedule", "posterior", "likelihood", "output", "run",
    "checkpoint", "more", "refit", "reverse", "n", "n_fit", "seeds", "split", "priors", "out",
    "sample_seed", "to", "parts",
}  # fmt: skip


register()


def compose(
    overrides: Iterable[str] = (), *, config_dir: str | Path | None = None
) -> dict[str, Any]:
    """The configuration of a new run, as `flexgen train` composes it from the same words.

    Args:
        overrides: as they are typed, such as `["data=ring8", "model.critic_steps=3"]`; `path=…` is
            the path of data of one's own.
        config_dir: a folder with YAML of your own, say `experiment/mine.yaml`, beside FlexGen's.

    Returns:
        Plain values, for :func:`flexgen.runs.train.train`. The run's folder, `paths.run_dir`, is
        one that no other run has, unless it was given. `overrides` are the words again, by which
        tables tell runs apart: change a value by a word, not in here. An experiment that is a grid
        comes without its grid, see :func:`grid`.

    Raises:
        ValueError: if the words name what is not there.
        FileNotFoundError: if there is no such folder.
    """
    words = own_data(overrides)
    own = []
    if config_dir is not None:
        if not (folder := Path(config_dir).absolute()).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; `config_dir` holds YAML groups")
        own = [f"hydra.searchpath=[{quoted(folder)}]"]
    with _hydra():
        cfg = hydra.compose("train", [*own, *words], return_hydra_config=True)
        run_dir = OmegaConf.to_container(cfg.paths, resolve=False)["run_dir"]  # type: ignore[index,call-overload]
        if run_dir.startswith("${hydra:"):  # which is known while a command runs
            cfg.paths.run_dir = str(Path(cfg.hydra.run.dir).absolute())
        with open_dict(cfg):
            del cfg["hydra"]
        config = plain(cfg)
    return config | {"overrides": [w for w in words if not w.lstrip("+~").startswith("hydra")]}


def compose_prior(config: dict[str, Any], name: str, options: Iterable[str] = ()) -> dict[str, Any]:
    """The plain configuration of a prior for a run, by its name in `conf/prior` and overrides as
    they are typed after `prior=NAME`, without the `prior.` before a key.

    Raises:
        ValueError: if there is no such prior or option.
    """
    overrides = [re.sub(r"^([~+]*)(?![^=]*@)", r"\1prior.", option) for option in options]
    store = ConfigStore.instance()
    store.store(name="composed_run", node=OmegaConf.create(config), package="_global_")
    with _hydra():
        cfg = hydra.compose("composed_run", [f"+prior={name}", *overrides])
        values: dict[str, Any] = OmegaConf.to_container(cfg.prior, resolve=True)  # type: ignore[assignment]
    return values


def grid(overrides: Iterable[str]) -> list[list[str]]:
    """All combinations of overrides such as `seed=0,1`, in the order of a sweep and in its words:
    it writes `report=false` as `report=False`, `lr=1e-3` as `lr=0.001`."""

    def choice(word: Override) -> list[str]:
        if word.is_delete() and word.value() is None:
            return [word.get_key_element()]
        key, sweep = word.get_key_element(), word.is_sweep_override()
        values = word.sweep_string_iterator() if sweep else [word.get_value_element_as_str()]
        return [f"{key}={value}" for value in values]

    choices = map(choice, OverridesParser.create().parse_overrides(list(overrides)))
    return [list(words) for words in itertools.product(*choices)]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolved plain values; the groups that only feed the model are left out.

    They are part of `model` by then: an override of, say, `network.…` on a saved run would change
    nothing, and so is an unknown key.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    values = {key: value for key, value in values.items() if key not in _NOT_SAVED}
    for key in ("seed", "steps", "model", "data", "paths"):
        if key not in values:
            raise ValueError(f"no run can be without `{key}`; leave out ~{key}")
    if isinstance(cfg.get("schedule"), DictConfig) and "_target_" not in cfg.schedule:
        keys = ", ".join(f"`schedule.{key}`" for key in cfg.schedule)
        raise ValueError(
            f"schedule=constant has no keys, got {keys}; "
            "add schedule=warmup, or another schedule that has them"
        )
    if "experiment" in values:
        raise ValueError(
            "the experiment's keys lie below `experiment`, where nothing reads them; let its YAML "
            "begin with the line `# @package _global_`"
        )
    root = (values.get("data") or {}).get("root")
    if root and not lies_in(Path(root), Path(values["paths"]["data_dir"])):
        if values["data"].get("name") == "digits":
            raise ValueError(
                f"digits come with scikit-learn and have no path, got {root}; say what your own "
                "data are: data=folder, data=array or data=table"
            )
        root = os.path.expanduser(root)
        values["data"]["root"] = os.path.abspath(root)  # the run is opened from other folders too
    return values


def own_data(words: Iterable[str]) -> list[str]:
    """The words with `path=…`, a path as it was typed, as the override that Hydra reads of it:
    the absolute path of data of one's own."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "path" and value:
            word = f"data.root={quoted(Path(os.path.abspath(os.path.expanduser(value))))}"
        found.append(word)
    return found


def is_sweep() -> bool:
    """Whether this is a cell of a `-m` sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def task_overrides() -> list[str]:
    """The overrides that the user typed."""
    return list(HydraConfig.get().overrides.task)


def config_dirs() -> list[str]:
    """The folders of the user's own YAML, as `--config-dir` names them."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [os.path.abspath(s.path) for s in sources if s.provider == "command-line"]


def quoted(path: Path) -> str:
    """A path as a value that Hydra reads as it is."""
    return "'" + str(path).replace("'", "\\'") + "'"


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra over FlexGen's YAML: that of the command at work, which may have more of the user's."""
    # There is one in a process. Whoever else uses it, a notebook say, has it back afterwards.
    there = GlobalHydra.instance()
    ours = there.is_initialized() and any(
        source.path == str(conf_dir()) for source in there.config_loader().get_sources()
    )
    others = there.hydra
    try:
        if ours:
            yield
            return
        there.hydra = None
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(error_line(error)) from error
    finally:
        GlobalHydra.instance().hydra = others
