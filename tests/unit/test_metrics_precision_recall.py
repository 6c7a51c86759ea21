"""Precision, recall, density, coverage: an independent reference, closed cases, expectations."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from flexgen.metrics import Classifier, EarthMoverDistance, PrecisionRecall, precision_recall


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(real: torch.Tensor, fake: torch.Tensor, k: int = 5) -> dict[str, float]:
    metric = PrecisionRecall(num_neighbours=k)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def reference(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """By loops over points, and radii from scikit-learn's search trees."""

    def radii(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]

    def inside(y: np.ndarray, centre: np.ndarray, radius: float) -> bool:
        return math.dist(y, centre) <= radius

    of_real, of_fake = radii(real), radii(fake)
    hits = [[inside(y, x, r) for x, r in zip(real, of_real, strict=True)] for y in fake]
    back = [[inside(x, y, r) for y, r in zip(fake, of_fake, strict=True)] for x in real]
    return {
        "precision": sum(any(row) for row in hits) / len(fake),
        "recall": sum(any(row) for row in back) / len(real),
        "density": sum(map(sum, hits)) / (k * len(fake)),
        "coverage": sum(any(column) for column in zip(*hits, strict=True)) / len(real),
    }


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("d", [2, 100])
def test_an_independent_reference_agrees(d, k):
    real, fake = normal(50, d), 0.3 + 1.2 * normal(40, d, seed=1)
    assert measured(real, fake, k) == pytest.approx(reference(real.numpy(), fake.numpy(), k))


def test_blocks_do_not_matter(monkeypatch):
    real, fake = normal(50, 3), 0.5 + normal(41, 3, seed=1)
    whole = measured(real, fake)
    monkeypatch.setattr(precision_recall, "PAIRS_AT_ONCE", 7 * 41)
    assert measured(real, fake) == whole


@pytest.mark.parametrize("d", [2, 100])
def test_the_data_themselves_are_all_inside(d):
    x = normal(60, d)
    found = measured(x, x.flip(0))
    # Every ball holds its k neighbours and its centre.
    assert found == {"precision": 1, "recall": 1, "density": pytest.approx(6 / 5), "coverage": 1}


def test_samples_far_away_score_nothing():
    x = normal(60, 3)
    assert set(measured(x, x + 100).values()) == {0}


def test_what_is_missing_shows_where_it_should():
    real = torch.cat([normal(200, 2), normal(200, 2, seed=1) + 20])
    one_mode = measured(real, normal(400, 2, seed=2))
    assert one_mode["precision"] > 0.9
    assert one_mode["density"] > 0.9
    assert one_mode["recall"] < 0.55
    assert one_mode["coverage"] < 0.55
    with_outliers = measured(real[:200], torch.cat([normal(200, 2, seed=2), real[200:]]))
    assert with_outliers["precision"] < 0.55
    assert with_outliers["recall"] > 0.9


def test_one_distribution_scores_the_expected_density_and_coverage():
    n, m, k = 100, 80, 5
    found = [measured(normal(n, 4, seed=i), normal(m, 4, seed=1000 + i), k) for i in range(200)]
    missed = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    for name, expected in (("density", 1.0), ("coverage", 1 - missed)):
        values = np.array([f[name] for f in found])
        assert abs(values.mean() - expected) < 4 * values.std() / 200**0.5


def test_images_are_compared_by_a_classifiers_features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier((1, 4, 4), 3, num_features=4).eval()
    real, fake = normal(30, 1, 4, 4).float(), normal(30, 1, 4, 4, seed=1).float()
    metric = PrecisionRecall(classifier)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    found = {name: float(value) for name, value in metric.compute().items()}
    with torch.no_grad():
        assert found == measured(classifier.features(real), classifier.features(fake))


def test_refusals():
    with pytest.raises(
        ValueError, match="`num_neighbours` must be a whole number of at least 1, got 0"
    ):
        PrecisionRecall(num_neighbours=0)
    with pytest.raises(ValueError, match="more than `num_neighbours` 5 points, got 9 real and 5"):
        measured(normal(9, 2), normal(5, 2))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_far_from_the_origin_a_permutation_of_the_data_scores_as_the_data(offset: float) -> None:
    x = offset + torch.rand(20, 784, dtype=torch.float64).repeat_interleave(10, 0)
    metric, emd = PrecisionRecall(), EarthMoverDistance()
    for scores in (metric, emd):
        scores.update(x, real=True)
        scores.update(x.flip(0), real=False)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {"precision": 1, "recall": 1, "density": pytest.approx(2), "coverage": 1}
    assert float(emd.compute()) == 0
