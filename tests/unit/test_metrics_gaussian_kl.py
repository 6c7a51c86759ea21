"""Gaussian KL: against torch's own divergence, mean term, bias, reference, errors."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from flexgen.metrics import GaussianKL, PriorAgreement


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(z: torch.Tensor, **kwargs) -> tuple[float, float]:
    metric = GaussianKL(**kwargs)
    metric.update(z)
    return float(metric.compute()), float(metric.mean_term())


def fitted(z: torch.Tensor) -> MultivariateNormal:
    return MultivariateNormal(z.mean(0), z.T.cov(correction=0))


CODES = normal(50, 4) @ normal(4, 4, seed=1) + torch.tensor([3.0, 0.0, -1.0, 0.5])


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_it_is_the_divergence_of_the_fitted_gaussian_from_the_prior(sigma):
    prior = MultivariateNormal(torch.zeros(4).double(), sigma**2 * torch.eye(4).double())
    expected = kl_divergence(fitted(CODES), prior)
    kl, mean_term = measured(CODES, sigma=sigma)
    assert kl == pytest.approx(float(expected), rel=1e-10)
    assert mean_term == pytest.approx(float(0.5 * CODES.mean(0).square().sum() / sigma**2))


def test_it_is_the_divergence_from_any_reference():
    other = 2 * normal(80, 4, seed=2) @ normal(4, 4, seed=3) - 1
    reference = fitted(other)
    shift = CODES.mean(0) - other.mean(0)
    kl, mean_term = measured(CODES, reference=(other.mean(0), other.T.cov(correction=0)))
    assert kl == pytest.approx(float(kl_divergence(fitted(CODES), reference)), rel=1e-10)
    expected = 0.5 * shift @ torch.linalg.solve(reference.covariance_matrix, shift)
    assert mean_term == pytest.approx(float(expected), rel=1e-10)


def test_it_sees_a_shift_that_prior_agreement_takes_for_spread():
    """Codes with the prior's second moment about 0, but none of its mean."""
    z = torch.stack([normal(400), normal(400, seed=1)], dim=1)
    z = (z - z.mean(0)) / z.std(0, correction=0)
    moved = z * torch.tensor([0.6, 1.0]) + torch.tensor([0.8, 0.0])  # 0.36 + 0.64 = 1
    pag = PriorAgreement()
    pag.update(moved)
    kl, mean_term = measured(moved)
    assert abs(float(pag.compute())) < 0.02
    assert mean_term == pytest.approx(0.32)
    assert kl > 0.5


def test_corrected_score_of_gaussian_codes_is_unbiased():
    n, d, sets = 30, 4, 400
    mean, spread = 0.2, 0.8
    rows = [measured(mean + spread * normal(n, d, seed=s), bias_correct=True) for s in range(sets)]
    kl, mean_term = torch.tensor(rows, dtype=torch.float64).T
    truth = torch.tensor([0.5 * d * (spread**2 - math.log(spread**2) - 1), 0.5 * d * mean**2])
    for values, expected in ((kl, truth.sum()), (mean_term, truth[1])):
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(sets)


def test_correction_is_the_stated_number():
    z = normal(1024, 20)
    plain, corrected = torch.tensor(measured(z)), torch.tensor(measured(z, bias_correct=True))
    bias, bias_of_mean = (plain - corrected).tolist()
    assert bias == pytest.approx(0.113, abs=5e-4)
    assert bias_of_mean == pytest.approx(0.5 * float(z.var(0, correction=0).sum()) / 1023, rel=1e-3)


def test_correction_in_one_dimension_has_a_closed_form():
    """E log chi² with 2 degrees of freedom is log 2 - gamma."""
    z = torch.tensor([[0.0], [1.0], [5.0]])
    gamma = 0.5772156649015329
    assert measured(z)[0] - measured(z, bias_correct=True)[0] == pytest.approx(
        0.5 * (math.log(1.5) + gamma)
    )


def test_reference_of_the_prior_equals_the_prior():
    reference = (torch.zeros(4), 4.0 * torch.eye(4))
    assert measured(CODES, reference=reference) == pytest.approx(measured(CODES, sigma=2.0))


def test_collapsed_codes_score_infinity_though_their_mean_is_large():
    z = 1e3 + normal(40, 3)
    z[:, 1] = z[:, 0]
    assert measured(z)[0] == math.inf


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sigma": -1.0}, "`sigma` must be positive and finite, got -1.0"),
        (
            {"sigma": 2.0, "reference": (torch.zeros(2), torch.eye(2))},
            "`sigma` must stay 1.0 beside a `reference`",
        ),
        ({"reference": (torch.zeros(2), torch.eye(3))}, r"got shapes \(2,\) and \(3, 3\)"),
        ({"reference": (torch.zeros(2), torch.ones(2, 2))}, "positive definite"),
        ({"reference": (torch.tensor([0.0, math.nan]), torch.eye(2))}, "finite mean"),
    ],
)
def test_bad_arguments_are_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GaussianKL(**kwargs)


def test_bad_codes_are_refused():
    metric = GaussianKL(reference=(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match="the reference's 2 features, got 3"):
        metric.update(normal(9, 3))
    with pytest.raises(ValueError, match=r"3 codes in 3 dimensions is infinite.*at least 4 codes"):
        measured(normal(3, 3))
    assert math.isfinite(measured(normal(4, 3))[0])
