"""The loss scale of float16 among several optimizers, with torch's own scaler on the CPU."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.likelihoods import Gaussian
from flexgen.models import VAE, Adversarial
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import GAN
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal
from tests.training import noise, train

ADAM = functools.partial(torch.optim.Adam, lr=0.01, fused=True)


def scale(growth_interval: int = 2000) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=growth_interval)


def adversarial(critic_steps: int) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8]),
        MLPCritic((3,), hidden_features=[8]),
        Normal(2),
        GAN(),
        generator_optimizer=ADAM,
        critic_optimizer=ADAM,
        critic_steps=critic_steps,
        ema_decay=0.9,
    )


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def spoil(module: torch.nn.Module) -> Any:
    """Have one gradient of `module` be infinite."""
    return next(module.parameters()).register_hook(lambda grad: grad * torch.inf)


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_the_scale_grows_after_as_many_batches_as_configured(critic_steps: int) -> None:
    made, scaler, scales = adversarial(critic_steps), scale(growth_interval=6), []

    def after() -> None:
        scales.append(scaler.get_scale())

    train(made, noise(4, 3), 12 // critic_steps, after=after, scaler=scaler)
    before = 6 // critic_steps - 1
    assert scales[:before] == [8.0] * before
    assert scales[before : 2 * before + 1] == [16.0] * (before + 1)
    assert scales[-1] == 32.0


def test_an_infinite_gradient_skips_its_own_optimizer_alone() -> None:
    made, scaler = adversarial(critic_steps=1), scale()
    for spoilt, other in ((made.critic, made.generator), (made.generator, made.critic)):
        before = weights(spoilt), weights(other), scaler.get_scale()
        hook = spoil(spoilt)
        train(made, noise(4, 3), scaler=scaler)
        hook.remove()
        assert torch.equal(weights(spoilt), before[0])
        assert not torch.equal(weights(other), before[1])
        assert scaler.get_scale() == before[2] / 2


def test_a_skipped_step_is_counted_and_moves_nothing() -> None:
    """A schedule goes on; the weights, the moments of Adam and the average stay as they were."""
    made, kept = adversarial(critic_steps=1), []

    def after() -> None:
        adam = made.optimizers()[0].state_dict()["state"][0]
        if made.counters.generator_steps == 1:
            made.ema.module.load_state_dict(made.generator.state_dict())
            spoil(made.generator)
        kept.append((weights(made.ema), weights(made.generator), adam["exp_avg"].clone()))
        assert int(adam["step"]) == 1

    train(made, noise(4, 3), 2, after=after, scaler=scale())
    assert made.counters.generator_steps == made.counters.critic_steps == 2
    assert made.counters.batches == 2
    for before, then in zip(*kept, strict=True):
        assert torch.equal(before, then)


def test_a_vae_updates_the_scale_once_a_step() -> None:
    torch.manual_seed(0)
    made = VAE(
        DiagonalGaussian(MLPEncoder((3,), [8]), 2),
        Gaussian(MLPGenerator(2, (3,), hidden_features=[8])),
        Normal(2),
        optimizer=ADAM,
        accumulate=2,
    )
    scaler, scales = scale(growth_interval=2), []

    def after() -> None:
        scales.append(scaler.get_scale())

    train(made, noise(4, 3), 4, after=after, scaler=scaler)
    assert scales == [8.0, 16.0, 16.0, 32.0]
    before = weights(made)
    spoil(made.posterior)
    train(made, noise(4, 3), scaler=scaler)
    assert torch.equal(weights(made), before)
    assert scaler.get_scale() == 16.0
    assert made.counters.generator_steps == 5
