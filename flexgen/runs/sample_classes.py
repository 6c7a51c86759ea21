"""Which classes samples are of: as asked of a conditional model, or as a classifier sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.callbacks.quality import classifier_of
from flexgen.checks import check_integer
from flexgen.runs.run import Run
from flexgen.untrusted import printable

_MOST_TOLD = 20


def asked_labels(run: Run, classes: Any, n: int) -> Tensor | None:
    """The label of each sample, `(n,)`; None of a model without classes.

    Args:
        run: the run that is sampled.
        classes: None: all in turn; a class or a list of them, by name or number: these in turn; a
            dictionary: so many of each, and `n` is not used.
        n: how many samples.

    Raises:
        ValueError: if the model is not conditional, or has no such class.
    """
    if classes is None:
        return run.model.in_turn(n)
    count, names = run.model.num_classes, run.data.class_names
    if count is None:
        raise ValueError(
            f"`classes` is for conditional models, got {classes!r}; leave it out, or train with "
            "conditional=true"
        )
    if not isinstance(classes, dict):
        given = classes if isinstance(classes, list) else [classes]
        labels = [_label(each, count, names) for each in given]
        if not labels:
            raise ValueError("`classes` must name at least one class, got []; leave it out for all")
        return torch.tensor(labels).repeat(-(-n // len(labels)))[:n]
    numbers = [check_integer(f"classes.{each}", number, 0) for each, number in classes.items()]
    labels = [_label(each, count, names) for each in classes]
    if not sum(numbers):
        raise ValueError(f"`classes` must ask for at least one sample, got {classes!r}")
    return torch.tensor(labels).repeat_interleave(torch.tensor(numbers))


def _label(asked: Any, count: int, names: Sequence[str] | None) -> int:
    if names and str(asked) in names:
        return [*names].index(str(asked))
    if isinstance(asked, int) and not isinstance(asked, bool) and 0 <= asked < count:
        return asked
    known = f"numbers below {count}" + (f", or names: {', '.join(names[:30])}" if names else "")
    raise ValueError(f"`classes` must be classes of the data, {known}; got {asked!r}")


def told_classes(run: Run, x: Tensor, labels: Tensor | None) -> str | None:
    """A line with the number of samples of each class.

    Of a model without labels they are as the classifier sees them that the run is scored by; None
    where there is none.

    Args:
        run: the run that was sampled.
        x: its samples, `(n, *shape)`.
        labels: what they were made of, `(n,)`.
    """
    names, seen = [printable(name) for name in run.data.class_names or []], ""
    if labels is None:
        quality = run.config["callbacks"].get("quality") or {}
        if not quality.get("classifier") or not run.data.num_classes or x.ndim != 4:
            return None
        classifier = classifier_of(run.data, quality["split"], Path(quality["cache_dir"]))
        labels = classifier(x.cpu()).argmax(1)
        accuracy = float(classifier.metadata["accuracy"])
        seen = f" by FlexGen's classifier, which is right on {accuracy:.0%} of held-out images"
    counts = torch.bincount(labels.cpu(), minlength=run.data.num_classes).tolist()
    if len(counts) > _MOST_TOLD:
        told = f"{len(counts)}, from {min(counts)} to {max(counts)} samples of each"
    else:
        told = ", ".join(f"{names[k] if names else k} {n}" for k, n in enumerate(counts))
    return f"classes{seen}: {told}"
