"""Cluster ratio: scatter matrices, an independent index, chance level, errors."""

import math

import pytest
import torch
from sklearn.metrics import calinski_harabasz_score

from flexgen.metrics import ClusterRatio

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(4, (90,), generator=GENERATOR)
CODES = torch.randn(90, 5, generator=GENERATOR, dtype=torch.float64) + 2 * LABELS[:, None]


def measured(z: torch.Tensor, y: torch.Tensor, num_classes: int = 4) -> float:
    metric = ClusterRatio(num_classes)
    metric.update(z, y)
    return float(metric.compute())


def test_it_is_the_ratio_of_the_traces_of_the_scatter_matrices():
    between, within = torch.zeros(5, 5).double(), torch.zeros(5, 5).double()
    for c in range(4):
        z = CODES[c == LABELS]
        shift = z.mean(0) - CODES.mean(0)
        between += len(z) * torch.outer(shift, shift)
        within += (z - z.mean(0)).T @ (z - z.mean(0))
    assert measured(CODES, LABELS) == pytest.approx(float(between.trace() / within.trace()))


def test_it_is_the_calinski_harabasz_index_without_its_factor():
    index = calinski_harabasz_score(CODES.numpy(), LABELS.numpy())
    assert measured(CODES, LABELS) == pytest.approx(index * (4 - 1) / (90 - 4))


def test_it_does_not_depend_on_scale_place_or_unused_classes():
    expected = measured(CODES, LABELS)
    assert measured(100 + 7 * CODES, LABELS) == pytest.approx(expected)
    assert measured(CODES, 2 * LABELS, num_classes=9) == pytest.approx(expected)


def test_classes_at_random_have_the_ratio_of_chance():
    z = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
    y = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(2))
    assert measured(z, y) == pytest.approx(3 / 3996, rel=0.8)


def test_classes_that_are_points_have_an_infinite_ratio():
    assert measured(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])) == math.inf


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, dtype=torch.long), "one whole number for each of the 4 codes"),
        (torch.zeros(4), "got .* of torch.float32"),
        (torch.tensor([0, 1, 2, 4]), r"`y` must be in \[0, 3\], got 0 to 4"),
        (torch.tensor([0, 1, 2, -1]), r"`y` must be in \[0, 3\], got -1 to 2"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        measured(torch.ones(4, 2), y)


def test_what_has_no_ratio_is_refused():
    with pytest.raises(
        ValueError, match="`num_classes` must be a whole number of at least 2, got 1"
    ):
        ClusterRatio(1)
    with pytest.raises(ValueError, match="at least 2 classes must have codes, got 1"):
        measured(torch.ones(4, 2), torch.full((4,), 3))
    with pytest.raises(ValueError, match="all one point"):
        measured(torch.ones(4, 2), torch.tensor([0, 1, 2, 3]))
