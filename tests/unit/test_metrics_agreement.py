"""Prior agreement: closed forms, finite-sample bias, interval, errors."""

import math

import pytest
import torch

from flexgen.metrics import PriorAgreement, pag_bias, pag_interval


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def codes_with(nu: torch.Tensor, n: int) -> torch.Tensor:
    """Codes whose uncentred second moment has exactly the eigenvalues nu², in a turned basis."""
    d = len(nu)
    left = torch.linalg.qr(normal(n, d)).Q
    right = torch.linalg.qr(normal(d, d, seed=1)).Q
    return math.sqrt(n) * left * nu @ right


def score(z: torch.Tensor, **kwargs) -> float:
    metric = PriorAgreement(**kwargs)
    metric.update(z)
    return float(metric.compute())


def formula(nu: torch.Tensor, sigma: float) -> float:
    return sum(0.5 * (v**2 / sigma**2 - math.log(v**2 / sigma**2) - 1) for v in nu.tolist())


@pytest.mark.parametrize("sigma", [1.0, 0.5, 3.0])
def test_unit_score_is_the_formula_of_the_second_moment(sigma):
    nu = torch.tensor([0.2, 0.9, 1.0, 1.7, 4.0], dtype=torch.float64)
    z = codes_with(nu, n=40)
    expected = formula(nu, sigma)
    assert score(z, sigma=sigma, bias_correct=False) == pytest.approx(expected, rel=1e-12)
    assert score(z, sigma=sigma) == pytest.approx(expected - pag_bias(40, 5), rel=1e-12)


def test_unit_score_is_the_divergence_between_the_gaussians():
    nu = torch.tensor([0.3, 1.2, 2.0], dtype=torch.float64)
    codes = torch.distributions.Normal(torch.zeros(3).double(), nu)
    prior = torch.distributions.Normal(torch.zeros(3).double(), 1.5)
    expected = torch.distributions.kl_divergence(codes, prior).sum()
    z = codes_with(nu, n=30)
    assert score(z, sigma=1.5, bias_correct=False) == pytest.approx(float(expected), rel=1e-12)


def test_literal_score_of_perfect_codes_has_the_published_magnitude_and_falls_when_they_shrink():
    perfect = codes_with(torch.ones(20, dtype=torch.float64), n=1024)
    literal = score(perfect, convention="literal")
    assert literal == pytest.approx(0.5 * 20 * (1024 - math.log(1024) - 1), rel=1e-12)
    assert literal == pytest.approx(10160, abs=1)
    assert score(0.5 * perfect, convention="literal") < literal
    assert score(0.5 * perfect) > score(perfect)


def test_literal_score_ignores_the_bias_correction():
    z = normal(50, 4)
    assert score(z, convention="literal", bias_correct=True) == score(
        z, convention="literal", bias_correct=False
    )


def test_bias_has_the_stated_value_and_order():
    assert pag_bias(1024, 20) == pytest.approx(0.103, abs=5e-4)
    assert pag_bias(10**6, 20) == pytest.approx(20 * 21 / (4 * 10**6), rel=1e-4)
    # d = 1 has a closed form of its own: E log chi² with 2 degrees of freedom is log 2 - gamma.
    assert pag_bias(2, 1) == pytest.approx(0.5 * 0.5772156649015329, rel=1e-12)


@pytest.mark.parametrize("spread", [1.0, 0.4])
def test_corrected_score_of_gaussian_codes_is_unbiased(spread):
    n, d, sets = 40, 5, 400
    scores = torch.tensor([score(spread * normal(n, d, seed=s)) for s in range(sets)])
    truth = d * formula(torch.tensor([spread]), 1.0)
    error = scores.std() / math.sqrt(sets)
    assert abs(scores.mean() - truth) < 4 * error
    assert pag_bias(n, d) > 10 * error  # so that a missing or doubled correction would show


def test_singular_values_are_those_of_all_codes():
    z = normal(60, 6)
    metric = PriorAgreement()
    for part in z.split(7):
        metric.update(part)
    torch.testing.assert_close(metric.singular_values(), torch.linalg.svdvals(z))


