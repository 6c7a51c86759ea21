"""Class balance: counts, closed cases, what chance gives, refusals."""

import math

import pytest
import torch

from flexgen.metrics import ClassBalance, Classifier


def logits(classes: list[int], k: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), k).float()


def measured(x: torch.Tensor, **options) -> float:
    metric = ClassBalance(**options)
    metric.update(x)
    return float(metric.compute())


@pytest.mark.parametrize(
    ("classes", "expected"),
    [([0, 1, 2, 3], 0.0), ([0, 0, 0, 0], 0.75), ([0, 0, 1, 1], 0.5), ([3, 3, 3, 1], 0.5)],
)
def test_closed_cases(classes, expected):
    assert measured(logits(classes, 4)) == pytest.approx(expected)


def test_the_shares_of_the_data_are_no_imbalance():
    classes = [0, 0, 0, 1, 2, 2]
    wanted = torch.tensor([3, 1, 2]).double() / 6
    assert measured(logits(classes, 3), shares=wanted) == pytest.approx(0)
    assert measured(logits([1] * 6, 3), shares=wanted) == pytest.approx(5 / 6)


def test_even_samples_score_what_chance_gives():
    n, k = 500, 10
    generator = torch.Generator().manual_seed(0)
    scores = [
        measured(logits(torch.randint(k, (n,), generator=generator).tolist(), k))
        for _ in range(100)
    ]
    q = 1 / k
    expected = k * math.sqrt(q * (1 - q) / (2 * math.pi * n))
    assert sum(scores) / 100 == pytest.approx(expected, rel=0.05)


def test_a_class_that_no_sample_has_still_counts():
    metric = ClassBalance()
    for part in logits([0, 1, 1, 0], 5).split(1):
        metric.update(part)
    assert metric.shares().tolist() == [0.5, 0.5, 0, 0, 0]
    assert float(metric.compute()) == pytest.approx(0.6)


def test_images_go_through_the_classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier((1, 4, 4), 3, num_features=4)
        x = torch.randn(50, 1, 4, 4)
    classifier.train()
    metric = ClassBalance(classifier)
    metric.update(x)
    assert not classifier.training
    expected = classifier(x).argmax(1).bincount(minlength=3) / 50
    torch.testing.assert_close(metric.shares(), expected.double())


@pytest.mark.parametrize("shares", [[0.5, 0.6], [1.5, -0.5], [[1.0]], [float("nan"), 1.0]])
def test_what_are_no_shares_is_refused(shares):
    with pytest.raises(ValueError, match="`shares` must be"):
        ClassBalance(shares=torch.tensor(shares))


def test_refusals():
    metric = ClassBalance()
    metric.update(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="no samples to score"):
        metric.compute()
    with pytest.raises(ValueError, match=r"logits must have shape \(n, classes\), got \(2, 1, 3"):
        ClassBalance().update(torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="must have 2 features"):
        ClassBalance(shares=torch.tensor([0.5, 0.5])).update(torch.zeros(4, 3))
