"""Masked and weighted priors: the definitions on fixed scores, what a model does with them."""

import copy
import functools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexgen.contracts import Prior
from flexgen.distributions import DiagonalNormal
from flexgen.models import Adversarial
from flexgen.models.critic_score import critic_score
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN, WGAN
from flexgen.priors import Masked, Normal, Uniform, Weighted
from tests.training import noise, train

SCORES = torch.tensor([0.3, -1.2, 4.0, 0.31, 2.2, -0.5, 0.0, 1.0, -3.0, 0.9])
WEIGHTS = ("exponential", "minmax", "rank", "sigmoid")
PRIORS = (Masked, *(functools.partial(Weighted, weights=w) for w in WEIGHTS))


def first(z: Tensor) -> Tensor:
    return z[:, 0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7])
def test_masking_is_definition_3(rate: float) -> None:
    above = SCORES.numpy() > np.percentile(SCORES.numpy(), 100 * (1 - rate))
    expected = torch.from_numpy(above) / (rate * len(SCORES))
    torch.testing.assert_close(Masked(Normal(2), rate).weights(SCORES), expected.float())


def test_a_rate_of_one_is_the_base() -> None:
    assert Masked(Normal(2), rate=1).weights(SCORES).tolist() == pytest.approx([0.1] * 10)


def test_weighting_is_definition_4() -> None:
    s = SCORES.double().numpy()
    expected = {
        "exponential": np.exp((s - s.mean()) / s.std(ddof=1)),
        "minmax": (s - s.min()) / (s.max() - s.min()),
        "rank": np.argsort(np.argsort(s)) + 1.0,
        "sigmoid": 1 / (1 + np.exp(-s)),
    }
    for name, w in expected.items():
        found = Weighted(Normal(2), name).weights(SCORES).double()
        torch.testing.assert_close(found, torch.from_numpy(w / w.sum()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("scores", [SCORES, 1e4 * SCORES, SCORES - 500, torch.zeros(10)])
def test_weights_are_probabilities_and_equal_for_equal_scores(weights: str, scores: Tensor) -> None:
    w = Weighted(Normal(2), weights).weights(torch.cat([scores, scores]))
    assert float(w.sum()) == pytest.approx(1)
    assert w.min() >= 0
    torch.testing.assert_close(w[:10], w[10:])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("level", [0.0, 0.1, -3e9])
def test_a_flat_critic_weighs_all_alike(weights: str, level: float) -> None:
    w = Weighted(Normal(2), weights).weights(torch.full((1000,), level))
    torch.testing.assert_close(w, torch.full((1000,), 1e-3))


def test_a_flat_critic_still_masks_the_same_share() -> None:
    w = Masked(Normal(2), 0.5).weights(torch.zeros(100))
    assert int((w > 0).sum()) == 50
    assert float(w.max()) == pytest.approx(1 / 50)


def test_masked_draws_are_the_highest_of_the_presample_and_distinct() -> None:
    torch.manual_seed(0)
    prior = Masked(Uniform(1), rate=0.5)
    prior.bind(score=first)
    torch.manual_seed(1)
    presample = prior.base().sample((400,))
    torch.manual_seed(1)
    z = prior().sample((200,))
    assert torch.equal(z.sort(0).values, presample.sort(0).values[200:])


def test_masked_draws_repeat_when_too_few_are_kept() -> None:
    prior = Masked(Normal(1), rate=0.01)
    prior.bind(score=first)
    z = prior().sample((500,))
    assert len(z.unique()) <= 10


def test_weighted_draws_are_in_proportion() -> None:
    class Two(Prior):
        """Half −1 and half 1, in turn."""

        latent_dim = 1

        def forward(self, context: Tensor | None = None) -> Any:
            class Fixed(DiagonalNormal):
                def rsample(self, sample_shape: Any = ()) -> Tensor:
                    return torch.tensor([[-1.0], [1.0]]).repeat(sample_shape[0] // 2, 1)

            return Fixed(torch.zeros(1), torch.ones(1))

    torch.manual_seed(0)
    prior = Weighted(Two(), "sigmoid")
    prior.bind(score=lambda z: first(z) * math.log(3))  # w is 1/4 or 3/4
    n = 20_000
    share = float((prior().sample((n,)) > 0).float().mean())
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / n))


def test_weighting_tilts_a_normal_as_its_weights_say() -> None:
    # N(0, 1) weighted by exp(s), s standardised, is N(1, 1).
    torch.manual_seed(0)
    prior = Weighted(Normal(1))
    prior.bind(score=lambda z: 7 * first(z) - 2)
    z = prior().sample((20_000,))
    assert float(z.mean()) == pytest.approx(1, abs=0.05)
    assert float(z.std()) == pytest.approx(1, abs=0.05)


def test_statistics_of_a_draw() -> None:
    torch.manual_seed(0)
    masked, weighted = Masked(Normal(1), rate=0.6), Weighted(Normal(1), "minmax")
    found = {}
    for prior in (masked, weighted):
        prior.bind(score=lambda z: 3 * first(z))
        prior().sample((5000,))
        found[prior] = {name: float(value) for name, value in prior.statistics.items()}
    assert found[masked] == pytest.approx(
        {"critic_std": 3, "effective_sample_size": 0.6, "acceptance": 0.6}, abs=0.1
    )
    assert found[masked]["acceptance"] == pytest.approx(0.6)
    # minmax of a normal, with range (a, b): E w / max w is −a / (b − a), about a half.
    assert found[weighted]["acceptance"] == pytest.approx(0.5, abs=0.1)
    assert 0.9 < found[weighted]["effective_sample_size"] < 1


def test_the_presample_is_at_least_twice_the_draws() -> None:
    sizes = []

    def score(z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        sizes.append(len(z))
        return first(z)

    for presample, n in ((2.0, 500), (3.5, 100), (2.0, 1)):
        prior = Masked(Normal(2), presample=presample)
        prior.bind(score=score)
        assert prior().rsample((n,)).shape == (n, 2)
    assert sizes == [1000, 350, 100]


def test_chosen_draws_pass_gradients_to_a_learnable_base() -> None:
    class Learnable(Prior):
        latent_dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, context: Tensor | None = None) -> DiagonalNormal:
            return DiagonalNormal(self.loc, torch.ones(2))

    prior = Masked(Learnable())
    prior.bind(score=first)
    prior().rsample((7,)).sum().backward()
    assert prior.base.loc.grad.tolist() == [7, 7]


def test_the_score_is_neither_saved_nor_copied() -> None:
    prior = Masked(Uniform(2, -2, 2))
    prior.bind(score=nn.Linear(2, 1))
    assert prior.state_dict() == {}
    assert prior.support == (-2, 2)
    assert list(prior.parameters()) == []
    with pytest.raises(RuntimeError, match=r"prior\.bind"):
        copy.deepcopy(prior)().sample((3,))


def test_without_a_score_there_are_no_draws() -> None:
    p = Weighted(Normal(2))()
    assert p.event_shape == (2,)
    with pytest.raises(RuntimeError, match=r"Weighted prior.*prior\.bind\(score=…\)"):
        p.sample((3,))


@pytest.mark.parametrize("make", PRIORS)
def test_scores_must_be_finite_and_one_a_code(make: Any) -> None:
    prior = make(Normal(2))
    prior.bind(score=lambda z: torch.where(z[:, 0] == z[0, 0], math.nan, z[:, 0]))
    with pytest.raises(FloatingPointError, match="1 scores of 100"):
        prior().sample((3,))
    prior.bind(score=lambda z: z)
    with pytest.raises(ValueError, match=r"one score a code, \(100,\), got \(100, 2\)"):
        prior().sample((3,))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Masked(Normal(2), rate=0), "rate"),
        (lambda: Masked(Normal(2), rate=1.1), "rate"),
        (lambda: Masked(Normal(2), presample=1.5), "presample"),
        (lambda: Masked(Normal(2), presample=math.nan), "presample"),
        (lambda: Masked(Normal(2), where="discriminator"), "where"),
        (lambda: Masked(Normal(2), warmup=-1), "warmup"),
        (lambda: Weighted(Normal(2), "softmax"), "weights"),
    ],
)
def test_mistakes_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"`{expected}`"):
        make()


