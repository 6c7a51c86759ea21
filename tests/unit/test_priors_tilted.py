"""LARS, noise-contrastive priors and latent energies: densities, draws, fits."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexgen.priors import (
    LARS,
    LatentEnergy,
    Masked,
    Mixture,
    NoiseContrastive,
    Normal,
    RealNVP,
    Uniform,
)
from flexgen.priors.tilted import Tilted

BUILDS: dict[str, Callable[[], Tilted]] = {
    "lars": lambda: LARS(Normal(2), truncation=20, hidden_features=(32,), steps=600, lr=5e-3),
    "contrastive": lambda: NoiseContrastive(
        Normal(2), hidden_features=(32, 32), steps=600, batch_size=1000, lr=1e-2
    ),
    "energy": lambda: LatentEnergy(
        Normal(2),
        chain_steps=40,
        step_size=0.05,
        hidden_features=(32, 32),
        steps=300,
        batch_size=200,
        lr=3e-3,
    ),
}


def ring(n: int) -> Tensor:
    """Codes on a circle, which N(0, I) covers and no Gaussian fits."""
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1) * (1.5 + 0.2 * torch.randn(n, 1))


@pytest.fixture(scope="module", params=BUILDS)
def fitted(request: pytest.FixtureRequest) -> Tilted:
    torch.manual_seed(0)
    prior = BUILDS[request.param]()
    report = prior.fit(ring(4000))
    assert report.get("log_z_error", 0) < 0.05
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    return prior


def test_the_density_is_closer_than_the_bases_and_integrates_to_one(fitted: Tilted) -> None:
    torch.manual_seed(1)
    test = ring(2000)
    with torch.no_grad():
        gain = (fitted().log_prob(test) - fitted.base().log_prob(test)).mean()
        side = torch.linspace(-5, 5, 201)
        mass = fitted().log_prob(torch.cartesian_prod(side, side)).double().exp().sum() * 0.05**2
    assert gain > 0.3
    assert float(mass) == pytest.approx(1, abs=0.05)  # 3 standard errors of Z


def test_draws_are_of_that_density(fitted: Tilted) -> None:
    """Their squared norm is that of weighted draws of the base; short chains come near alone."""
    torch.manual_seed(0)
    squared, pool = fitted().sample((4000,)).square().sum(1), torch.randn(40_000, 2)
    with torch.no_grad():
        log_weight = fitted().log_prob(pool) - fitted.base().log_prob(pool)
    expected = float((log_weight.softmax(0) * pool.square().sum(1)).sum())
    assert float(squared.mean()) == pytest.approx(expected, rel=0.07 if fitted.normalised else 0.2)
    assert (squared < 0.5).float().mean() < 0.14  # 0.22 of N(0, I)


def test_z_by_annealing_is_z(fitted: Tilted) -> None:
    state = torch.get_rng_state()
    log_z, error = fitted.annealed_log_normaliser(num_temperatures=50)
    assert torch.equal(torch.get_rng_state(), state)
    by_draws, of_draws = fitted.log_normaliser()
    assert log_z == pytest.approx(float(by_draws), abs=3 * math.hypot(error, of_draws))
    assert error < 0.05


def test_z_by_annealing_inside_walls() -> None:
    """∫ exp(2 z) over U(−1, 1) is sinh(2) / 2."""
    prior = LatentEnergy(Uniform(1))
    prior.logit = lambda z: 2 * z[..., 0]  # type: ignore[method-assign]
    log_z, error = prior.annealed_log_normaliser(num_chains=4000, num_temperatures=30)
    assert log_z == pytest.approx(math.log(math.sinh(2) / 2), abs=0.04)
    assert error < 0.02


def test_z_follows_the_weights_however_they_are_stepped(fitted: Tilted) -> None:
    prior = copy.deepcopy(fitted)
    before = prior.log_normaliser()[0]
    assert torch.equal(before, fitted.log_normaliser()[0])
    prior.requires_grad_(True)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05, fused=True)
    prior.cross_entropy(ring(100)).mean().backward()
    optimizer.step()
    assert prior.log_normaliser()[0] != before
    other = copy.deepcopy(fitted)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_normaliser()[0], prior.log_normaliser()[0])


def test_a_truncation_of_one_is_the_base() -> None:
    torch.manual_seed(0)
    prior, z = LARS(Normal(2), truncation=1), torch.randn(5, 2)
    torch.testing.assert_close(prior().log_prob(z), Normal(2)().log_prob(z))
    prior.fit(ring(100))
    torch.testing.assert_close(prior().log_prob(z), Normal(2)().log_prob(z))


def test_lars_draws_by_its_definition() -> None:
    """a(z) = ½ everywhere but at z₁ > 0, where it is 0; T = 3."""
    torch.manual_seed(0)
    prior = LARS(Normal(1), truncation=3)
    prior.log_tilt = lambda z: torch.where(z[..., 0] > 0, -1e4, math.log(0.5))  # type: ignore[method-assign]
    # Z = ¼: of two proposals both are refused with (3/4)², and the third is taken as it is.
    alpha = 0.75**2
    z = prior().sample((40_000,))
    assert float((z > 0).float().mean()) == pytest.approx(alpha / 2, abs=0.01)
    log_prob = prior().log_prob(torch.tensor([[1.0], [-1.0]])) - Normal(1)().log_prob(
        torch.ones(1, 1)
    )
    expected = torch.tensor([alpha, (1 - alpha) * 0.5 / 0.25 + alpha]).log()
    torch.testing.assert_close(log_prob, expected, atol=0.03, rtol=0)


def test_a_base_that_learns_is_fitted_first() -> None:
    torch.manual_seed(0)
    codes = 5 + ring(1000)
    prior = LARS(RealNVP(2, num_layers=2, steps=50), hidden_features=(8,), steps=20)
    prior.fit(codes)
    assert (prior().sample((500,)).mean(0) - 5).abs().max() < 0.5
    sampled = NoiseContrastive(Mixture(2, 3), sampling="resampling", steps=20)
    sampled.fit(codes)
    assert (sampled().sample((500,)).mean(0) - 5).abs().max() < 0.5
    assert 0 < sampled.statistics["effective_sample_size"] <= 1
    assert len(set(map(id, sampled.state_dict().values()))) == len(sampled.state_dict())


def test_a_fit_leaves_the_fitted_base_as_it_is() -> None:
    torch.manual_seed(0)
    base, codes = RealNVP(2, num_layers=2, steps=50), ring(500)
    prior = LARS(copy.deepcopy(base), hidden_features=(8,), steps=20)
    prior.fit(codes, seed=3)
    base.fit(codes, seed=3)
    for mine, alone in zip(
        prior.base.state_dict().values(), base.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, alone)


def test_a_few_codes_are_passed_over_a_few_times() -> None:
    torch.manual_seed(0)
    codes, steps = ring(100), []
    prior = LARS(Normal(2), hidden_features=(8,), epochs=4, batch_size=50)
    prior.network.register_forward_hook(lambda *_: steps.append(torch.is_grad_enabled()))
    prior.fit(codes)
    assert sum(steps) == 2 * 8  # a batch of codes and draws of the base, 8 times


def test_a_base_of_another_package_serves() -> None:
    zuko = pytest.importorskip("zuko")
    prior = LARS(zuko.flows.NSF(2, transforms=1, hidden_features=[8]), num_samples=100)
    assert prior().log_prob(prior().sample((3,))).shape == (3,)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`base` must have a density.*=normal`, realnvp or"):
        LARS(Masked(Normal(2)))
    with pytest.raises(ValueError, match="`sampling`"):
        NoiseContrastive(Normal(2), sampling="guess")
    with pytest.raises(ValueError, match="`epochs`"):
        LARS(Normal(2), epochs=0)
    with pytest.raises(ValueError, match="`step_size`"):
        LARS(Normal(2)).annealed_log_normaliser(step_size=0)
    assert LatentEnergy(Normal(2)).normalised is False


def test_decay_keeps_a_ratio_near_one() -> None:
    torch.manual_seed(0)
    codes, sizes = ring(1000), []
    for decay in (0.0, 30.0):
        prior = NoiseContrastive(
            Normal(2), hidden_features=(32,), steps=100, lr=1e-2, weight_decay=decay
        )
        prior.fit(codes)
        sizes.append(float(prior.logit(codes).abs().mean()))
    assert sizes[1] < 0.5 * sizes[0]
