"""Earth mover's and energy distance: independent solvers, chance level, errors."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance, wasserstein_distance

from flexgen.metrics import (
    NSCD,
    EarthMoverDistance,
    EnergyDistance,
    earth_mover_distance,
    streaming,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(metric, real: torch.Tensor, fake: torch.Tensor) -> float:
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


@pytest.mark.parametrize("d", [2, 7, 100])
def test_emd_is_the_cost_of_the_optimal_assignment(d):
    real, fake = normal(60, d), 0.5 + 2 * normal(60, d, seed=1)
    cost = cdist(real.numpy(), fake.numpy())
    rows, columns = linear_sum_assignment(cost)
    expected = cost[rows, columns].mean()
    assert float(earth_mover_distance(real, fake)) == pytest.approx(expected, rel=1e-12)
    assert measured(EarthMoverDistance(), real, fake) == pytest.approx(expected, rel=1e-12)


def test_emd_in_one_dimension_is_the_distance_of_the_sorted_points():
    real, fake = normal(80, 1), 1 - 3 * normal(80, 1, seed=1)
    expected = wasserstein_distance(real[:, 0].numpy(), fake[:, 0].numpy())
    assert float(earth_mover_distance(real, fake)) == pytest.approx(expected, rel=1e-12)


def test_emd_of_a_translation_is_its_length_and_of_a_reordering_exactly_zero():
    x = normal(50, 3)
    shift = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64)
    assert float(earth_mover_distance(x, x + shift)) == pytest.approx(3.0, rel=1e-12)
    assert float(earth_mover_distance(x, x.flip(0))) == 0.0


def test_emd_flattens_images():
    real, fake = normal(20, 2, 3, 3), normal(20, 2, 3, 3, seed=1)
    flat = earth_mover_distance(real.flatten(1), fake.flatten(1))
    assert measured(EarthMoverDistance(), real, fake) == float(flat)


def test_emd_refuses_unequal_or_empty_sets():
    metric = EarthMoverDistance()
    metric.update(normal(5, 2), real=True)
    metric.update(normal(4, 2), real=False)
    message = r"equal sizes above 0, got 5 \(a, or real\) and 4"
    with pytest.raises(ValueError, match=message):
        metric.compute()
    with pytest.raises(ValueError, match=message):
        earth_mover_distance(normal(5, 2), normal(4, 2))
    with pytest.raises(ValueError, match="equal sizes above 0, got 0"):
        earth_mover_distance(normal(0, 2), normal(0, 2))
    with pytest.raises(ValueError, match="`b` must have the 2 features of `a`, got 3"):
        earth_mover_distance(normal(5, 2), normal(5, 3))


def test_emd_is_never_a_value_short_of_the_optimum(monkeypatch):
    from ot import emd2

    monkeypatch.setattr("ot.emd2", lambda *a, **k: emd2(*a, **{**k, "numItermax": 1}))
    with (
        pytest.warns(UserWarning, match="numItermax"),
        pytest.raises(RuntimeError, match="transport between 30 points was not solved"),
    ):
        earth_mover_distance(normal(30, 2), normal(30, 2, seed=1))


def test_biased_energy_distance_is_scipys_squared():
    real, fake = normal(40, 1), 0.7 + 1.5 * normal(55, 1, seed=1)
    expected = energy_distance(real[:, 0].numpy(), fake[:, 0].numpy()) ** 2
    assert measured(EnergyDistance(unbiased=False), real, fake) == pytest.approx(expected)


def test_unbiased_energy_distance_is_the_mean_over_distinct_pairs():
    real, fake = normal(12, 3).numpy(), normal(9, 3, seed=1).numpy()
    within = [cdist(x, x)[~np.eye(len(x), dtype=bool)].mean() for x in (real, fake)]
    expected = 2 * cdist(real, fake).mean() - sum(within)
    got = measured(EnergyDistance(), torch.tensor(real), torch.tensor(fake))
    assert got == pytest.approx(expected, rel=1e-12)


def test_unbiased_energy_distance_is_zero_on_average_for_equal_distributions():
    values = torch.tensor(
        [measured(EnergyDistance(), normal(20, 3, seed=s), normal(30, 3, seed=~s % 10**6))
         for s in range(300)]
    )  # fmt: skip
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    biased = measured(EnergyDistance(unbiased=False), normal(20, 3), normal(30, 3, seed=1))
    assert biased > 20 * error


def test_nscd_is_the_squared_distance_of_mean_directions():
    draws, codes = 2 + 3 * normal(4000, 3), 5 + normal(3000, 3, seed=1)
    u = [
        torch.nn.functional.normalize((z - draws.mean(0)) / draws.std(0)).mean(0)
        for z in (draws, codes)
    ]
    got = measured(NSCD(), draws, codes)
    assert got == pytest.approx(float((u[0] - u[1]).square().sum()), abs=1e-3)
    assert got > 0.3
    # In other units of the codes it is the same, and where they lie far apart too.
    assert measured(NSCD(), 1 - 7 * draws, 1 - 7 * codes) == pytest.approx(got, rel=1e-9)


def test_nscd_of_the_priors_own_codes_is_zero_within_its_error():
    n, d = 50, 4
    values = torch.tensor(
        [measured(NSCD(), normal(n, d, seed=s), normal(n, d, seed=10**6 - s)) for s in range(300)]
    )
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert float(values.std()) == pytest.approx(8**0.5 / (n * d**0.5), rel=0.2)


def test_energy_distance_in_blocks_is_the_same(monkeypatch):
    real, fake = normal(40, 3), normal(33, 3, seed=1)
    whole = measured(EnergyDistance(), real, fake)
    monkeypatch.setattr(streaming, "PAIRS_AT_ONCE", 100)
    assert measured(EnergyDistance(), real, fake) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("unbiased", "least"), [(True, 2), (False, 1)])
def test_energy_distance_refuses_samples_that_are_too_small(unbiased, least):
    with pytest.raises(ValueError, match=f"at least {least} points, got 4 real and {least - 1}"):
        measured(EnergyDistance(unbiased), normal(4, 2), normal(least - 1, 2))
    assert math.isfinite(measured(EnergyDistance(unbiased), normal(4, 2), normal(least, 2)))


@pytest.mark.parametrize("metric", [EarthMoverDistance, EnergyDistance])
def test_data_that_do_not_fit_are_refused(metric):
    metric = metric()
    metric.update(normal(4, 2), real=True)
    with pytest.raises(ValueError, match=r"`x` must have 2 features.*got 3"):
        metric.update(normal(4, 3), real=False)
    with pytest.raises(ValueError, match="`x` must be finite"):
        metric.update(torch.full((4, 2), math.nan), real=False)
    with pytest.raises(ValueError, match=r"`x` must have shape \(n, features\), got \(4,\)"):
        metric.update(torch.zeros(4), real=False)


def test_the_callers_tensor_may_change_afterwards():
    real, fake = normal(10, 2), normal(10, 2, seed=1)
    expected = float(earth_mover_distance(real, fake))
    metric = EarthMoverDistance()
    metric.update(real, real=True)
    real.zero_()
    metric.update(fake, real=False)
    assert float(metric.compute()) == expected
