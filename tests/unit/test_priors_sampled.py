"""Rejection and Langevin priors: targets with a closed form, acceptance, and what they refuse."""

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.contracts import Prior
from flexgen.distributions import DiagonalNormal
from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN
from flexgen.priors import KernelDensity, Langevin, Masked, Normal, Rejection, Uniform
from tests.training import train

SHARP, CENTRE = 1.5, 1.0
# N(0, 1) times exp(−SHARP/2 (z − CENTRE)²), in each coordinate.
PRECISION = 1 + SHARP
MEAN = SHARP * CENTRE / PRECISION
PRIORS = (Rejection, Langevin)


def bell(z: Tensor) -> Tensor:
    """Scores that tilt N(0, I) to N(MEAN, I/PRECISION); their level must not matter."""
    return 7 - SHARP / 2 * (z - CENTRE).square().sum(-1)


def drawn(prior: Any, score: Any, n: int, seed: int = 0) -> tuple[Tensor, dict[str, float]]:
    prior.bind(score=score)
    torch.manual_seed(seed)
    z = prior().sample((n,))
    return z, {name: float(value) for name, value in prior.statistics.items()}


def check_moments(z: Tensor, mean: float, variance: float) -> None:
    error = math.sqrt(variance / len(z))
    assert z.mean(0).tolist() == pytest.approx([mean] * z.shape[1], abs=4 * error)
    assert z.var(0).tolist() == pytest.approx([variance] * z.shape[1], rel=6 / math.sqrt(len(z)))


def test_exact_rejection_reproduces_a_gaussian_and_its_rate() -> None:
    prior = Rejection(Normal(2), percentile=None, burn_in=5000)
    z, statistics = drawn(prior, bell, 10_000)
    check_moments(z, MEAN, 1 / PRECISION)
    # E exp(s − s_max) under N(0, 1), for two coordinates.
    rate = math.exp(-SHARP * CENTRE**2 / PRECISION) / PRECISION
    assert statistics["acceptance"] == pytest.approx(rate, rel=0.05)
    assert abs(float(z.T.corrcoef()[0, 1])) < 4 / math.sqrt(len(z))


def test_a_percentile_accepts_the_code_there_every_second_time() -> None:
    # s = −z² under U(−1, 1) has s_max 0, and below its 75th percentile lie the |z| above 1/4.
    z, statistics = drawn(
        Rejection(Uniform(1), percentile=75, burn_in=20_000), lambda z: -z[:, 0].square(), 20_000
    )
    grid = torch.linspace(-1, 1, 20_002, dtype=torch.float64)[1:-1]
    odds = 1 / torch.expm1(grid.square()) * math.expm1(0.25**2)
    accept = odds / (1 + odds)
    assert statistics["acceptance"] == pytest.approx(float(accept.mean()), rel=0.05)
    second = float((accept * grid.square()).mean() / accept.mean())
    assert float(z.square().mean()) == pytest.approx(second, rel=0.05)


@pytest.mark.parametrize(("percentile", "rate"), [(None, 1), (0.0, 0.5), (80.0, 0.5), (100, 0.5)])
@pytest.mark.parametrize("level", [0.0, 0.1, -3e9])
def test_a_flat_critic_draws_from_the_base(
    percentile: float | None, rate: float, level: float
) -> None:
    prior = Rejection(Normal(1), percentile=percentile)
    z, statistics = drawn(prior, lambda z: torch.full((len(z),), level), 5000)
    check_moments(z, 0, 1)
    assert statistics["acceptance"] == pytest.approx(rate, abs=0.03)
    assert statistics["critic_std"] == pytest.approx(0)


def test_a_higher_percentile_follows_the_critic_more() -> None:
    found = [drawn(Rejection(Normal(1), percentile=p), bell, 2000) for p in (20, 60, 95)]
    scores = [float(bell(z).mean()) for z, _ in found]
    rates = [statistics["acceptance"] for _, statistics in found]
    assert scores == sorted(scores)
    assert rates == sorted(rates, reverse=True)


def test_the_highest_score_grows_after_the_burn_in() -> None:
    # One code of 2,000 scores log 40 higher: with the burn-in's s_max it would be drawn as seldom.
    class Rare(Prior):
        latent_dim = 1

        def forward(self, context: Tensor | None = None) -> Any:
            class Fixed(DiagonalNormal):
                def rsample(self, sample_shape: Any = ()) -> Tensor:
                    rare = torch.rand(sample_shape) < 1 / 2000
                    return torch.where(rare, 1.0, 0.0)[:, None] * (sample_shape[0] > 100)

            return Fixed(torch.zeros(1), torch.ones(1))

    prior = Rejection(Rare(), percentile=None, burn_in=100)
    z, _ = drawn(prior, lambda z: z[:, 0] * math.log(40), 20_000)
    assert float(z.mean()) == pytest.approx(40 / 2039, rel=0.3)


