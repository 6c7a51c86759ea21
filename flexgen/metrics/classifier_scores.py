"""Scores of images through a classifier: Inception-style score, Fréchet and kernel distance."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from flexgen.checks import check_integer
from flexgen.metrics.classifier import Classifier
from flexgen.metrics.inception import InceptionFeatures
from flexgen.metrics.streaming import LogitsMetric, StreamingMetric, sum_over_pairs


class ClassifierScore(LogitsMetric):
    r"""Inception score of images with any classifier in the place of Inception.

    $$ \exp E_x \operatorname{KL}\big( p(y \mid x) \,\|\, p(y) \big) $$

    1 for images that all look alike to the classifier, up to the number of classes for images that
    it is sure of and that fill the classes evenly. Compare values of one classifier only. Its
    state is a sum of probabilities and one of negative entropies a split.

    Args:
        classifier: of images; without one, `update` takes logits `(n, classes)`.
        num_splits: number of parts to score apart and average. The i-th image of a process belongs
            to part i modulo `num_splits`. Small parts bias the score downwards; with more than 1
            the value depends on the order of the images and on the number of processes.

    Raises:
        ValueError: `num_splits` is below 1.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016, section 4; the default
    of one split, which uses all images and adds up exactly over processes, is ours (theirs is 10).

    Example:
        >>> score = ClassifierScore()
        >>> score.update(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))
        >>> float(score.compute())
        2.0
    """

    higher_is_better = True

    count: Tensor
    sum_negative_entropy: Tensor
    sum_probs: Tensor

    def __init__(
        self, classifier: nn.Module | None = None, num_splits: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(classifier, **kwargs)
        check_integer("num_splits", num_splits, 1, "use 1 for all")
        self.num_splits = num_splits
        per_split = torch.zeros(num_splits, dtype=torch.float64)
        self.add_state("count", per_split, dist_reduce_fx="sum")
        self.add_state("sum_negative_entropy", per_split, dist_reduce_fx="sum")
        self.add_state("sum_probs", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _blank(self, width: int) -> dict[str, Tensor]:
        return {"sum_probs": self.sum_probs.new_zeros(self.num_splits, width)}

    def _add(self, logits: Tensor) -> None:
        log_probs = logits.log_softmax(1)
        probs = log_probs.exp()
        splits = torch.arange(self.num_splits, device=self.device)
        position = torch.arange(len(logits), device=self.device) + self.count.sum()
        member = (splits[:, None] == position % self.num_splits).double()
        self.count = self.count + member.sum(1)
        negative_entropy = (probs * log_probs).sum(1)
        self.sum_negative_entropy = self.sum_negative_entropy + member @ negative_entropy
        self.sum_probs = self.sum_probs + member @ probs

    def compute(self) -> Tensor:
        """The mean of the splits' scores, a float64 scalar, 1 to the number of classes.

        Raises:
            ValueError: there were fewer images than splits.
        """
        return self._scores().mean()

    def split_scores(self) -> Tensor:
        """The score of each split, `(num_splits,)`; as `compute`, call it in each process."""
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._scores()

    def _scores(self) -> Tensor:
        if (self.count == 0).any():
            raise ValueError(
                f"each of the {self.num_splits} splits needs an image, got "
                f"{int(self.count.sum())} in all; update with more"
            )
        marginal = self.sum_probs / self.count[:, None]
        negative_entropy = torch.xlogy(marginal, marginal).sum(1)
        return (self.sum_negative_entropy / self.count - negative_entropy).exp()


class Features(nn.Module):
    """Features of a classifier or of Inception as a module's output, as torchmetrics takes them."""

    def __init__(self, classifier: Classifier | InceptionFeatures) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, num_features)` of images; a ValueError if one is not finite."""
        features = self.classifier.features(x)
        if not features.isfinite().all():
            raise ValueError(
                "`imgs` must be finite, got NaN or infinity; look for the generator that diverged"
            )
        return features


def frechet_distance(
    classifier: Classifier | InceptionFeatures, *, reset_real_features: bool = True, **kwargs: Any
) -> FrechetInceptionDistance:
    """Fréchet distance (FID) in the features of our classifier or Inception's, on its device.

    Update it with images in the classifier's range, `update(x, real=True)` and `real=False`;
    `compute` gives a float32 scalar. The value is biased upwards in samples that are not many
    times more than the features, and comparable only under one classifier and one n.

    Args:
        classifier: whose `num_features` features are compared.
        reset_real_features: whether `reset` forgets the data's moments too.
    """
    kwargs |= {"normalize": True, "reset_real_features": reset_real_features}
    metric = FrechetInceptionDistance(feature=Features(classifier), **kwargs)
    # torchmetrics sets this in `update` and reads it in `compute`, so that a process without
    # images of its own would fail.
    metric.orig_dtype = torch.float32
    return metric.to(classifier.loc.device)


class KernelDistance(StreamingMetric, KernelInceptionDistance):
    r"""Kernel distance (KID) of all images in the features of a classifier of ours, on its device.

    $$ \widehat{\mathrm{MMD}}^2, \quad k(a, b) = (a^\top b / f + 1)^3 $$

    the unbiased estimate: 0 in expectation for equal distributions, and negative at times.
    torchmetrics averages the same estimate over random subsets from the global generator, so that
    two calls of `compute` differ; all images at once have the same expectation and less variance.

    Args:
        classifier: whose f features are compared.
        reset_real_features: whether `reset` forgets the data's features too.

    Source: Bińkowski et al., Demystifying MMD GANs, 2018, section 4 (of the estimator: Gretton et
    al., A Kernel Two-Sample Test, 2012, lemma 6).
    """

    def __init__(
        self, classifier: Classifier | InceptionFeatures, *, reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
            super().__init__(
                feature=Features(classifier), reset_real_features=reset_real_features, **kwargs
            )
        # torchmetrics gathers batch by batch, and waits for ever where one process had fewer.
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")
        self.to(classifier.loc.device)

    def _blank(self, width: int) -> dict[str, Tensor]:
        empty = torch.empty(0, width, device=self.device)
        return {"real_features": empty, "fake_features": empty}

    def compute(self) -> Tensor:  # type: ignore[override]
        """The squared distance, a float64 scalar.

        Raises:
            ValueError: fewer than two images on one side.
        """
        real = self.concatenated("real_features").double()
        fake = self.concatenated("fake_features").double()
        if min(len(real), len(fake)) < 2:
            raise ValueError(
                f"both sides must have at least 2 images, got {len(real)} real and {len(fake)} "
                "fake; update with more"
            )
        across = sum_over_pairs(real, fake, _kernel) / (len(real) * len(fake))
        within = []
        for x in (real, fake):
            with_self = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
            pairs = len(x) * (len(x) - 1)
            within.append((sum_over_pairs(x, x, _kernel) - with_self) / pairs)
        return within[0] + within[1] - 2 * across


kernel_distance = KernelDistance


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1).pow(3)
