"""How far samples are from held-out data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen import metrics
from flexgen.callbacks.measurement import ALONE, Measurement
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.contracts import Prior
from flexgen.metrics import Classifier, earth_mover_distance, load_or_train_classifier


class SampleQuality(Measurement):
    """Earth mover's distance of samples to held-out data, and what else the data allow.

    Logged: `emd/samples`, the mean over `draws` sample sets, and `emd/floor`, the same for sets
    of training data; on toys with modes `modes/captured`, `modes/high_quality` and
    `modes/total_variation`; with a classifier `fid`, `kid` and `inception` from the features of
    one that FlexGen trains on the data set itself, and `classes/total_variation` between the
    classes that it sees in the samples and the shares that the held-out data have.

    Of a conditional model the samples are of the labels of the held-out data, and with a
    classifier there is `classes/accuracy` too, the share of samples that it takes for the class
    they were made of, and `classes/accuracy_lowest`, that share of the worst class.

    With a file of Inception's weights there are `fid/inception` and `kid/inception` of images, by
    the features that published figures are of; these are of 10,000 images and more, and FID is
    biased upwards for fewer.

    A prior that draws by score adds `emd/unmasked`, the distance of samples from its base, and
    what it says of its draws, e.g. `samples/acceptance`. Training logs `prior/acceptance` as a mean
    over its steps, of other sizes and by the networks as they were in each: two names, two curves.

    Args:
        n: samples and data a set; at most what the split holds.
        split: which part of the data to compare with.
        draws: independent sample sets that are averaged.
        classifier: whether to score with a classifier, where the data have classes.
        cache_dir: where trained classifiers are kept.
        features: file of Inception's weights, see :class:`flexgen.metrics.InceptionFeatures`.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: if `n` or `draws` is under 1.
    """

    needs = ("prior",)
    split: str

    def __init__(
        self, *, n: int = 1000, split: str = "validation", draws: int = 4, classifier: bool = False,
        cache_dir: str = "data/classifiers", features: str | None = None, **schedule: Any,
    ) -> None:  # fmt: skip
        super().__init__(**schedule)
        for name, value in (("n", n), ("draws", draws)):
            check_integer(name, value)
        self.n, self.split, self.draws = n, split, draws
        self.classifier, self.cache_dir = classifier, Path(cache_dir)
        self.features = features
        self._floor_of: tuple[Any, float] | None = None

    def check(self, model: Any, data: Any) -> None:
        super().check(model, data)
        if self.features is not None:
            metrics.InceptionFeatures(self.features)

    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        n = min(self.n, data.size(self.split), data.size("train"))
        held_out, label = data.split(self.split, n, self.seed)
        context = context_of(model, label)
        prior = model.prior.current
        sets, statistics = self._draw(model, prior, n, context)
        values = {
            "emd/samples": _mean_distance(sets, held_out),
            "emd/floor": self._floor(data, held_out),
            "prior/stage": float(model.prior.in_use),
        }
        values |= {f"samples/{name}": value for name, value in statistics.items()}
        if (unmasked := prior.unmasked) is not None:
            plain, _ = self._draw(model, unmasked, n, context)
            values["emd/unmasked"] = _mean_distance(plain, held_out)
        samples = torch.cat(sets)
        if (centres := data.centres) is not None:
            coverage = metrics.ModeCoverage(centres, data.std, **ALONE)
            coverage.update(samples)
            values |= {f"modes/{name}": float(v) for name, v in coverage.compute().items()}
        if self.classifier and data.num_classes and held_out.ndim == 4:
            labels = None if context is None else context.cpu().repeat(self.draws)
            values |= self._classify(samples, labels, data)
        if self.features is not None and held_out.ndim == 4:
            inception = metrics.InceptionFeatures(self.features, data.range)
            real, _ = data.split(self.split, None, self.seed)
            values |= {f"{k}/inception": v for k, v in distances(inception, samples, real).items()}
        return values

    def _draw(
        self, model: Any, prior: Prior, n: int, context: Tensor | None
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Sample sets by codes of `prior`, and the means of what it may say of its draws."""
        sets, told = [], []
        with model.evaluating():
            for _ in range(self.draws):
                z = prior.draw(n, context)
                told.append(prior.statistics)
                sets.append(model.decode(z, context).cpu())
        return sets, {k: sum(float(t[k]) for t in told) / self.draws for k in told[0]}

    def _floor(self, data: Any, held_out: Tensor) -> float:
        """The distance of training data, which is the same at every measurement of one data set."""
        if self._floor_of is None or self._floor_of[0] is not data:
            n = len(held_out)
            sets = [data.split("train", n, self.seed + i)[0] for i in range(self.draws)]
            self._floor_of = data, _mean_distance(sets, held_out)
        return self._floor_of[1]

    def _classify(self, samples: Tensor, made_of: Tensor | None, data: Any) -> dict[str, float]:
        held_out, labels = data.split(self.split, None, self.seed)
        classifier = classifier_of(data, self.split, self.cache_dir)
        values = class_scores(classifier, samples, held_out, labels)
        if made_of is not None:
            rows = [made_of == label for label in made_of.unique().tolist()]
            of_class = [classifier.accuracy(samples[r], made_of[r]) for r in rows]
            values["classes/accuracy"] = classifier.accuracy(samples, made_of)
            values["classes/accuracy_lowest"] = min(of_class)
        return values


def classifier_of(data: Any, split: str, cache_dir: Path) -> Classifier:
    """The classifier of a data set, trained on its training images and tested on a split."""
    (x, y), (x_test, y_test) = data.split("train"), data.split(split)
    return load_or_train_classifier(data.name, x, y, x_test, y_test, data.num_classes, cache_dir)


def class_scores(
    classifier: Classifier, samples: Tensor, held_out: Tensor, labels: Tensor
) -> dict[str, float]:
    """`inception`, `classes/total_variation`, `fid` and `kid` of samples against labelled data."""
    wanted = labels.bincount(minlength=classifier.num_classes).double() / len(labels)
    score = metrics.ClassifierScore(classifier, **ALONE)
    balance = metrics.ClassBalance(classifier, wanted, **ALONE)
    for alone in (score, balance):
        alone.update(samples)
    values = {"inception": float(score.compute())}
    values["classes/total_variation"] = float(balance.compute())
    return values | distances(classifier, samples, held_out)


def distances(
    features: Classifier | metrics.InceptionFeatures, samples: Tensor, held_out: Tensor,
    batch_size: int = 256,
) -> dict[str, float]:  # fmt: skip
    """`fid` and `kid` of samples against data by some features."""
    found = {
        "fid": metrics.frechet_distance(features, **ALONE),
        "kid": metrics.kernel_distance(features, **ALONE),
    }
    for metric in found.values():
        for x, real in ((held_out, True), (samples, False)):
            for part in x.split(batch_size):
                metric.update(part, real=real)
    return {name: float(metric.compute()) for name, metric in found.items()}


def _mean_distance(sets: list[Tensor], data: Tensor) -> float:
    return sum(float(earth_mover_distance(x, data)) for x in sets) / len(sets)
