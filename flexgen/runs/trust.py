"""What a saved configuration may build and where it may write, unless its run is trusted."""

import inspect
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from flexgen._conf import conf_dir
from flexgen._version import __version__
from flexgen.runs.errors import error_reason
from flexgen.runs.imports import importing
from flexgen.untrusted import lies_in, nodes, read_start

_PACKAGES = ("flexgen", "torch.nn", "torch.optim", "torchvision.transforms", "torchmetrics",
             "pytorch_lightning", "zuko")  # fmt: skip

# Where a class is defined says what it is, whatever name leads to it. Of torchmetrics, those that
# neither download a network nor take the name of one; of Lightning, what our YAML builds.
_HOMES = (
    *(f"flexgen.{part}" for part in ("callbacks", "data", "flows", "likelihoods", "models",
      "networks", "objectives", "outputs", "posteriors", "priors", "regularisers",
      "training.csv_logger", "training.lr_schedules",
      "training.wandb_logger")),
    "torch.nn", "torch.optim", "torchvision.transforms", "zuko",
    *(f"torchmetrics.{part}" for part in ("aggregation", "classification", "clustering", "nominal",
      "regression", "retrieval")),
    *(f"pytorch_lightning.{part}" for part in ("trainer.trainer", "loggers.csv_logs",
      "loggers.tensorboard", "loggers.wandb")),
)  # fmt: skip

# Others could name a server, or have source code sent to one.
_OF_LOGGERS = {
    "TensorBoardLogger": {"name", "version", "sub_dir", "prefix", "log_graph", "default_hp_metric"},
    "WandbLogger": {"project", "entity", "name", "group", "job_type", "id", "tags", "notes", "last",
                    "offline"},
}  # fmt: skip

_OWN_DATA = "own_data.jsonl"
_TARGET = {"_target_", "_args_"}
_MOST_THREADS = 1024  # some thousands end the process, without a word


def check_form(saved: dict[str, Any]) -> None:
    """Refuse, by a ValueError of a few words, a configuration that no run can have saved."""
    for name in ("hydra", "defaults"):  # those of the command itself, with its code
        if name in saved:
            raise ValueError(f"it sets `{name}`, which no run saves")
    for name, kind in (("paths", dict), ("seed", int), ("steps", int), ("callbacks", dict),
                       ("logger", dict)):  # fmt: skip
        if not isinstance(saved.get(name), kind):
            raise ValueError(f"`{name}` must be there, as {kind.__name__}")
    for name in ("run_dir", "data_dir"):
        if not isinstance(saved["paths"].get(name), str) or not saved["paths"][name]:
            raise ValueError(f"`paths.{name}` must be a path")
    parts = {name: saved.get(name) for name in ("data", "model", "trainer")}
    for group in ("callbacks", "logger"):
        parts |= {f"{group}.{k}": v for k, v in saved[group].items() if v is not None}
    for name, part in parts.items():
        if not isinstance(part, dict) or not isinstance(part.get("_target_"), str):
            raise ValueError(f"`{name}` must have a `_target_`")
    if not {"accelerator", "strategy"} <= saved["trainer"].keys():
        raise ValueError("`trainer` must have `accelerator` and `strategy`")
    threads = saved.get("threads")
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= _MOST_THREADS):
        raise ValueError(f"`threads` must be from 1 to {_MOST_THREADS}, got {threads!r:.40}")


def check_provenance(run_dir: Path) -> None:
    """Refuse, by a ValueError, a `provenance.json`, of a run or its control, that no run has saved.

    The checkpoint that a run started from is the one file outside its folder that is read: to see
    that it is the one whose hash is noted here, and then to start from it again.
    """
    for path in (run_dir / "provenance.json", run_dir / "control" / "provenance.json"):
        if not path.is_file():
            continue
        try:
            about = json.loads(read_start(path))
            parent = about["parent"]
            known = isinstance(about["command"], str) and "finished" in about
            made_by = about["versions"]["flexgen"]
            if parent is not None:
                known &= parent["checkpoint"].endswith(".ckpt")
                known &= isinstance(parent["sha256"], str)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {str(error)[:100]}"
            raise ValueError(f"{path} is damaged ({reason}); restore it") from error
        if not known:
            raise ValueError(f"{path} is damaged (it is not as runs write it); restore it")
        if made_by == "0.1.0":
            raise ValueError(
                f"{run_dir} was made by flexgen 0.1.0, whose runs and checkpoints {__version__} "
                "does not load; train again, or use flexgen 0.1.0"
            )


def confine(saved: dict[str, Any], run_dir: Path, typed: Iterable[str] = ()) -> None:
    """Refuse what a run that is not trusted must not build; have the rest stay in its folder.

    Each `_target_`, at any depth, must be a class that FlexGen or one of the libraries it builds on
    defines for such use. What these write goes into the run's folder, and trained classifiers into
    the user's own cache, whatever the configuration says. Data come from the user's data folder, or
    from where the user has trained on them before; nothing is downloaded. W&B is told nothing, and
    machines are not waited for, but as typed.

    The configuration, with `paths.data_dir` as it is today, is changed in place; `typed` are the
    overrides on top of it.

    Raises:
        ValueError: naming the key, what it is, and `trust=true`.
    """
    targets = [(w, n) for w, n in nodes(saved) if isinstance(n, dict) and _TARGET & n.keys()]
    for where, node in targets:
        _check_name(where, node)
    for where, node in targets:
        _check_class(where, node, run_dir)
    keys = [word.lstrip("+~").partition("=")[0] for word in typed]
    paths, data = saved["paths"], saved["data"]
    paths |= {"run_dir": str(run_dir), "cache_dir": own_folder("cache_dir")}
    for logger in filter(None, saved["logger"].values()):
        if logger["_target_"].endswith(".WandbLogger"):
            online = any(key.startswith("logger") for key in keys)
            logger |= {"project": "flexgen", "entity": None, "offline": not online}
    if "num_nodes" in saved["trainer"]:
        saved["trainer"]["num_nodes"] = 1
    if data.get("download"):
        data["download"] = False
    root = str(data.get("root") or "")
    asked = "data.root" in keys
    if root and not asked and not _is_known(root, paths["data_dir"]):
        raise ValueError(
            f"the run's data lie in {root!r}, outside of the data folder {paths['data_dir']!r}, "
            "and no run was trained on them here; if these are what you mean, type path=…, or if "
            "you trust this run say trust=true"
        )
    folders = (run_dir, Path(paths["cache_dir"]))
    for where, value in nodes({name: value for name, value in saved.items() if name != "paths"}):
        if where != "data.root" and isinstance(value, str):
            path = PurePath(value)
            leads = path.is_absolute() or ".." in path.parts or value.startswith("~")
            if leads and not any(lies_in(Path(value), folder) for folder in folders):
                raise _untrusted(where, value)


