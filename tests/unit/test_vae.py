"""The bounds of a VAE against the closed form of a linear-Gaussian one, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPGenerator
from flexgen.objectives import LSGAN, importance_weighted_bound, kl_floor
from flexgen.posteriors import DiagonalGaussian, FullGaussian
from flexgen.priors import Masked, Normal, Pushforward, Uniform, as_prior
from tests.training import train
from tests.unit.linear_gaussian import ADAM, D, Encoder, Linear


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
class TestLinear:
    @pytest.mark.parametrize("posterior", [DiagonalGaussian, FullGaussian])
    def test_every_weight_is_the_evidence_under_the_exact_posterior(self, posterior: Any) -> None:
        linear = Linear(posterior)
        weights = linear.model.log_weights(linear.x, 5)
        expected = linear.evidence.log_prob(linear.x).expand(5, -1)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("draws", [1, 3])
    def test_the_elbo_loses_the_kl_to_the_exact_posterior(self, draws: int) -> None:
        linear = Linear(DiagonalGaussian, off=0.3)
        model, expected = linear.model, -linear.evidence.log_prob(linear.x).mean() + linear.gap
        model.draws = draws
        torch.manual_seed(1)
        x = linear.x.repeat(500, 1)
        assert float(model.loss(x).detach()) == pytest.approx(float(expected), abs=0.03)

    def test_the_importance_weighted_bound_lies_between_elbo_and_evidence(self) -> None:
        linear = Linear(DiagonalGaussian, off=0.3)
        torch.manual_seed(1)
        x, evidence = linear.x.repeat(100, 1), float(linear.evidence.log_prob(linear.x).mean())
        bounds = []
        for k in (1, 4, 64):
            linear.model.importance_samples = k
            bounds.append(-float(linear.model.loss(x).detach()))
        assert evidence - linear.gap - 0.03 < bounds[0] < bounds[1] < bounds[2] < evidence + 0.01
        assert bounds[2] == pytest.approx(evidence, abs=0.02)

    def test_closed_form_and_estimated_kl_agree(self) -> None:
        linear = Linear(DiagonalGaussian, off=0.3)
        closed = losses(linear)
        # The same normal, which only its density tells.
        linear.model.prior.stages[0] = as_prior(Plain())
        assert losses(linear) == pytest.approx(closed, abs=0.03)

    def test_free_bits_are_of_each_dimension_in_closed_form_and_of_all_by_an_estimate(self) -> None:
        linear = Linear(DiagonalGaussian, off=0.3)
        with torch.no_grad():
            q = linear.model.posterior(linear.x)
        kl = (q.loc.square() + q.scale.square() - 1) / 2 - q.scale.log()
        low, high = kl.mean(0).sort().values.tolist()
        assert high - low > 0.5
        free, without = (low + high) / 2, losses(linear)
        assert losses(linear, free) - without == pytest.approx(free - low, abs=1e-6)
        linear.model.prior.stages[0] = as_prior(Plain())
        without = losses(linear)
        assert losses(linear, free) == pytest.approx(without, abs=0.03)
        assert losses(linear, high) - without == pytest.approx(high - low, abs=0.03)


def losses(linear: Linear, free_bits: float = 0.0) -> float:
    """The loss of many copies of the data, with the same noise each time."""
    linear.model.free_bits = free_bits
    torch.manual_seed(1)
    return float(linear.model.loss(linear.x.repeat(500, 1)).detach())


class Plain(nn.Module):
    def forward(self) -> MultivariateNormal:
        return MultivariateNormal(torch.zeros(D), torch.eye(D))


def vae(prior: nn.Module, **options: Any) -> VAE:
    return VAE(
        DiagonalGaussian(Encoder(4), D), Bernoulli(MLPGenerator(D, (4,), None, [8])), prior,
        optimizer=ADAM, **options,
    )  # fmt: skip


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = vae(Normal(D))
    model.loss(torch.rand(6, 4).round()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_kl_warmup_weighs_the_kl() -> None:
    torch.manual_seed(0)
    model, weights = vae(Normal(D), kl_warmup=10, log_every=1), []
    with torch.no_grad():
        model.posterior.head.bias += 2

    def after() -> None:
        logged = model.last_losses
        weights.append(
            (logged["loss/generator"] - logged["loss/reconstruction"]) / logged["loss/kl"]
        )

    train(model, iter(lambda: torch.rand(6, 4).round(), None), 12, after=after)
    assert weights == pytest.approx([n / 10 for n in range(1, 11)] + [1.0, 1.0], rel=1e-4)


def test_free_bits_are_a_floor_for_each_group() -> None:
    kl = torch.tensor([0.1, 2.0, 0.5])
    assert float(kl_floor(kl, 0.0)) == pytest.approx(2.6)
    assert float(kl_floor(kl, 0.5)) == pytest.approx(3.0)


def test_the_importance_weighted_bound_is_a_log_mean() -> None:
    weights = torch.tensor([[0.5, 1.0], [2.0, 1.0], [0.5, 4.0]])
    bound = importance_weighted_bound(weights.log())
    torch.testing.assert_close(bound, torch.tensor([math.log(1.0), math.log(2.0)]))


@pytest.mark.parametrize(
    "prior",
    [
        lambda: Masked(Normal(D)),
        lambda: Pushforward(nn.Linear(D, D), Normal(D), nn.Linear(D, 1), LSGAN()),
        lambda: Uniform(D),
    ],
)
def test_a_prior_without_density_everywhere_is_refused(prior: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"VAE.*prior=normal"):
        vae(prior())


@pytest.mark.parametrize(
    "options",
    [
        {"importance_samples": 0},
        {"draws": 0},
        {"free_bits": -1},
        {"kl_warmup": math.inf},
        {"importance_samples": 5, "free_bits": 0.1},
        {"importance_samples": 5, "kl_warmup": 10},
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`(importance_samples|draws|free_bits|kl_warmup)`"):
        vae(Normal(D), **options)
