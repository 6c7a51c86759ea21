"""Hydra: compose a command's configuration, from the YAML or from a saved run."""

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexgen._conf import conf_dir
from flexgen.runs import resolvers
from flexgen.runs.cells import SweepFolder, raise_failures, run_cell, sweep_stopped
from flexgen.runs.trust import check_form, check_provenance, confine
from flexgen.untrusted import check_folder, parse_plain, read_start

__all__ = [
    "compose_prior",
    "explain",
    "is_sweep",
    "load_config",
    "plain",
    "relocate",
    "reversal_options",
    "run_hydra",
    "task_overrides",
]


def run_hydra(
    command: str,
    argv: list[str],
    task: Callable[[DictConfig], Any],
    *,
    on_run: bool = False,
    verbatim: dict[str, Any] | None = None,
) -> None:
    """Compose the configuration of `command` from `argv` and call `task` with it.

    Args:
        command: the name of its root YAML.
        argv: Hydra's overrides and flags.
        task: what to do with the configuration; with `-m` it is called for each cell.
        on_run: whether the command works on a run: then `run=PATH` is taken from `argv` and the
            configuration starts from the one which that run saved.
        verbatim: keys that Hydra must not read, for they are paths or share a group's name, with
            their defaults; taken from `argv` as they were typed.

    Raises:
        Exception: whatever `task` raises; with `-m`, after the other cells have run.
    """
    if {"--help", "-h"} & set(argv):
        print(explain(command))
    if on_run:
        argv = _take_run(command, argv)
    taken, argv = _take(argv, verbatim or {})
    resolvers.register()
    ConfigStore.instance().store(name="typed", node=OmegaConf.create(taken), package="_global_")
    # Hydra would print its own version of an error and exit; FlexGen tells it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    # Completion is installed for the program, not for one of its commands.
    sys.argv = ["flexgen" if "-sc" in argv else f"flexgen {command}", *argv]

    failed: list[Exception] = []
    entry = uuid.uuid4().hex

    # A launcher may call it in another process: what becomes of a cell is kept in files.
    def cell(cfg: DictConfig) -> None:
        sys.argv = typed  # what further processes of the trainer are started by
        if is_sweep():
            run_cell(task, cfg, entry)
            return
        try:
            task(cfg)
        except Exception as error:
            failed.append(error)  # Hydra would print more

    # hydra.main names the job after the module of its function.
    cell.__module__ = "__main__"
    SweepFolder.known = None
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(cell)()
    except (HydraException, OmegaConfBaseException) as error:
        if "sweep type : INTERVAL" in str(error):
            raise ValueError(
                "an interval has no grid; `flexgen search` draws from it, a sweep takes a=1,2 or "
                "range(…)"
            ) from error
        raise
    except Exception as error:
        if SweepFolder.known is None:
            raise
        raise sweep_stopped(SweepFolder.known, entry, error) from error
    if failed:
        raise failed[0]
    if SweepFolder.known:
        raise_failures(SweepFolder.known, entry)


def compose_prior(name: str, options: Iterable[str] = ()) -> dict[str, Any]:
    """The plain configuration of a prior for the run that a command works on.

    Args:
        name: of a YAML file in `conf/prior`.
        options: overrides as they are typed after `prior=NAME`, without the `prior.` before a key.

    Raises:
        HydraException: if there is no such prior or option.
    """
    overrides = [re.sub(r"^([~+]*)(?![^=]*@)", r"\1prior.", option) for option in options]
    cfg = compose("saved", [f"+prior={name}", *overrides])
    values: dict[str, Any] = OmegaConf.to_container(cfg.prior, resolve=True)  # type: ignore[assignment]
    return values


def explain(command: str) -> str:
    """What a command does and its own keys, as the comments of its root YAML say."""
    first, _, rest = (conf_dir() / f"{command}.yaml").read_text().partition("\n")
    keys = rest.partition("_self_\n")[2].partition("\nhydra:")[0].strip("\n")
    return f"{first.removeprefix('# ')}\n\n{keys}\n" if keys else f"{first.removeprefix('# ')}\n"


