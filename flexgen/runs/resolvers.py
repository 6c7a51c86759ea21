"""What YAML can ask for in `${…}` beyond other keys."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

__all__ = ["register"]


def register() -> None:
    """Make `${classes:CONDITIONAL,DATA}` known: how many classes the data have, null if false."""
    OmegaConf.register_new_resolver("classes", _classes, replace=True)


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
