"""ALI, BiGAN and hierarchical ALI: the game over pairs, and what learns from which side of it."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.contracts import Batch
from flexgen.models import ALI
from flexgen.networks import (
    DCGANGenerator,
    JointCritic,
    MLPEncoder,
    MLPFirstLevel,
    MLPGenerator,
    MLPStochasticGenerator,
)
from flexgen.objectives import GAN, LSGAN, WGANGP, Hinge, Objective
from flexgen.posteriors import BottomUp, Deterministic, DiagonalGaussian
from flexgen.priors import Hierarchical, Normal
from tests.training import noise, train

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def model(
    objective: Objective | None = None, levels: list[int] | None = None, **options: Any
) -> ALI:
    torch.manual_seed(0)
    d = sum(levels or [2])
    encoder = MLPEncoder((3,), [8])
    chain = functools.partial(BottomUp, sees_data=False, constant_scale=True)
    optimizers = {"generator_optimizer": SGD, "critic_optimizer": SGD} | options
    return ALI(
        (MLPFirstLevel if levels else MLPGenerator)(levels[0] if levels else d, (3,), None, [8]),
        JointCritic(MLPEncoder((3,), []), d, hidden_features=[8]),
        (chain if levels else DiagonalGaussian)(encoder, d),
        Hierarchical(d, levels) if levels else Normal(d),
        objective or GAN(),
        **optimizers,
    )


def test_an_optimal_joint_critic_has_the_divergence_of_the_two_joints() -> None:
    """Two data and two codes: the game's value at its optimum is 2 JS(q ‖ p) − 2 log 2."""
    q = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=torch.float64)  # q(x) q(z|x)
    p = torch.tensor([[0.1, 0.3], [0.4, 0.2]], dtype=torch.float64)  # p(z) p(x|z)
    cells = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    counts = [(100 * joint.flatten()).round().long() for joint in (q, p)]
    real, fake = (cells.repeat_interleave(count, 0).split(1, 1) for count in counts)
    torch.manual_seed(0)
    critic = JointCritic(MLPEncoder((1,), []), 1, hidden_features=[16]).double()
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    game = GAN()

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = game.critic(critic(*real), critic(*fake))
        value.backward()
        return value

    optimizer.step(loss)
    mean = (q + p) / 2
    js = 0.5 * ((q * (q / mean).log()).sum() + (p * (p / mean).log()).sum())
    assert -loss().item() == pytest.approx(float(2 * js - 2 * math.log(2)), abs=1e-4)
    # The critic is log q/p of a pair, which neither q(x)/p(x) nor q(z)/p(z) is.
    with torch.no_grad():
        logits = critic(*cells.split(1, 1))
    torch.testing.assert_close(logits, (q / p).log().flatten(), atol=0.02, rtol=0.02)


GAMES = (GAN(), GAN(non_saturating=False), LSGAN(), Hinge(), WGANGP())


@pytest.mark.parametrize("objective", GAMES)
def test_the_encoders_side_is_the_generators_with_real_and_fake_exchanged(
    objective: Objective,
) -> None:
    logits = torch.randn(6, dtype=torch.float64)
    exchanged = 1 - logits if isinstance(objective, LSGAN) else -logits
    found = objective.encoder(logits)
    torch.testing.assert_close(found, objective.generator(exchanged))
    # The critic cannot tell the game from the one in which it has changed places as well.
    other = torch.randn(6, dtype=torch.float64)
    mirrored = 1 - other if isinstance(objective, LSGAN) else -other
    torch.testing.assert_close(
        objective.critic(logits, other), objective.critic(mirrored, exchanged)
    )


def seen_by(critic: nn.Module) -> list[tuple[Tensor, ...]]:
    found: list[tuple[Tensor, ...]] = []
    critic.register_forward_pre_hook(lambda _, played: found.append(played))
    return found


def test_the_critic_is_shown_data_with_their_codes_and_codes_with_their_data() -> None:
    made = model()
    made.posterior = Deterministic(MLPEncoder((3,), [8]), 2)
    seen, x = seen_by(made.critic), torch.randn(4, 3)
    with torch.no_grad():
        z = made.posterior(x).sample()
    train(made, iter([Batch(x)]))
    (real_x, real_z), (fake_x, fake_z), *_ = seen
    assert torch.equal(real_x, x)
    assert torch.equal(real_z, z)
    assert not real_z.requires_grad  # the encoder has no part in the critic's step
    before = model()
    torch.testing.assert_close(fake_x, before.generator(fake_z))