def test_neither_density_nor_fit() -> None:
    prior = Masked(Normal(2))
    assert not prior.has_log_prob
    with pytest.raises(NotImplementedError, match="no density"):
        prior().log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match="pushforward"):
        prior.fit(torch.randn(50, 2))


def model(prior: nn.Module, objective: Any = None, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    return Adversarial(
        nn.Sequential(
            MLPGenerator(2, (3,), hidden_features=[8], norm="batch"), nn.Dropout(0.5)
        ),
        MLPCritic((3,), hidden_features=[8]), prior, objective or GAN(),
        generator_optimizer=sgd, critic_optimizer=sgd, **options,
    )  # fmt: skip


def scoring(made: Adversarial) -> list[nn.Module]:
    """The networks that make data of codes in eval mode, as those that a prior scores, in turn."""
    scored: list[nn.Module] = []
    for network in (made.generator, *([] if made.ema is None else [made.ema.module])):
        network.register_forward_pre_hook(lambda m, _: None if m.training else scored.append(m))
    return scored


@pytest.mark.parametrize(
    ("where", "expected"), [("critic", 2), ("generator", 1), ("both", 3), ("generation", 0)]
)
def test_where_says_which_steps_draw_by_score(where: str, expected: int) -> None:
    made = model(Masked(Normal(2), where=where, warmup=1), critic_steps=2, log_every=1)
    scored = scoring(made)
    train(made, noise(60, 3))
    assert scored == []
    assert "prior/critic_std" not in made.last_losses
    train(made, noise(60, 3))
    assert scored == [made.generator] * expected
    assert ("prior/critic_std" in made.last_losses) == (expected > 0)


def test_scoring_leaves_modes_statistics_and_generators_alone() -> None:
    made = model(Masked(Normal(2)))
    modes = [m.training for m in made.modules()]
    buffers = {k: v.clone() for k, v in made.generator.named_buffers()}
    z, drawn = torch.randn(2500, 2), torch.get_rng_state()
    score = functools.partial(critic_score, made.generator, made.critic, shown=made.shown)
    with torch.no_grad():
        scores = score(z)
        torch.testing.assert_close(score(z[:7]), scores[:7])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [m.training for m in made.modules()] == modes
    assert all(torch.equal(v, buffers[k]) for k, v in made.generator.named_buffers())


def test_training_scores_the_live_generator_and_sampling_the_average() -> None:
    made = model(Masked(Normal(2), where="both"), ema_decay=0.5)
    scored = scoring(made)
    train(made, noise(60, 3))
    assert scored == [made.generator] * 2
    scored.clear()
    made.prior().sample((60,))
    assert scored == [made.ema.module]


def test_a_clipped_critic_and_a_flat_one_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = model(Masked(Normal(2)), WGAN(clip=0.01), log_every=1)
        assert "clipped to 0.01" in caplog.text
        for weight in made.critic.parameters():
            weight.data.zero_()
        caplog.clear()
        train(made, noise(60, 3), 2)
    assert caplog.text.count("hardly differ") == 1
    caplog.clear()
    model(Normal(2), WGAN(clip=0.01))
    model(Masked(Normal(2)), WGAN(clip=0.1))
    assert caplog.text == ""