def test_rejection_gives_up_with_a_remedy() -> None:
    prior = Rejection(Normal(1), percentile=None, max_proposals=10)
    with pytest.raises(RuntimeError, match=r"accept 50 codes in 500 .* `prior.max_proposals`"):
        drawn(prior, lambda z: 1e4 * z[:, 0], 50)


def test_a_chain_has_the_variance_of_its_target() -> None:
    # Plain steps would have 1 / (1 - ε precision / 4) times it, 8 % more.
    score = lambda z: -2.5 * (z - CENTRE).square().sum(-1)  # noqa: E731
    z, statistics = drawn(Langevin(Normal(2)), score, 20_000)
    error = math.sqrt(2 / len(z))
    assert (z.var(0) * 6).tolist() == pytest.approx([1, 1], abs=4 * error)
    assert z.mean(0).tolist() == pytest.approx([5 / 6] * 2, abs=4 / math.sqrt(6 * len(z)))
    assert 0.9 < statistics["acceptance"] < 1


def test_a_chain_has_the_mass_on_both_sides_of_a_step() -> None:
    # Of N(0, 1) with a score that rises by log 3 at 0, three quarters lie above it. Plain steps,
    # thrown far by its slope, leave 0.68 there.
    z, statistics = drawn(
        Langevin(Normal(1), steps=400), lambda z: math.log(3) * (100 * z[:, 0]).sigmoid(), 10_000
    )
    error = math.sqrt(0.75 * 0.25 / len(z))
    assert float((z > 0).float().mean()) == pytest.approx(0.75, abs=4 * error)
    assert 0.5 < statistics["acceptance"] < 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_metropolis_step_reproduces_a_gaussian_at_a_long_step(temperature: float) -> None:
    prior = Langevin(Normal(2), steps=60, step_size=1.0, temperature=temperature)
    z, statistics = drawn(prior, bell, 4000)
    precision = 1 + SHARP / temperature
    check_moments(z, SHARP / temperature * CENTRE / precision, 1 / precision)
    assert 0.4 < statistics["acceptance"] < 0.9


def test_plain_langevin_has_the_variance_of_its_step() -> None:
    # z ← (1 − ελ/2) z + √ε n has the variance 1 / (λ (1 − ελ/4)), here a third above 1/λ.
    eps = 0.4
    plain = Langevin(Normal(2), steps=40, step_size=eps, metropolis=False)
    z, statistics = drawn(plain, bell, 4000)
    check_moments(z, MEAN, 1 / (PRECISION * (1 - eps * PRECISION / 4)))
    assert "acceptance" not in statistics


@pytest.mark.parametrize(("metropolis", "eps"), [(False, 0.01), (True, 0.3)])
def test_walls_bound_the_chain_and_keep_its_target(metropolis: bool, eps: float) -> None:
    # exp(3 z) on (−1, 1) has the mean coth 3 − 1/3; reflection takes 0.75 ε from it.
    prior = Langevin(Uniform(1), steps=400, step_size=eps, metropolis=metropolis)
    z, _ = drawn(prior, lambda z: 3 * z[:, 0], 2000)
    assert z.abs().max() <= 1
    assert float(z.mean()) == pytest.approx(1 / math.tanh(3) - 1 / 3, abs=0.03)


def test_reflection_folds_at_both_walls() -> None:
    z = torch.tensor([[-0.5, 1.5, 3.25, -2.5, 6.0, 2.0]])
    folded = Langevin(Uniform(6, low=0, high=2)).reflect(z)
    assert folded.tolist() == [[0.5, 1.5, 0.75, 1.5, 2.0, 2.0]]
    assert torch.equal(Langevin(Normal(6)).reflect(z), z)


def test_a_step_is_its_formula_for_more_chains_than_a_pass_takes() -> None:
    eps, sizes = 0.2, []

    def score(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return bell(z)

    plain = Langevin(Normal(2), steps=1, step_size=eps, metropolis=False)
    z, statistics = drawn(plain, score, 1700)
    assert max(sizes) < 1700
    torch.manual_seed(0)
    start, kick = Normal(2)().sample((1700,)), torch.randn(1700, 2)
    slope = start + SHARP * (start - CENTRE)
    torch.testing.assert_close(z, start - eps / 2 * slope + math.sqrt(eps) * kick)
    assert statistics["critic_std"] == pytest.approx(float(bell(start).std(correction=0)))


def model(prior: nn.Module) -> Adversarial:
    torch.manual_seed(0)
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    return Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8], norm="batch"),
        MLPCritic((3,), hidden_features=[8]), prior, GAN(),
        generator_optimizer=sgd, critic_optimizer=sgd,
    )  # fmt: skip