def remember_data(config: dict[str, Any]) -> None:
    """Note in the user's own cache where data of one's own lie, which a command was given to train
    on: runs may be opened on them from now on."""
    root = config["data"].get("root")
    if not root or _is_known(str(root), own_folder("data_dir")):
        return
    notes = Path(own_folder("cache_dir")) / _OWN_DATA
    with suppress(OSError):  # a run is opened by path=… then
        notes.parent.mkdir(parents=True, exist_ok=True)
        with notes.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(str(root)) + "\n")


def _is_known(root: str, data_dir: str) -> bool:
    return lies_in(Path(root), Path(data_dir)) or root in _remembered()


def _remembered() -> set[str]:
    try:
        text = (Path(own_folder("cache_dir")) / _OWN_DATA).read_text("utf-8", "surrogateescape")
    except OSError:
        return set()
    found = set()
    for line in text.splitlines():
        with suppress(ValueError):  # one that was cut off
            found.add(str(json.loads(line)))
    return found


def own_folder(name: str) -> str:
    """The user's own `data_dir` or `cache_dir`."""
    return str(OmegaConf.load(conf_dir() / "common.yaml").paths[name])


def own_code(command: str, words: list[str]) -> bool:
    """Whether a command line names code of the user's own, which may lie in the working directory.

    Without, it is not looked for there: it may be the folder of a run from elsewhere.
    """
    return command in ("train", "search") or any(
        "_target_" in word or word == "trust=true" for word in words
    )


@contextmanager
def rebuilding(run_dir: Path | str) -> Iterator[None]:
    """Say by a ValueError that a run cannot be rebuilt, where its parts fail in their own ways."""
    try:
        yield
    except Exception as error:
        inner: BaseException = error
        while isinstance(inner, InstantiationException) and inner.__cause__ is not None:
            inner = inner.__cause__
        if isinstance(inner, (ValueError, OSError, RuntimeError, FloatingPointError, ImportError)):
            raise
        raise ValueError(
            f"{run_dir} cannot be rebuilt from its configuration: {error_reason(inner)}; "
            "restore its config.yaml and checkpoints, and check what was typed"
        ) from error


def _check_name(where: str, node: dict[str, Any]) -> None:
    """What can be told without importing anything."""
    name = node.get("_target_")
    if "_args_" in node:
        raise _untrusted(f"{where}._args_", "arguments without their names")
    words = isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
    if not words or not any(str(name).startswith(f"{package}.") for package in _PACKAGES):
        raise _untrusted(f"{where}._target_", name)


def _check_class(where: str, node: dict[str, Any], run_dir: Path) -> None:
    name: str = node["_target_"]
    found = _find(name)
    if found is None:  # this installation lacks it, which Hydra says better
        return
    if not isinstance(found, type) or not _at_home(found):
        raise _untrusted(f"{where}._target_", name)
    # Not only those that are there: the default may be the working directory.
    mine = {"save_dir": str(run_dir), "default_root_dir": str(run_dir),
            "cache_dir": f"{own_folder('cache_dir')}/classifiers"}  # fmt: skip
    taken = inspect.signature(found).parameters.keys()
    node.update({key: value for key, value in mine.items() if key in taken})
    allowed = _OF_LOGGERS.get(found.__name__)
    for key in node:
        special = key.startswith("_") or key in mine
        if allowed is not None and not special and key not in allowed:
            raise _untrusted(f"{where}.{key}", node[key])


def _find(name: str) -> Any:
    """What a dotted name leads to by way of modules of its own package; None: nothing, or more."""
    parts = name.split(".")
    found: Any = None
    for i in range(len(parts)):
        path = ".".join(parts[: i + 1])
        if found is not None and hasattr(found, parts[i]):
            found = getattr(found, parts[i])
        else:
            try:
                with importing():
                    found = import_module(path)
            except ImportError:
                return None
        if i < len(parts) - 1 and not (isinstance(found, ModuleType) and found.__name__ == path):
            return False  # through another package, or into a class
    return found


def _at_home(found: type) -> bool:
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import Logger

    kinds = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler,
             Trainer, Logger)  # fmt: skip
    home = found.__module__
    listed = any(home == prefix or home.startswith(f"{prefix}.") for prefix in _HOMES)
    return listed and (home.startswith("flexgen.") or issubclass(found, kinds))


def _untrusted(where: str, what: object) -> ValueError:
    return ValueError(
        f"the run's `{where}` is {what!r:.80}, which a run from elsewhere may not use; if you "
        "trust it, say trust=true"
    )
