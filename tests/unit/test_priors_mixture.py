"""Priors made of Gaussians and of codes: densities, draws, what a fit recovers, what it refuses."""

import logging
import math

import pytest
import torch
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from flexgen.priors import (
    Gaussian,
    KernelDensity,
    LearnableMixture,
    Mixture,
    Staged,
    maximise_likelihood,
)
from flexgen.priors.kernel_density import KernelDensityDistribution
from flexgen.priors.mixture import GaussianMixture

CENTRES = torch.tensor([[-3.0, 1.0], [2.0, 2.0], [1.0, -2.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])
FACTORS = torch.tensor(
    [[[0.5, 0.0], [0.3, 0.2]], [[0.3, 0.0], [0.0, 0.6]], [[0.4, 0.0], [-0.2, 0.4]]]
)


def known(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    return GaussianMixture(SHARES.to(dtype), CENTRES.to(dtype), FACTORS.to(dtype))


@pytest.fixture(scope="module")
def codes() -> Tensor:
    torch.manual_seed(0)
    return known().sample((3000,)).float()


def fitted(prior: nn.Module, codes: Tensor) -> nn.Module:
    prior.double().fit(codes.double(), seed=0)
    return prior


def are_rows_of(draws: Tensor, codes: Tensor) -> bool:
    return bool((draws.unsqueeze(1) == codes).all(-1).any(1).all())


PRIORS = {
    "gaussian": lambda: Gaussian(2),
    "mixture": lambda: Mixture(2, 3),
    "diagonal": lambda: Mixture(2, 4, covariance="diagonal"),
    "selected": lambda: Mixture(2, 5, select=True),
    "kernel": lambda: KernelDensity(2, 200),
    "scott": lambda: KernelDensity(2, 200, bandwidth="scott"),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_fitted_density_integrates_to_one(name: str, codes: Tensor) -> None:
    prior = fitted(PRIORS[name](), codes[:500])
    grid = torch.linspace(-12, 12, 321, dtype=torch.float64)
    cell = (grid[1] - grid[0]) ** 2
    density = prior().log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * cell
    assert float(density) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", [*PRIORS, "learnable", "empirical"])
def test_draws_have_the_moments_that_the_distribution_states(name: str, codes: Tensor) -> None:
    torch.manual_seed(0)
    if name == "learnable":
        prior: nn.Module = LearnableMixture(2, 4).double()
    elif name == "empirical":
        prior = fitted(KernelDensity(2, 200, bandwidth=0), codes)
    else:
        prior = fitted(PRIORS[name](), codes)
    draws = prior().sample((30_000,))
    torch.testing.assert_close(draws.mean(0), prior().mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(0), prior().variance, atol=0, rtol=0.05)


@pytest.mark.parametrize("name", [*PRIORS, "learnable"])
def test_draws_are_as_likely_as_the_density_says(name: str, codes: Tensor) -> None:
    """E[−log p] over draws equals the integral of −p log p over a grid."""
    torch.manual_seed(0)
    learnable = LearnableMixture(2, 4).double()
    prior = learnable if name == "learnable" else fitted(PRIORS[name](), codes[:500])
    grid = torch.linspace(-8, 8, 321, dtype=torch.float64)
    with torch.no_grad():
        log_p = prior().log_prob(torch.cartesian_prod(grid, grid))
        entropy = -(log_p.exp() * log_p).sum() * (grid[1] - grid[0]) ** 2
        drawn = -prior().log_prob(prior().sample((10_000,))).mean()
    assert float(drawn) == pytest.approx(float(entropy), abs=0.05)


def test_gaussian_is_the_maximum_of_the_likelihood(codes: Tensor) -> None:
    prior = Gaussian(2).double()
    report = prior.fit(codes.double())
    z = codes.double()
    torch.testing.assert_close(prior().mean, z.mean(0))
    covariance = (z - z.mean(0)).mT @ (z - z.mean(0)) / len(z)
    torch.testing.assert_close(prior().covariance_matrix, covariance, atol=1e-4, rtol=0)
    # At the maximum the mean log-density is minus the entropy of the Gaussian itself.
    assert report["nll_train"] == pytest.approx(float(prior().entropy()), abs=1e-4)


def test_gaussian_fits_codes_that_agree_in_a_direction() -> None:
    torch.manual_seed(0)
    flat = torch.randn(500, 3) * torch.tensor([1.0, 1.0, 0.0]) + 2
    prior = Gaussian(3)
    prior.fit(flat)
    draws = prior().sample((100,))
    assert draws.isfinite().all()
    assert (draws[:, 2] - 2).abs().max() < 0.01


def test_em_recovers_a_known_mixture(codes: Tensor) -> None:
    prior = Mixture(2, 3, num_starts=2)
    report = prior.fit(codes, seed=1)
    order = torch.cdist(CENTRES, prior.loc).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(prior.weights[order], SHARES, atol=0.03, rtol=0)
    torch.testing.assert_close(prior.loc[order], CENTRES, atol=0.06, rtol=0)
    found = prior.factor[order] @ prior.factor[order].mT
    torch.testing.assert_close(found, FACTORS @ FACTORS.mT, atol=0.05, rtol=0)
    assert report["components"] == 3
    assert report["nll_train"] == pytest.approx(-float(prior().log_prob(codes).mean()), abs=1e-4)
    truth = -float(known(torch.float32).log_prob(codes).mean())
    assert truth - 0.02 < report["nll_train"] <= truth


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_mixture_density_equals_scikit_learns(covariance: str, codes: Tensor) -> None:
    from sklearn.mixture import GaussianMixture as Peer

    prior = fitted(Mixture(2, 3, covariance=covariance), codes)
    peer = Peer(3, covariance_type="full" if covariance == "full" else "diag")
    peer.weights_, peer.means_ = prior.weights.numpy(), prior.loc.numpy()
    if covariance == "full":
        peer.covariances_ = (prior.factor @ prior.factor.mT).numpy()
        inverse = torch.linalg.inv(prior.factor)
        peer.precisions_cholesky_ = inverse.mT.numpy()
    else:
        peer.covariances_ = prior.factor.square().numpy()
        peer.precisions_cholesky_ = (1 / prior.factor).numpy()
    z = 4 * torch.randn(100, 2, dtype=torch.float64)
    theirs = torch.from_numpy(peer.score_samples(z.numpy()))
    torch.testing.assert_close(prior().log_prob(z), theirs)
    assert prior().log_prob(z.view(5, 20, 2)).shape == (5, 20)


def test_mixture_draws_its_components_by_their_weights() -> None:
    torch.manual_seed(0)
    draws = known().sample((200, 100))
    nearest = torch.cdist(draws.view(-1, 2), CENTRES.double()).argmin(1)
    shares = nearest.bincount(minlength=3) / len(nearest)
    torch.testing.assert_close(shares, SHARES, atol=0.015, rtol=0)
    of_first = draws.view(-1, 2)[nearest == 0]
    torch.testing.assert_close(
        of_first.mT.cov().float(), FACTORS[0] @ FACTORS[0].mT, atol=0.02, rtol=0
    )


def test_bic_finds_the_number_of_components_and_keeps_the_shapes(codes: Tensor) -> None:
    prior = Mixture(2, 6, select=True)
    shapes = {k: v.shape for k, v in prior.state_dict().items()}
    assert prior.fit(codes)["components"] == 3
    assert {k: v.shape for k, v in prior.state_dict().items()} == shapes
    assert (prior.weights > 0).sum() == 3
    assert prior().log_prob(codes).isfinite().all()
    exact = Mixture(2, 3)
    exact.fit(codes)
    torch.testing.assert_close(prior().log_prob(codes), exact().log_prob(codes))


def test_a_second_fit_forgets_the_first(codes: Tensor) -> None:
    one, two = Mixture(2, 5, select=True), Mixture(2, 5, select=True)
    one.fit(codes * 7)
    for prior in (one, two):
        prior.fit(codes[:400])
    z = torch.randn(50, 2)
    torch.testing.assert_close(one().log_prob(z), two().log_prob(z))


def test_em_that_has_not_converged_says_so(codes: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Mixture(2, 3, max_iter=1).fit(codes)
    assert "prior.max_iter" in caplog.text


@pytest.mark.parametrize("bandwidth", ["scott", 0.3])
def test_kernel_density_equals_scipys(bandwidth: float | str, codes: Tensor) -> None:
    z = codes[:300].double()
    prior = KernelDensity(2, 300, bandwidth=bandwidth).double()
    report = prior.fit(z)
    peer = gaussian_kde(z.mT.numpy(), bw_method=bandwidth)
    assert report["bandwidth"] == pytest.approx(peer.factor)
    at = 3 * torch.randn(700, 2, dtype=torch.float64).clamp(-2, 2)
    theirs = torch.from_numpy(peer.logpdf(at.mT.numpy()))
    torch.testing.assert_close(prior().log_prob(at), theirs, atol=1e-2, rtol=1e-4)


def test_a_kernel_has_the_shape_of_the_codes() -> None:
    torch.manual_seed(0)
    codes = torch.randn(500, 2) @ torch.tensor([[2.0, 1.5], [0.0, 0.4]])
    prior = KernelDensity(2, 500, bandwidth=1.0)
    prior.fit(codes)
    covariance = prior().sample((50_000,)).mT.cov()
    torch.testing.assert_close(covariance, 2 * codes.mT.cov(), atol=0.05, rtol=0.03)


def test_the_bandwidth_is_the_most_likely_for_codes_left_out(codes: Tensor) -> None:
    z = codes[:150].double()
    prior = KernelDensity(2, 150).double()
    report = prior.fit(z)

    def left_out(h: float) -> float:
        one = KernelDensity(2, 150, bandwidth=h).double()
        one.fit(z)
        log_p = [
            KernelDensityDistribution(torch.cat([z[:i], z[i + 1 :]]), one.factor).log_prob(z[i])
            for i in range(len(z))
        ]
        return -float(torch.stack(log_p).mean())

    h = report["bandwidth"]
    assert report["nll_left_out"] == pytest.approx(left_out(h), abs=1e-6)
    assert left_out(h) < min(left_out(h / 1.3), left_out(h * 1.3))
    assert h < 0.5 * 150 ** (-1 / 6)  # Scott's rule is too wide for separate modes


def test_the_empirical_prior_draws_codes_and_has_no_density(codes: Tensor) -> None:
    prior = KernelDensity(2, 100, bandwidth=0)
    assert not prior.has_log_prob
    assert prior.fit(codes[:40]) == {"bandwidth": 0.0}
    draws = prior().sample((50, 20)).view(-1, 2)
    assert len(draws.unique(dim=0)) == 40
    assert are_rows_of(draws, codes[:40])
    with pytest.raises(NotImplementedError, match="no density"):
        prior().log_prob(codes)


def test_a_full_buffer_keeps_a_random_part_by_the_seed(codes: Tensor) -> None:
    first, again, other = (KernelDensity(2, 50, bandwidth=0) for _ in range(3))
    for prior, seed in ((first, 1), (again, 1), (other, 2)):
        prior.fit(codes, seed=seed)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)
    assert are_rows_of(first.codes, codes)


@pytest.mark.parametrize("name", [*PRIORS, "empirical"])
def test_a_fitted_prior_survives_a_state_dict(name: str, codes: Tensor) -> None:
    def make() -> nn.Module:
        return KernelDensity(2, 200, bandwidth=0) if name == "empirical" else PRIORS[name]()

    prior, other = make(), Staged([make()])
    drawn = torch.get_rng_state()
    prior.fit(codes[:150], seed=3)
    assert torch.equal(drawn, torch.get_rng_state())
    other.load_state_dict(
        {f"stages.0.{k}": v for k, v in prior.state_dict().items()} | {"stage": torch.tensor(0)}
    )
    torch.manual_seed(0)
    draws = prior().sample((64,))
    torch.manual_seed(0)
    assert torch.equal(other().sample((64,)), draws)
    if prior.has_log_prob:
        assert torch.equal(other().log_prob(draws), prior().log_prob(draws))


@pytest.mark.parametrize("name", [*PRIORS, "empirical"])
def test_until_it_is_fitted_a_prior_is_a_standard_normal(name: str) -> None:
    torch.manual_seed(0)
    empirical = KernelDensity(2, 5000, bandwidth=0)
    prior = empirical if name == "empirical" else PRIORS[name]()
    z = torch.randn(50, 2)
    if prior.has_log_prob:
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        torch.testing.assert_close(prior().log_prob(z), normal)
    draws = prior().sample((20_000,))
    torch.testing.assert_close(draws.mT.cov(), torch.eye(2), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_the_density_has_a_gradient_in_the_code(name: str, codes: Tensor) -> None:
    prior = fitted(PRIORS[name](), codes[:100])
    # At a code too, where the distance to its own kernel is 0.
    z = torch.cat([codes[:3], torch.randn(3, 2)]).double().requires_grad_()
    assert torch.autograd.gradcheck(prior().log_prob, z, atol=1e-4, eps=1e-5)


def test_gradients_reach_the_components_drawn() -> None:
    torch.manual_seed(0)
    prior = LearnableMixture(3, 5).double()
    prior().rsample((200,)).sum().backward()
    counts = prior.loc.grad[:, 0]
    assert counts.sum() == 200
    torch.testing.assert_close(prior.loc.grad, counts.unsqueeze(1).expand(5, 3))
    assert prior.log_scale.grad.abs().min() > 0
    assert not prior().sample((4,)).requires_grad


def test_a_learnable_mixture_can_be_fitted_to_codes(codes: Tensor) -> None:
    torch.manual_seed(0)
    prior = LearnableMixture(2, 12, spread=3.0)
    gaussian = Gaussian(2)
    gaussian.fit(codes)
    report = maximise_likelihood(prior, codes, lr=0.05, steps=150)
    assert report["nll"] < -float(gaussian().log_prob(codes).mean()) - 0.3
    assert not any(p.requires_grad for p in prior.parameters())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Gaussian(0), "`latent_dim`"),
        (lambda: Mixture(2, 0), "`num_components`"),
        (lambda: Mixture(2, max_iter=0), "`max_iter`"),
        (lambda: Mixture(2, covariance="tied"), "one of full, diagonal"),
        (lambda: LearnableMixture(2, 0), "`num_components`"),
        (lambda: LearnableMixture(2, scale=0.0), "`scale`"),
        (lambda: LearnableMixture(2, spread=math.nan), "`spread`"),
        (lambda: KernelDensity(2, 0), "`num_codes`"),
        (lambda: KernelDensity(2, bandwidth=-1.0), "`bandwidth`"),
        (lambda: KernelDensity(2, bandwidth="silverman"), "silverman"),
    ],
)
def test_what_cannot_be_built(make: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "make",
    [lambda: Gaussian(2), lambda: Mixture(2, 3), lambda: KernelDensity(2, 50)],
    ids=["gaussian", "mixture", "kernel"],
)
@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.zeros(9, 3), r"\(n, 2\), got \(9, 3\); reverse"),
        (torch.randn(2, 2), "at least 3 .* got 2; reverse more"),
        (torch.tensor([[0.0, math.nan]]).repeat(9, 1), "9 of 9 that are not; drop"),
    ],
    ids=["shape", "few", "nan"],
)
def test_codes_that_a_fit_refuses(make: object, codes: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make().fit(codes)  # type: ignore[operator]


@pytest.mark.parametrize("make", [lambda: Gaussian(2), lambda: KernelDensity(2, 50)])
def test_codes_that_are_all_the_same(make: object) -> None:
    with pytest.raises(ValueError, match="must differ from each other"):
        make().fit(torch.ones(9, 2))  # type: ignore[operator]


def test_more_components_than_codes() -> None:
    with pytest.raises(ValueError, match=r"num_components 30, got 20.*prior.num_components=20"):
        Mixture(2, 30).fit(torch.randn(20, 2))


def test_a_buffer_too_small_for_a_covariance() -> None:
    with pytest.raises(ValueError, match=r"`num_codes` must be at least 6"):
        KernelDensity(5, 4).fit(torch.randn(20, 5))


def test_repeated_codes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        KernelDensity(2, 50).fit(torch.randn(25, 2).repeat(2, 1))
    assert "codes repeat" in caplog.text
