"""The loss scale of float16 among several optimizers, with torch's own scaler on the CPU."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.contracts import Batch
from flexgen.likelihoods import Gaussian
from flexgen.models import VAE, Adversarial, Latent
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import GAN
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal

ADAM = functools.partial(torch.optim.Adam, lr=0.01, fused=True)


def prepared(made: Latent, growth_interval: int = 2000) -> Any:
    """A model without a trainer, whose losses a scaler scales."""
    made._trainer = type("Alone", (), {"world_size": 1})()
    made._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=growth_interval)
    made.manual_backward = lambda loss: made._scaler.scale(loss).backward()
    return made


def adversarial(critic_steps: int, **options: Any) -> Any:
    torch.manual_seed(0)
    made = Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8]),
        MLPCritic((3,), hidden_features=[8]),
        Normal(2),
        GAN(),
        generator_optimizer=ADAM,
        critic_optimizer=ADAM,
        critic_steps=critic_steps,
        ema_decay=0.9,
    )
    return prepared(made, **options)


def batches(n: int) -> Iterator[Batch]:
    return iter([Batch(x) for x in torch.randn(n, 4, 3)])


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def spoil(module: torch.nn.Module) -> Any:
    """Have one gradient of `module` be infinite."""
    return next(module.parameters()).register_hook(lambda grad: grad * torch.inf)


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_the_scale_grows_after_as_many_batches_as_configured(critic_steps: int) -> None:
    made = adversarial(critic_steps, growth_interval=6)
    optimizers = made.configure_optimizers()[0]
    scales = []
    for _ in range(12 // critic_steps):
        made.update(batches(critic_steps), *optimizers)
        scales.append(made._scaler.get_scale())
    before = 6 // critic_steps - 1
    assert scales[:before] == [8.0] * before
    assert scales[before : 2 * before + 1] == [16.0] * (before + 1)
    assert scales[-1] == 32.0


def test_an_infinite_gradient_skips_its_own_optimizer_alone() -> None:
    made = adversarial(critic_steps=1)
    optimizers = made.configure_optimizers()[0]
    for spoilt, other in ((made.critic, made.generator), (made.generator, made.critic)):
        before = weights(spoilt), weights(other)
        scale = made._scaler.get_scale()
        hook = spoil(spoilt)
        made.update(batches(1), *optimizers)
        hook.remove()
        assert torch.equal(weights(spoilt), before[0])
        assert not torch.equal(weights(other), before[1])
        assert made._scaler.get_scale() == scale / 2


def test_a_skipped_step_is_counted_and_moves_nothing() -> None:
    """A schedule goes on; the weights, the moments of Adam and the average stay as they were."""
    made = adversarial(critic_steps=1)
    optimizers = made.configure_optimizers()[0]
    made.update(batches(1), *optimizers)
    made.ema.module.load_state_dict(made.generator.state_dict())
    average, moments = weights(made.ema), optimizers[0].state_dict()["state"][0]["exp_avg"].clone()
    hook = spoil(made.generator)
    made.update(batches(1), *optimizers)
    hook.remove()
    assert made.counters.generator_steps == made.counters.critic_steps == 2
    assert made.counters.batches == 2
    assert torch.equal(weights(made.ema), average)
    assert torch.equal(optimizers[0].state_dict()["state"][0]["exp_avg"], moments)
    assert int(optimizers[0].state_dict()["state"][0]["step"]) == 1


def test_a_vae_updates_the_scale_once_a_step() -> None:
    torch.manual_seed(0)
    made = VAE(
        DiagonalGaussian(MLPEncoder((3,), [8]), 2),
        Gaussian(MLPGenerator(2, (3,), hidden_features=[8])),
        Normal(2),
        optimizer=ADAM,
        accumulate=2,
    )
    made = prepared(made, growth_interval=2)
    optimizers = made.configure_optimizers()[0]
    scales = []
    for _ in range(4):
        made.update(batches(2), *optimizers)
        scales.append(made._scaler.get_scale())
    assert scales == [8.0, 16.0, 16.0, 32.0]
    hook, before = spoil(made.posterior), weights(made)
    made.update(batches(2), *optimizers)
    hook.remove()
    assert torch.equal(weights(made), before)
    assert made._scaler.get_scale() == 16.0
    assert made.counters.generator_steps == 5
