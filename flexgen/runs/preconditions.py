"""What a checkpoint was made with, so that a resume goes on with the same or says what is new."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from flexgen.contracts import StreamSource
from flexgen.runs.folder import read_provenance, versions
from flexgen.runs.saved_config import PATH_KEYS
from flexgen.untrusted import nodes, printable

# Where data lie, how they are read and what is said of a run do not change the training.
_FREE = ("callbacks", "control", "logger", "name", "report", "same_data", "steps", "threads",
         "data.download", "data.resident", "data.num_workers", "trainer.accelerator",
         "trainer.devices", "trainer.enable_progress_bar")  # fmt: skip

_NAMES = "the saved configuration has its value in its parts already; type those, as `model.…`"
_FIXED = {
    "latent_dim": _NAMES,
    "conditional": _NAMES,
    "num_classes": _NAMES,
    "model.prior": "a prior is changed by `flexgen refit`",
}
_FIXED_IN_A_RUN = {
    "seed": "the checkpoint holds the random numbers' states; train a new run",
    "data": "what was trained on and what was held out would mix; train a new run",
}


class Fingerprint(pl.Callback):
    """Keeps in each checkpoint the configuration, a digest of the training data, and versions."""

    def __init__(self, config: dict[str, Any], data: Any) -> None:
        self.config, self.data = config, data

    def state_dict(self) -> dict[str, Any]:
        digest = self.data.fingerprint if isinstance(self.data, StreamSource) else None
        return {"settings": _settings(self.config), "data": digest}


def new_settings(
    config: dict[str, Any], checkpoint: dict[str, Any], *, same_run: bool = True
) -> list[str]:
    """What differs from the settings that a checkpoint was made with, a line each.

    Args:
        config: of the run that goes on.
        checkpoint: from which it does.
        same_run: whether it is the run that saved it, or a refit of it.

    Raises:
        ValueError: if something differs with which the run cannot go on; it names the key.
    """
    before, now = _saved(checkpoint)[0], _settings(config)
    fixed = _FIXED | (_FIXED_IN_A_RUN if same_run else {})
    changed = []
    keys = before.keys() | now.keys() if before else set()
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        remedy = next((remedy for part, remedy in fixed.items() if _within(key, part)), None)
        if _scheduled(key, config):
            remedy = "the schedule of the step size goes on as it was; train a new run"
        told = f"`{key}` was {_short(old)} when the checkpoint was saved, and is {_short(new)} now"
        told = printable(told)
        if remedy:
            raise ValueError(f"{told}; {remedy}, or leave `{key}` as it was")
        changed.append(told)
    return changed


def check_same_data(config: dict[str, Any], data: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse data that have changed under the same configuration since a checkpoint was saved,
    unless `same_data` is false.

    Raises:
        ValueError: if the digest of the training data is another.
    """
    before, digest = _saved(checkpoint)
    now = _data_settings(config)
    same = config.get("same_data", True) and now.items() <= before.items()
    if not isinstance(data, StreamSource) or not same:
        return
    if digest not in (None, data.fingerprint):
        raise ValueError(
            "the training data are not those that the checkpoint was made with (other, more or "
            "fewer examples, or other labels); put them back as they were, or train a new run; or "
            "go on all the same by same_data=false"
        )


def record_data(config: dict[str, Any], data: Any) -> dict[str, Any] | None:
    """What a run notes of its data, for :func:`check_recorded`."""
    if not isinstance(data, StreamSource) or not (found := data.record()):
        return None
    return found | {"settings": _data_settings(config)}


def check_recorded(run_dir: Path, config: dict[str, Any], data: Any) -> None:
    """Refuse data that have changed since a run noted what they were, unless `same_data` is false,
    or how they are read has been changed on purpose.

    Raises:
        ValueError: if they have.
    """
    before = read_provenance(run_dir).get("data") if config.get("same_data", True) else None
    if not isinstance(before, dict) or before.get("settings") != _data_settings(config):
        return
    # A run of before a part of the record was kept is compared in the others.
    now = {k: v for k, v in (record_data(config, data) or before).items() if k in before}
    if now == before:
        return
    counts = [
        " + ".join(f"{found[part]} {part}" for part in found if isinstance(found[part], int))
        for found in (before, now)
    ]
    told = f"{counts[0]} then, {counts[1]} now" if counts[0] != counts[1] else "as many, but others"
    raise ValueError(
        f"the data of {run_dir} have changed since it was trained ({printable(told)}); put them "
        "back as they were, or train a new run; or go on all the same by same_data=false"
    )


def _data_settings(config: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in _settings(config).items() if _within(key, "data")}


def _saved(checkpoint: dict[str, Any]) -> tuple[dict[str, str], Any]:
    """The settings and the digest that :class:`Fingerprint` left; where it did not, none."""
    state = checkpoint["callbacks"].get(Fingerprint.__qualname__, {})
    settings = state.get("settings")
    pairs = settings.items() if isinstance(settings, dict) else ()
    return {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}, state.get("data")


def _settings(config: dict[str, Any]) -> dict[str, str]:
    kept = {
        key: repr(value)
        for key, value in nodes(config)
        if not (isinstance(value, dict | list) and value)
        and not PATH_KEYS.intersection(key.split("."))
        and not any(_within(key, k) for k in _FREE)
    }
    return kept | {f"version of {package}": number for package, number in versions().items()}


def _short(value: str | None) -> str:
    return "not there" if value is None else value if len(value) <= 60 else f"{value[:57]}…"


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _scheduled(key: str, config: dict[str, Any]) -> bool:
    """Whether a key is of an optimizer whose step size follows a schedule, or of the schedule; but
    this may be stretched over more steps."""
    part, _, rest = key.partition(".")
    name = rest.partition(".")[0].replace("optimizer", "scheduler")
    scheduled = name.endswith("scheduler") and bool(config["model"].get(name))
    return part == "model" and scheduled and not rest.endswith("scheduler.steps")
