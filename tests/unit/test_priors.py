"""Priors of our own: densities, draws, the stages of a run, the fit of a pushforward."""

import math

import pytest
import torch
from torch import nn

from flexgen.distributions import DiagonalNormal
from flexgen.metrics import earth_mover_distance
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import LSGAN
from flexgen.priors import Normal, Pushforward, Staged, Uniform, as_prior, maximise_likelihood


def pushforward(dim: int = 2, base_dim: int = 2, **options: object) -> Pushforward:
    return Pushforward(
        MLPGenerator(base_dim, (dim,), hidden_features=[32, 32], norm="batch"),
        Normal(base_dim),
        MLPCritic((dim,), hidden_features=[32, 32]),
        **options,
    )


def test_normal_density_equals_torch_and_integrates_to_one() -> None:
    prior = Normal(2, scale=0.7).double()
    z = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(
        prior().log_prob(z), torch.distributions.Normal(0.0, 0.7).log_prob(z).sum(-1)
    )
    grid = torch.linspace(-5, 5, 401, dtype=torch.float64)
    cell = (grid[1] - grid[0]) ** 2
    density = prior().log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * cell
    assert float(density) == pytest.approx(1, abs=1e-6)


def test_uniform_density() -> None:
    prior = Uniform(3, low=-2, high=2)
    inside, outside = torch.zeros(3), torch.tensor([0.0, 0.0, 2.1])
    assert float(prior().log_prob(inside)) == pytest.approx(-3 * math.log(4))
    assert prior().log_prob(outside) == -math.inf
    draws = prior().sample((1000,))
    assert draws.abs().max() <= 2
    assert prior.support == (-2, 2)


@pytest.mark.parametrize("prior", [Normal(3, 0.5), Uniform(3, -1, 3)])
def test_draws_have_the_moments_that_the_distribution_states(prior: nn.Module) -> None:
    torch.manual_seed(0)
    draws = prior().sample((20_000,))
    torch.testing.assert_close(draws.mean(0), prior().mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), prior().variance, atol=0.03, rtol=0.03)


def test_reparametrised_draws_pass_gradients() -> None:
    loc, scale = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    DiagonalNormal(loc, scale).rsample((5,)).sum().backward()
    assert loc.grad.tolist() == [5, 5]
    assert scale.grad.abs().sum() > 0


def test_stage_in_use_survives_a_state_dict() -> None:
    prior = Staged([Normal(2), Uniform(2)])
    prior.use(1)
    other = Staged([Normal(2), Uniform(2)])
    other.load_state_dict(prior.state_dict())
    assert other.in_use == 1
    assert other().sample((100,)).abs().max() <= 1
    assert other.support == (-1, 1)


def test_stages_must_agree_in_dimension() -> None:
    with pytest.raises(ValueError, match="event shape"):
        Staged([Normal(2), Normal(3)])
    with pytest.raises(IndexError, match="stage"):
        Staged([Normal(2)]).use(1)
    with pytest.raises(ValueError, match="at least one"):
        Staged([])


@pytest.fixture(scope="module")
def two_clusters() -> torch.Tensor:
    torch.manual_seed(0)
    centres = torch.tensor([[-2.0, 1.0], [1.5, -1.0]])
    return centres[torch.randint(2, (1500,))] + 0.2 * torch.randn(1500, 2)


def test_pushforward_learns_what_a_gaussian_cannot(two_clusters: torch.Tensor) -> None:
    codes, held_out = two_clusters[:1000], two_clusters[1000:]
    torch.manual_seed(0)
    prior = pushforward(objective=LSGAN(), steps=400, critic_steps=1, lr=2e-3, ema_decay=0.98)
    drawn = torch.get_rng_state()
    report = prior.fit(codes, seed=1)
    assert torch.equal(drawn, torch.get_rng_state())
    gaussian = torch.distributions.MultivariateNormal(codes.mean(0), codes.mT.cov())
    draws = prior().sample((500,))
    ours = earth_mover_distance(draws, held_out)
    assert ours < 0.5 * earth_mover_distance(gaussian.sample((500,)), held_out)
    assert 0.2 < report["condition"] < 5
    assert not any(p.requires_grad for p in prior.parameters())
    assert not any(m.training for m in prior.modules())


