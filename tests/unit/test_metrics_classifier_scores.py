"""Scores through a classifier: independent references, chance level, determinism, errors."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from flexgen.metrics import (
    Classifier,
    ClassifierScore,
    classifier_scores,
    frechet_distance,
    kernel_distance,
    streaming,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier((1, 8, 8), 5, num_features=6).eval().requires_grad_(False)


REAL, FAKE = normal(80, 1, 8, 8), 0.5 + normal(70, 1, 8, 8, seed=1)


def measured(metric, real: torch.Tensor = REAL, fake: torch.Tensor = FAKE) -> float:
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def inception(logits: torch.Tensor) -> float:
    p = logits.double().softmax(1).numpy()
    return math.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))


def test_score_is_the_exponential_of_the_mean_divergence():
    logits = 3 * normal(60, 7)
    score = ClassifierScore()
    score.update(logits)
    assert float(score.compute()) == pytest.approx(inception(logits), rel=1e-10)


def test_score_of_images_goes_through_the_classifier(classifier):
    score = ClassifierScore(classifier)
    score.update(REAL)
    assert float(score.compute()) == pytest.approx(inception(classifier(REAL)), rel=1e-6)


def test_score_puts_the_classifier_in_evaluation_mode():
    dropout = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train()
    score = ClassifierScore(dropout)
    score.update(REAL)
    assert float(score.compute()) == pytest.approx(inception(REAL.flatten(1)), rel=1e-6)


def test_score_runs_from_one_to_the_number_of_classes():
    for logits, expected in ((1e4 * torch.eye(6), 6.0), (torch.zeros(9, 6), 1.0)):
        score = ClassifierScore()
        score.update(logits)
        assert float(score.compute()) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_splits_take_every_kth_image_however_batched(batch):
    logits = 3 * normal(50, 4)
    score = ClassifierScore(num_splits=3)
    for part in logits.split(batch):
        score.update(part)
    expected = [inception(logits[i::3]) for i in range(3)]
    assert score.split_scores().tolist() == pytest.approx(expected, rel=1e-10)
    assert float(score.compute()) == pytest.approx(np.mean(expected), rel=1e-10)


def test_score_refuses_what_it_cannot_score(classifier):
    with pytest.raises(
        ValueError, match="`num_splits` must be a whole number of at least 1, got 0"
    ):
        ClassifierScore(num_splits=0)
    with pytest.raises(ValueError, match=r"must have shape \(n, classes\), got \(80, 1, 8, 8\)"):
        ClassifierScore().update(REAL)
    with pytest.raises(ValueError, match="`logits` must be finite"):
        ClassifierScore().update(torch.full((2, 3), math.nan))
    few = ClassifierScore(num_splits=4)
    few.update(normal(3, 2))
    with pytest.raises(ValueError, match="each of the 4 splits needs an image, got 3"):
        few.compute()


def test_frechet_distance_is_that_of_the_features_moments(classifier):
    real, fake = (classifier.features(x).double().numpy() for x in (REAL, FAKE))
    a, b = np.cov(real.T), np.cov(fake.T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert measured(frechet_distance(classifier)) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_is_torchmetrics_over_one_subset_of_all(classifier):
    with pytest.warns(UserWarning, match="will save all extracted features"):
        reference = KernelInceptionDistance(
            feature=classifier_scores.Features(classifier), subsets=1, subset_size=70
        )
    reference.update(REAL[:70], real=True)
    reference.update(FAKE, real=False)
    expected = float(reference.compute()[0])
    assert measured(kernel_distance(classifier), REAL[:70]) == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_of_unequal_sets_is_the_mean_over_distinct_pairs(classifier, monkeypatch):
    real, fake = (classifier.features(x).double().numpy() for x in (REAL, FAKE))

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    within = [kernel(x, x)[~np.eye(len(x), dtype=bool)].mean() for x in (real, fake)]
    expected = sum(within) - 2 * kernel(real, fake).mean()
    assert measured(kernel_distance(classifier)) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(streaming, "PAIRS_AT_ONCE", 500)
    assert measured(kernel_distance(classifier)) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_zero_on_average_for_equal_distributions(classifier):
    values = torch.tensor(
        [
            measured(
                kernel_distance(classifier),
                normal(20, 1, 8, 8, seed=2 * s),
                normal(30, 1, 8, 8, seed=2 * s + 1),
            )
            for s in range(60)
        ]
    )
    assert abs(values.mean()) < 4 * values.std() / 60**0.5
    assert values.min() < 0 < values.max()


@pytest.mark.parametrize("build", [frechet_distance, kernel_distance])
class TestFeatureDistances:
    def test_a_shift_is_farther_than_chance(self, build, classifier):
        chance = measured(build(classifier), REAL, normal(70, 1, 8, 8, seed=2))
        assert measured(build(classifier)) > 5 * abs(chance)

    def test_real_features_are_kept_on_request(self, build, classifier):
        metric = build(classifier, reset_real_features=False)
        expected = measured(metric)
        metric.reset()
        metric.update(FAKE, real=False)
        assert float(metric.compute()) == expected

    def test_images_that_do_not_fit_are_refused(self, build, classifier):
        metric = build(classifier)
        with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\)"):
            metric.update(torch.zeros(4, 1, 9, 9), real=True)
        with pytest.raises(ValueError, match="`imgs` must be finite"):
            metric.update(torch.full((4, 1, 8, 8), math.nan), real=True)


def test_kernel_distance_refuses_too_few_images(classifier):
    with pytest.raises(ValueError, match="at least 2 images, got 80 real and 1 fake"):
        measured(kernel_distance(classifier), REAL, FAKE[:1])
