"""What a checkpoint was made with, so that a resume goes on with the same or says what is new."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl

from flexgen.contracts import StreamSource
from flexgen.runs.folder import versions
from flexgen.runs.saved_config import PATH_KEYS
from flexgen.untrusted import printable

# Where data lie, how they are read and what is said of a run do not change the training.
_FREE = ("callbacks", "control", "logger", "name", "report", "steps", "threads", "data.download",
         "data.resident", "data.num_workers", "trainer.accelerator", "trainer.devices",
         "trainer.enable_progress_bar")  # fmt: skip

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
        digest = self.data.fingerprint() if isinstance(self.data, StreamSource) else None
        return {"config": _kept(self.config), "data": digest, "versions": versions()}


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
    then = _state(checkpoint)
    now = {"config": _kept(config), "versions": versions()}
    fixed = _FIXED | (_FIXED_IN_A_RUN if same_run else {})
    changed = []
    for part in ("config", "versions"):
        before, after = _plain(then.get(part)), now[part]
        keys = before.keys() | after.keys() if before else set()
        for key in sorted(keys, key=lambda key: (key.count("."), key)):
            old, new = before.get(key), after.get(key)
            if old == new:
                continue
            told = (
                f"`{key}` was {_short(old)} when the checkpoint was saved, and is {_short(new)} now"
            )
            told = printable(told)
            remedy = next((r for k, r in fixed.items() if _within(key, k)), None)
            if _scheduled(key, config):
                remedy = "the schedule of the step size goes on as it was; train a new run"
            if part == "config" and remedy:
                raise ValueError(f"{told}; {remedy}, or leave `{key}` as it was")
            changed.append(told)
    return changed


def check_same_data(config: dict[str, Any], data: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse data that have changed under the same configuration since a checkpoint was saved.

    Raises:
        ValueError: if the digest of the training data is another.
    """
    then = _state(checkpoint)
    configured = [_of_data(part) for part in (_kept(config), _plain(then.get("config")))]
    if not isinstance(data, StreamSource) or configured[0] != configured[1]:
        return
    if then.get("data") not in (None, data.fingerprint()):
        raise ValueError(
            "the training data are not those that the checkpoint was made with (other, more or "
            "fewer examples, or other labels); put them back as they were, or train a new run"
        )


def _state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What :class:`Fingerprint` left; empty where it was not there."""
    return _plain(checkpoint["callbacks"].get(Fingerprint.__qualname__))


def _plain(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) and all(isinstance(k, str) for k in value) else {}


def _kept(config: dict[str, Any]) -> dict[str, str]:
    return {
        key: value
        for key, value in _flat(config, "")
        if not PATH_KEYS.intersection(key.split(".")) and not any(_within(key, k) for k in _FREE)
    }


def _of_data(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if _within(key, "data")}


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, repr(value)


def _short(value: str | None) -> str:
    return "not there" if value is None else value if len(value) <= 60 else f"{value[:57]}…"


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _scheduled(key: str, config: dict[str, Any]) -> bool:
    """Whether a key is of an optimizer whose step size follows a schedule."""
    part, _, rest = key.partition(".")
    name = rest.partition(".")[0].replace("optimizer", "scheduler")
    return part == "model" and name.endswith("scheduler") and bool(config["model"].get(name))