def test_a_constant_dimension_scores_infinity():
    z = normal(30, 4)
    z[:, 2] = z[:, 0]
    assert score(z) == math.inf
    assert score(torch.zeros(30, 4)) == math.inf
    assert pag_interval(z) == (math.inf, math.inf)


def test_interval_covers_the_truth_as_often_as_it_says():
    n, d, sets = 150, 4, 120
    spread = torch.tensor([0.5, 0.8, 1.0, 2.0], dtype=torch.float64)
    truth = formula(spread, 1.0)
    ends = [
        pag_interval(normal(n, d, seed=s) * spread, num_resamples=120, seed=s) for s in range(sets)
    ]
    coverage = sum(low <= truth <= high for low, high in ends) / sets
    assert 0.90 <= coverage <= 0.99


def test_interval_of_the_priors_own_codes_holds_zero_and_not_the_bias_twice():
    n, d = 200, 10
    ends = [pag_interval(normal(n, d, seed=s), num_resamples=100) for s in range(20)]
    assert all(low <= 0 <= high for low, high in ends)
    assert all(high - low < 3 * pag_bias(n, d) for low, high in ends)


def test_interval_surrounds_the_score_and_is_repeatable():
    z = 0.7 * normal(100, 3)
    for convention in ("unit", "literal"):
        low, high = pag_interval(z, sigma=0.9, convention=convention, seed=3)
        assert low < score(z, sigma=0.9, convention=convention) < high
        assert (low, high) == pag_interval(z, sigma=0.9, convention=convention, seed=3)
    assert pag_interval(z, seed=1) != pag_interval(z, seed=2)


def test_interval_widens_with_confidence():
    z = 0.7 * normal(100, 3)
    narrow, wide = pag_interval(z, confidence=0.5), pag_interval(z, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be positive and finite, got 0.0"),
        ({"sigma": math.inf}, "`sigma` must be positive"),
        (
            {"convention": "paper"},
            "`convention` must be one of unit, literal, got 'paper'; use 'unit'",
        ),
    ],
)
def test_bad_arguments_are_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PriorAgreement(**kwargs)
    with pytest.raises(ValueError, match=message):
        pag_interval(normal(9, 2), **kwargs)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(4), r"`z` must be codes of shape \(n, d\), got \(4,\)"),
        (torch.zeros(4, 2, 1, 1), r"must be codes of shape \(n, d\), got \(4, 2, 1, 1\)"),
        (torch.tensor([[0.0, math.nan]]), "`z` must be finite, got 1 of 1 rows"),
        (torch.tensor([[0.0, math.inf], [0.0, 0.0]]), "`z` must be finite, got 1 of 2 rows"),
        (torch.zeros(5, 3), "`z` must have 2 features, as the batches before it, got 3"),
    ],
)
def test_bad_codes_are_refused_and_leave_the_state_as_it_was(z, message):
    metric = PriorAgreement()
    metric.update(normal(9, 2))
    before = float(metric.compute())
    with pytest.raises(ValueError, match=message):
        metric.update(z)
    assert float(metric.compute()) == before


def test_fewer_codes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"5 codes in 6 dimensions is infinite.*at least 6 codes"):
        score(normal(5, 6))
    with pytest.raises(ValueError, match="5 codes in 6 dimensions"):
        pag_interval(normal(5, 6))
    with pytest.raises(ValueError, match="5 codes in 6 dimensions"):
        pag_bias(5, 6)
    assert math.isfinite(score(normal(6, 6)))


def test_interval_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="resamples are singular"):
        pag_interval(normal(6, 6))
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\), got 95"):
        pag_interval(normal(50, 2), confidence=95)
    with pytest.raises(ValueError, match="`num_resamples` must be at least 40"):
        pag_interval(normal(50, 2), num_resamples=20)


def test_no_codes_are_refused():
    with pytest.raises(ValueError, match="no codes to score"):
        score(torch.empty(0, 3))