def test_pushforward_starts_at_the_moments_of_the_codes() -> None:
    torch.manual_seed(0)
    codes = torch.randn(4000, 3) @ torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 0.3, 0.1]]) + 4
    prior = pushforward(3, 3, steps=1, lr=1e-9)
    for weight in prior.network.output.parameters():
        weight.data.zero_()
    prior.fit(codes)
    draws = prior().sample((50_000,))
    torch.testing.assert_close(draws.mean(0), codes.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(draws.mT.cov(), codes.mT.cov(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("base_dim", [3, 5])
def test_what_the_game_leaves_too_narrow_gets_the_moments_of_the_codes(base_dim: int) -> None:
    codes = torch.randn(4000, 3) @ torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 0.3, 0.1]]) + 4

    def fitted(match_moments: bool) -> torch.Tensor:
        torch.manual_seed(0)
        prior = pushforward(3, base_dim, steps=1, lr=1e-9, match_moments=match_moments)
        assert prior.linear is not None
        prior.linear.weight.data *= 0.5
        prior.fit(codes)
        return prior().sample((50_000,))

    assert fitted(False).var(0).sum() < 0.6 * codes.var(0).sum()
    drawn = fitted(True)
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.mT.cov(), codes.mT.cov(), atol=0.1, rtol=0.05)


def test_pushforward_may_have_a_larger_base() -> None:
    prior = pushforward(2, 5, steps=2)
    prior.fit(torch.randn(50, 2))
    assert prior().sample((7, 3)).shape == (7, 3, 2)


def test_pushforward_stays_in_eval_mode_inside_a_training_model() -> None:
    prior = Staged([Normal(2), pushforward()])
    prior.train()
    assert not any(m.training for m in prior.stages[1].modules())


def test_a_collapsed_pushforward_reports_it() -> None:
    torch.manual_seed(0)
    prior = pushforward(3, 3, steps=1, lr=1e-9, skip=False)
    report = prior.fit(torch.randn(200, 3))
    healthy = pushforward(3, 3, steps=1, lr=1e-9).fit(torch.randn(200, 3))
    assert report["condition"] < healthy["condition"]


def test_pushforward_refuses_what_it_cannot_do() -> None:
    prior = pushforward()
    assert not prior.has_log_prob
    with pytest.raises(NotImplementedError, match="zuko_nsf"):
        prior().log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        prior.fit(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="number at least 3"):
        prior.fit(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="finite"):
        prior.fit(torch.full((9, 2), math.nan))
    with pytest.raises(ValueError, match="base prior"):
        pushforward(3, 2)


def test_a_density_is_fitted_by_maximum_likelihood() -> None:
    class Learnable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.log_scale = (nn.Parameter(torch.zeros(2)) for _ in range(2))

        def forward(self) -> DiagonalNormal:
            return DiagonalNormal(self.loc, self.log_scale.exp())

    torch.manual_seed(0)
    codes = torch.randn(2000, 2) * torch.tensor([0.3, 2.0]) + torch.tensor([1.0, -1.0])
    prior = Learnable()
    report = maximise_likelihood(as_prior(prior), codes, lr=0.02, steps=1500)
    torch.testing.assert_close(prior.loc, codes.mean(0), atol=0.3, rtol=0)  # held-out noise
    torch.testing.assert_close(prior.log_scale.exp(), codes.std(0), atol=0.1, rtol=0.1)
    entropy = 0.5 * math.log(2 * math.pi * math.e) * 2 + math.log(0.3 * 2)
    assert report["nll"] == pytest.approx(entropy, abs=0.15)
    assert not prior.loc.requires_grad


def test_a_fixed_prior_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="pushforward"):
        Normal(2).fit(torch.randn(50, 2))
