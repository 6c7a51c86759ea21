"""What YAML can ask for in `${…}` beyond other keys."""

import os
import uuid
from functools import partial
from hashlib import sha256
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


def register() -> None:
    """Make them known.

    `${base_or:KIND}`: in a defaults list, the run's choice of `prior@base`, or else KIND.
    `${classes:CONDITIONAL,DATA}`: how many classes the data have, null if false.
    `${lowest_level:LEVELS,LATENT_DIM}`: the size of a code's lowest level; of null levels, half.
    `${unique:}`: eight digits for the name of a folder that no other command has.
    `${folder_shape:ROOT}`, `${array_shape:ROOT,KEY}`, `${array_range:ROOT,KEY,DATA_RANGE}`,
    `${table_shape:ROOT,COLUMNS,LABEL}`: what is found in data of one's own.
    """
    for name in ("folder_shape", "array_shape", "array_range", "table_shape"):
        OmegaConf.register_new_resolver(name, partial(_found, name), replace=True, use_cache=True)
    OmegaConf.register_new_resolver("base_or", _base_or, replace=True)
    OmegaConf.register_new_resolver("classes", _classes, replace=True)
    OmegaConf.register_new_resolver("lowest_level", _lowest_level, replace=True)
    OmegaConf.register_new_resolver("unique", _unique, replace=True, use_cache=True)


def _base_or(kind: str, _root_: DictConfig) -> str:
    keys = [key for entry in _root_.defaults if isinstance(entry, DictConfig) for key in entry]
    nested = any(str(key).endswith("base.base") for key in keys)  # a base of the base: no circle
    return str(kind if nested else _root_.get("prior@base") or kind)


def _classes(conditional: bool, data: DictConfig) -> int | None:
    if conditional is not True:
        if conditional is not False:
            raise ValueError(f"`conditional` must be true or false, got {conditional!r}")
        return None
    from hydra.utils import instantiate

    from flexgen.runs.imports import importing

    with importing():
        module: Any = instantiate(data)
    if not module.num_classes:
        raise ValueError(
            f"`conditional=true` needs data with labels, which {module.name} has not; use "
            "data=digits or mnist, or conditional=false"
        )
    return int(module.num_classes)


def _found(name: str, root: str | None, *about: Any) -> list[float] | None:
    from flexgen.runs.imports import importing

    if root is None:
        raise ValueError("which data? give path=… to your own")
    with importing():
        from flexgen import data
    plain = [OmegaConf.to_container(x) if isinstance(x, ListConfig) else x for x in about]
    found = getattr(data, name)(root, *plain)
    return None if found is None else [*found]


def _lowest_level(levels: ListConfig | None, latent_dim: int) -> int:
    return latent_dim - latent_dim // 2 if levels is None else int(levels[0])


def _unique() -> str:
    """Eight digits for a folder that no other command has; all processes of a job have the same."""
    # Those that torchrun or srun starts compose their configurations apart.
    env = os.environ
    if max(int(env.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")) == 1:
        return uuid.uuid4().hex[:8]
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return sha256(" ".join(env.get(name, "") for name in names).encode()).hexdigest()[:8]
