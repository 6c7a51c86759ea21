"""Priors at generation time: by a calibrated critic, its gradient, the decoder's volume, a cut."""

import copy
import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor

from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPGenerator
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import (
    GradientFlow,
    MetropolisHastings,
    Normal,
    OptimalTransport,
    Polarity,
    Prior,
    Truncation,
    Uniform,
)
from tests.unit.linear_gaussian import ADAM, Encoder


def first(z: Tensor) -> Tensor:
    return z[:, 0]


def test_chains_of_a_calibrated_critic_have_the_density_of_data() -> None:
    """Data are N(1, 1), the base is N(0, 1): the logit is z − ½, whatever the score's unit is."""
    torch.manual_seed(0)
    prior = MetropolisHastings(Normal(1), chain_steps=30, num_calibration=20_000)
    prior.bind(
        score=lambda z: z[:, 0] / 3 - 7,
        critic=lambda x: x[:, 0] / 3 - 7,
        data=lambda n: 1 + torch.randn(n, 1),
    )
    z = prior().sample((4000,))
    assert float(z.mean()) == pytest.approx(1, abs=0.08)
    assert float(z.std()) == pytest.approx(1, abs=0.06)
    assert 0.3 < prior.statistics["acceptance"] < 1


def test_a_critic_that_tells_nothing_leaves_the_base() -> None:
    torch.manual_seed(0)
    prior = MetropolisHastings(Uniform(2), chain_steps=3)
    prior.bind(score=first, critic=lambda x: x[:, 0], data=lambda n: -5 - torch.rand(n, 2))
    z = prior().sample((2000,))
    assert prior.statistics["acceptance"] == 1
    assert z.mean(0).abs().max() < 0.06


def test_a_chain_that_never_accepts_ends_at_a_draw_of_the_base() -> None:
    """Data score higher than any draw: chains start anew without them."""
    torch.manual_seed(0)
    prior = MetropolisHastings(Uniform(1), chain_steps=20)
    prior.bind(score=first, critic=lambda x: x[:, 0], data=lambda n: torch.full((n, 1), 50.0))
    z = prior().sample((500,))
    assert z.abs().max() <= 1
    assert z.std() > 0.5
    assert prior.statistics["acceptance"] < 0.01


@pytest.mark.parametrize("divergence", ["kl", "js", "logd"])
def test_a_step_of_the_flow(divergence: str) -> None:
    """−η ∇f'(e^−s) by autograd, with f' as the divergence has it."""
    of = {
        "kl": lambda s: -s,
        "js": lambda s: torch.log(2 * torch.exp(-s) / (torch.exp(-s) + 1)),
        "logd": lambda s: torch.log(torch.exp(-s) + 1),
    }[divergence]
    prior = GradientFlow(Normal(2), divergence=divergence, steps=1, step_size=0.1, noise=0.0)
    prior.bind(score=lambda z: z.square().sum(1))
    torch.manual_seed(3)
    z = prior().sample((5,))
    torch.manual_seed(3)
    start = Normal(2)().sample((5,)).requires_grad_()
    (slope,) = torch.autograd.grad(of(start.square().sum(1)).sum(), start)
    torch.testing.assert_close(z, (start - 0.1 * slope).detach())


def test_the_noise_of_the_flow() -> None:
    torch.manual_seed(0)
    prior = GradientFlow(Normal(1), steps=8, step_size=0.5, noise=0.25)
    prior.bind(score=lambda z: 0 * z[:, 0])
    spread = float(prior().sample((20_000,)).std())
    assert spread == pytest.approx(math.sqrt(1 + 8 * 2 * 0.25 * 0.5), rel=0.03)


def test_transport_is_worth_its_way() -> None:
    """It lowers |z − z₀| − s(z)/k, raises scores, and keeps the norms of a normal base."""
    score: Callable[[Tensor], Tensor] = lambda z: (3 * z[:, 0]).tanh()  # noqa: E731
    for base in (Normal(3), Uniform(3)):
        prior = OptimalTransport(base, steps=50, step_size=0.01)
        prior.bind(score=score)
        torch.manual_seed(1)
        z = prior().sample((300,))
        torch.manual_seed(1)
        start = base().sample((300,))
        assert (score(z) - score(start)).mean() > 0
        assert (z - start).norm(dim=1).max() < 0.51
        if isinstance(base, Normal):
            torch.testing.assert_close(z.norm(dim=1), start.norm(dim=1), rtol=0.02, atol=0.01)
        else:
            assert z.abs().max() <= 1


def test_polarity_weighs_by_the_volume() -> None:
    """G(z) = z³/3 has the slope z²: under N(0, 1) the draws have density z² φ(z), and E z² = 3."""
    torch.manual_seed(0)
    prior = Polarity(Normal(1), rho=1.0, presample=20)
    prior.bind(decoder=lambda z: z**3 / 3)
    assert float(prior().sample((2000,)).square().mean()) == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize(("top", "alike"), [(1, True), (None, False)])
def test_the_largest_singular_values_alone(top: int | None, alike: bool) -> None:
    """The first direction is stretched by 5 everywhere, the second by less than that."""
    torch.manual_seed(0)
    prior = Polarity(Normal(2), rho=1.0, top=top)
    prior.bind(decoder=lambda z: torch.stack([5 * z[:, 0], z[:, 1].sin()], 1))
    prior().sample((50,))
    assert (float(prior.statistics["effective_sample_size"]) > 0.999) == alike


def test_truncation_is_scipys() -> None:
    torch.manual_seed(0)
    prior, oracle = Truncation(2, threshold=0.7), scipy.stats.truncnorm(-0.7, 0.7)
    z = prior().sample((20_000,))
    assert z.abs().max() <= 0.7
    torch.testing.assert_close(z.std(0), torch.full((2,), float(oracle.std())), atol=0.01, rtol=0)
    expected = torch.from_numpy(oracle.logpdf(z[:50].numpy())).sum(1).float()
    torch.testing.assert_close(prior().log_prob(z[:50]), expected)
    assert prior().log_prob(torch.tensor([0.0, 0.8])) == -math.inf


@pytest.mark.parametrize(
    ("build", "message"), [(Polarity, r"bind\(decoder=…\)"), (OptimalTransport, r"bind\(score=…\)")]
)
def test_what_is_not_bound_is_told(build: Callable[[Prior], Prior], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        build(Normal(2))().sample((3,))


def test_a_model_without_a_critic_refuses_what_needs_one_and_takes_the_others() -> None:
    torch.manual_seed(0)
    likelihood = Bernoulli(MLPGenerator(2, (3,), None, [8]))
    model = VAE(DiagonalGaussian(Encoder(3), 2), likelihood, Normal(2), optimizer=ADAM)
    for prior in (OptimalTransport(Normal(2)), GradientFlow(Normal(2))):
        with pytest.raises(ValueError, match="this model has no critic; use it on an adversarial"):
            model.bind(prior)
    with pytest.raises(ValueError, match="no such critic; use it on an adversarial run without"):
        model.bind(MetropolisHastings(Normal(2)))
    polarity = model.bind(Polarity(Normal(2)))
    assert polarity().sample((5,)).shape == (5, 2)
    assert float(polarity.statistics["effective_sample_size"]) < 1


def test_a_copy_takes_no_model_along() -> None:
    prior = Polarity(Normal(1))
    prior.bind(decoder=torch.nn.Linear(1, 2))
    assert not list(prior.parameters())
    with pytest.raises(RuntimeError, match="given none"):
        copy.deepcopy(prior)().sample((3,))