def test_both_players_answer_the_critic_they_are_shown_at_once() -> None:
    steps = {}
    for simultaneous in (False, True):
        made = model(LSGAN(), simultaneous=simultaneous)
        made.posterior = Deterministic(MLPEncoder((3,), [8]), 2)
        critics: list[Tensor] = []
        weight = made.critic.output.output.weight
        made.critic.register_forward_pre_hook(
            lambda *_, seen=critics, weight=weight: seen.append(weight.detach().clone())
        )
        train(made, noise(4, 3))
        # Real and fake of the critic's step; real and fake of the generator's.
        steps[simultaneous] = [torch.equal(critics[0], seen) for seen in critics[1:]]
        assert made.counters.critic_steps == made.counters.generator_steps == 1
    assert steps == {False: [True, False, False], True: [True, True, True]}
    with pytest.raises(ValueError, match=r"model\.critic_steps=1"):
        model(simultaneous=True, critic_steps=2)


def test_the_cycle_term_is_half_the_squared_error_of_a_round_trip() -> None:
    made = model(cycle_weight=1e3)
    made.posterior = Deterministic(MLPEncoder((3,), [8]), 2)
    x = torch.randn(4, 3)
    recorded: dict[str, Tensor] = {}
    made.record = recorded.__setitem__  # type: ignore[method-assign]
    loss = made.generator_loss(Batch(x))
    with torch.no_grad():
        error = 0.5 * (x - made.generator(made.posterior(x).sample())).square().sum(1).mean()
    torch.testing.assert_close(recorded["loss/cycle"], error)
    parts = recorded["loss/generator"] + recorded["loss/encoder"] + 1e3 * error
    torch.testing.assert_close(loss, parts)


def test_the_average_is_of_encoder_and_generator() -> None:
    made = model(ema_decay=0.5)
    train(made, noise(4, 3))
    assert made.ema is not None
    assert made.encoder is made.posterior_ema.module
    for live, average in ((made.generator, made.decoder), (made.posterior, made.encoder)):
        pairs = zip(live.parameters(), average.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs)


def test_three_levels_learn_from_the_game_on_both_sides() -> None:
    made = model(WGANGP(), levels=[3, 2, 2])
    made.encode(torch.randn(5, 3))
    train(made, noise(8, 3))
    networks = [made.posterior, *made.prior.current.networks]
    assert len(made.posterior.networks) == 3
    for network in networks:
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_noise_of_a_generator_is_of_training_alone() -> None:
    torch.manual_seed(0)
    generator = MLPStochasticGenerator(2, (3,), hidden_features=[8], log_scale=-2.0)
    z = torch.zeros(4000, 2)
    assert generator(z).std(0).log().mean().item() == pytest.approx(-2, abs=0.5)
    assert torch.equal(generator.eval()(z), generator(z))


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_the_last_bias_starts_at_the_datas_log_odds(data_range: tuple[float, float]) -> None:
    low, high = data_range
    x = torch.rand(200, 1, 8, 8) * (high - low) + low
    x[:, :, 0] = low  # a pixel that never changes has no finite log-odds
    made = model()
    d = made.latent_dim
    for generator in (
        MLPGenerator(d, (1, 8, 8), data_range), DCGANGenerator(d, (1, 8, 8), data_range, [4])
    ):  # fmt: skip
        critic = JointCritic(MLPEncoder((1, 8, 8), []), d)
        posterior = Deterministic(MLPEncoder((1, 8, 8), [8]), d)
        options: dict[str, Any] = {"generator_optimizer": SGD, "critic_optimizer": SGD}
        started = ALI(
            generator, critic, posterior, Normal(d), GAN(), data_bias=True, ema_decay=0.9, **options
        )
        started.bind_data(lambda n: x)
        for network in (generator, started.decoder):
            *_, last, to_range = network.net if isinstance(network, DCGANGenerator) else (
                network.output, network.to_range
            )  # fmt: skip
            made_of_bias = to_range(last.bias.detach())
            mean = x.mean(0) if made_of_bias.numel() == 64 else x.mean((0, 2, 3))
            close = 0.02 * (high - low)
            torch.testing.assert_close(made_of_bias, mean.flatten(), atol=close, rtol=0)
    with pytest.raises(ValueError, match="not bounded"):
        model(data_bias=True).bind_data(lambda n: x[:, 0, 0, :3])


@pytest.mark.parametrize(
    ("options", "told"),
    [({"cycle_weight": -1.0}, "cycle_weight"), ({"levels": [3]}, "at least two sizes")],
)
def test_what_does_not_fit_is_refused_in_a_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model(**options)


def test_parts_of_several_sizes_are_refused_by_the_key_to_set() -> None:
    made = model()
    made.posterior = Deterministic(MLPEncoder((3,), [8]), 5)
    with pytest.raises(ValueError, match=r"codes must be of the prior's shape \(2,\), got \(5,\)"):
        made.check_fit((3,))
    with pytest.raises(ValueError, match=r"encoder and data of shape \(4,\) do not fit"):
        model().check_fit((4,))
    with pytest.raises(ValueError, match="dropout"):
        JointCritic(MLPEncoder((3,), []), 2, dropout=1.0)