@pytest.mark.parametrize("make", PRIORS)
def test_drawing_leaves_gradients_flags_and_statistics_alone(make: Any) -> None:
    made = model(make(Normal(2)))
    for p in made.parameters():
        p.grad = torch.ones_like(p)
    frozen = next(made.critic.parameters()).requires_grad_(False)
    buffers = {k: v.clone() for k, v in made.generator.named_buffers()}
    z = made.prior().rsample((5,))
    assert not z.requires_grad
    assert not frozen.requires_grad
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in made.parameters())
    assert all(torch.equal(v, buffers[k]) for k, v in made.generator.named_buffers())
    assert all(module.training for module in made.generator.modules())


@pytest.mark.parametrize("make", PRIORS)
def test_training_draws_from_the_base_and_sampling_by_score(make: Any) -> None:
    made = model(make(Normal(2)))
    codes, scored = [], []
    made.generator.register_forward_pre_hook(lambda _, z: codes.append(*z))
    made.critic.register_forward_pre_hook(lambda m, _: scored.append(m.training))
    x = torch.randn(60, 3)
    torch.manual_seed(1)
    train(made, iter([x]))
    torch.manual_seed(1)
    for z in codes:
        assert torch.equal(z, Normal(2)().sample((60,)))
    assert len(codes) == 2
    assert scored == [True] * 3
    assert made.sample(4).shape == (4, 3)
    assert not all(scored)


@pytest.mark.parametrize("make", PRIORS)
def test_a_draw_depends_on_the_seed_alone(make: Any) -> None:
    prior = make(Normal(2))
    first, _ = drawn(prior, bell, 20)
    drawn(prior, bell, 300, seed=1)
    assert torch.equal(drawn(prior, bell, 20)[0], first)
    assert prior().sample((2, 3)).shape == (2, 3, 2)
    assert prior().sample((0,)).shape == (0, 2)
    assert prior().sample().shape == (2,)


def test_accepted_draws_pass_gradients_to_a_learnable_base() -> None:
    class Learnable(Prior):
        latent_dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, context: Tensor | None = None) -> DiagonalNormal:
            return DiagonalNormal(self.loc, torch.ones(2))

    prior = Rejection(Learnable())
    prior.bind(score=bell)
    prior().rsample((7,)).sum().backward()
    assert prior.base.loc.grad.tolist() == [7, 7]


@pytest.mark.parametrize("make", PRIORS)
def test_the_score_is_neither_saved_nor_copied(make: Any) -> None:
    prior = make(Uniform(2, -2, 2))
    prior.bind(score=nn.Linear(2, 1))
    assert prior.state_dict() == {}
    assert prior.support == (-2, 2)
    assert list(prior.parameters()) == []
    with pytest.raises(RuntimeError, match=rf"{make.__name__} prior.*prior\.bind\(score=…\)"):
        copy.deepcopy(prior)().sample((3,))


@pytest.mark.parametrize("make", PRIORS)
def test_scores_must_be_finite_and_one_a_code(make: Any) -> None:
    with pytest.raises(FloatingPointError, match="`score` must be finite"):
        drawn(make(Normal(2)), lambda z: z[:, 0].log(), 50)
    with pytest.raises(ValueError, match="one score a code"):
        drawn(make(Normal(2)), lambda z: z, 50)


def test_langevin_refuses_what_has_no_gradient() -> None:
    with pytest.raises(ValueError, match="pass gradients"):
        drawn(Langevin(Normal(2)), lambda z: bell(z).detach(), 5)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
        drawn(Langevin(Normal(2)), bell, 5)


def test_a_chain_that_runs_away_names_its_step() -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+ .* lower `prior.step_size`"):
        drawn(Langevin(Normal(1), step_size=1e4, metropolis=False), lambda z: 0 * z[:, 0], 5)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Rejection(Normal(2), percentile=101), "percentile"),
        (lambda: Rejection(Normal(2), percentile=math.nan), "percentile"),
        (lambda: Rejection(Normal(2), burn_in=99), "burn_in"),
        (lambda: Rejection(Normal(2), max_proposals=0.5), "max_proposals"),
        (lambda: Rejection(Normal(2), max_proposals=math.inf), "max_proposals"),
        (lambda: Langevin(Normal(2), steps=0), "steps"),
        (lambda: Langevin(Normal(2), step_size=0), "step_size"),
        (lambda: Langevin(Normal(2), temperature=math.nan), "temperature"),
        (lambda: Langevin(KernelDensity(2, 10, bandwidth=0)), "base"),
        (lambda: Langevin(Masked(Normal(2))), "base"),
    ],
)
def test_mistakes_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"`{expected}` must .*set `prior"):
        make()


@pytest.mark.parametrize("make", PRIORS)
def test_there_is_no_density(make: Any) -> None:
    prior = make(Normal(2))
    assert not prior.has_log_prob
    with pytest.raises(NotImplementedError, match=f"a {make.__name__} prior has no density"):
        prior().log_prob(torch.zeros(2))
