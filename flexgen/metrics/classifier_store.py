"""Trained classifiers, saved beside the data they were trained on and reused only for these."""

import hashlib
import json
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flexgen.files import write_tensors
from flexgen.metrics.classifier import Classifier, check_labelled, num_epochs, train_classifier

_log = logging.getLogger(__name__)

# Changes with the network or its training, so that no file from before is taken for today's.
_VERSION = "1"


def load_or_train_classifier(
    name: str, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, num_classes: int,
    cache_dir: str | Path, *, seed: int = 0, epochs: int | None = None, progress: bool = False,
) -> Classifier:  # fmt: skip
    """The classifier saved for exactly these data, seed and epochs; else train one and save it.

    `cache_dir/name.safetensors` holds the weights and, as metadata, the test accuracy, the seed
    and a SHA-256 of all data. A file for other data, or one cut short, is trained anew and
    replaced in one step, so that a reader never sees half of one.

    Args:
        name: of the data set, and so of the file.
        x: training images, `(n, channels, height, width)`; what follows `y_test` is, but for the
            folder of the saved classifiers, as in `train_classifier`.
        y: their labels, `(n,)`.
        x_test: held-out images; they are not trained on.
        y_test: their labels.

    Returns:
        The classifier on the device of `x`; `metadata` holds what its file says, numbers as text:
        `accuracy` (of `x_test`, 0 to 1), `num_train`, `num_test`, `seed`, `epochs`, `data_hash`.

    Raises:
        ValueError: images and labels do not fit each other.
        OSError: the file cannot be written.
    """
    check_labelled(x, y, num_classes, "x", "y")
    check_labelled(x_test, y_test, num_classes, "x_test", "y_test")
    if not name or Path(name).name != name:
        raise ValueError(f"`name` must be a plain file name, got {name!r}; use the data set's name")
    path = Path(cache_dir) / f"{name}.safetensors"
    wanted = {
        "version": _VERSION,
        "data_hash": _hash(x, y, x_test, y_test),
        "shape": json.dumps(list(x.shape[1:])),
        "num_classes": str(num_classes),
        "seed": str(seed),
        "epochs": str(num_epochs(epochs, len(x))),
    }
    classifier = _load(path, wanted)
    if classifier is None:
        classifier = train_classifier(
            x, y, num_classes, seed=seed, epochs=epochs, progress=progress
        )
        accuracy = classifier.accuracy(x_test.to(x.device), y_test.to(x.device))
        sizes = {"num_train": str(len(x)), "num_test": str(len(x_test))}
        classifier.metadata = wanted | sizes | {"accuracy": repr(accuracy)}
        write_tensors(path, classifier.state_dict(), classifier.metadata)
    return classifier.to(x.device)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a file of :func:`load_or_train_classifier`'s.

    Raises:
        ValueError: if there is none.
    """
    classifier = _load(Path(path), {"version": _VERSION})
    if classifier is None:
        raise ValueError(
            f"{path} holds no classifier of FlexGen's; `flexgen evaluate` of a run with "
            "callbacks=[…,quality] and callbacks.quality.classifier=true saves one"
        )
    return classifier


def _load(path: Path, wanted: dict[str, str]) -> Classifier | None:
    """The classifier in the file, if there is a whole one for what is wanted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if any(metadata.get(key) != value for key, value in wanted.items()):
                _log.info("%s is of other data or settings; training anew", path)
                return None
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        _log.warning("%s cannot be read (%s); training anew", path, error)
        return None
    classifier = Classifier(tuple(json.loads(metadata["shape"])), int(metadata["num_classes"]))
    classifier.load_state_dict(state)
    classifier.metadata = metadata
    return classifier.eval().requires_grad_(False)


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