def load_config(run_dir: Path, trust: bool = False) -> dict[str, Any]:
    """The configuration that a run saved, with its paths as they are today.

    A run directory may have been moved since, and `FLEXGEN_DATA` may name another place for data.

    Args:
        run_dir: the run.
        trust: whether it may build and write whatever it says; see :mod:`flexgen.runs.trust`.

    Raises:
        FileNotFoundError: if `run_dir` is not a run directory.
        ValueError: if its configuration is damaged, or may not do what it says.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        below = (
            sorted(p.parent for p in run_dir.glob("**/config.yaml"))[:1] if run_dir.is_dir() else []
        )
        hint = f"did you mean {below[0]}?" if below else "a run directory holds config.yaml"
        raise FileNotFoundError(f"{run_dir} is not a run directory; {hint}")
    if not trust:
        check_folder(run_dir)
    try:
        saved = parse_plain(read_start(path))
        check_form(saved)
    except ValueError as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is damaged ({reason}); restore it or train again") from error
    check_provenance(run_dir)
    moved = [(saved["paths"]["run_dir"], str(run_dir))]
    if data_dir := os.environ.get("FLEXGEN_DATA"):
        moved.append((saved["paths"]["data_dir"], data_dir))
    saved = relocate(saved, moved)
    if not trust:
        confine(saved, run_dir)
    return saved


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolved plain values; the groups that only feed the model are left out.

    They are part of `model` by then: an override of, say, `network.…` on a saved run would change
    nothing, and so is an unknown key.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return {
        key: value
        for key, value in values.items()
        if key
        not in (
            "network",
            "prior",
            "posterior",
            "likelihood",
            "run",
            "checkpoint",
            "more",
            "refit",
            "reverse",
            "n",
            "n_fit",
            "seeds",
            "split",
            "priors",
            "out",
            "sample_seed",
        )
    }


def is_sweep() -> bool:
    """Whether this is a cell of a `-m` sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def reversal_options(config: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What the command asks for, on top of what the run's own reversal callback has."""
    own = (config["callbacks"].get("reversal") or {}).get("options", {})
    return own | {name: value for name, value in asked.items() if value is not None}


def task_overrides() -> list[str]:
    """The overrides that the user typed."""
    return list(HydraConfig.get().overrides.task)


def _take_run(command: str, argv: list[str]) -> list[str]:
    """Take `run=`, `checkpoint=` and `trust=` out of `argv`: in a path Hydra takes `=` amiss."""
    paths, rest = _take(argv, {"run": "", "checkpoint": "", "trust": "false"})
    if paths["trust"] not in ("true", "false"):
        raise ValueError(f"`trust` must be true or false, got {paths['trust']!r}")
    saved: dict[str, Any] = {}
    if paths["run"]:
        run_dir = Path(paths["run"]).resolve()
        # Tab completion builds nothing, and waits for no import.
        trust = paths["trust"] == "true" or "-sc" in argv
        saved = load_config(run_dir, trust) | {"run": str(run_dir)}
    elif not any(word.startswith("-") for word in argv):
        raise ValueError(f"which run? give run=PATH, as in `flexgen {command} run=runs/…`")
    saved["checkpoint"] = paths["checkpoint"] or None
    ConfigStore.instance().store(name="saved", node=OmegaConf.create(saved), package="_global_")
    return rest


def _take(argv: list[str], names: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of some keys as typed, else their defaults; and what else was typed."""
    found, rest = dict(names), []
    for word in argv:
        key, equals, value = word.partition("=")
        if key in found and equals:
            found[key] = value
        else:
            rest.append(word)
    return found, rest


def relocate(value: Any, moved: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {k: relocate(v, moved) for k, v in value.items()}
    if isinstance(value, list):
        return [relocate(v, moved) for v in value]
    if isinstance(value, str):
        for old, new in moved:
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
    return value
