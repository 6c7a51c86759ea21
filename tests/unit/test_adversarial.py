"""The adversarial module: what its options do in a step or two."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN, LSGAN, WGAN, WGANGP
from flexgen.priors import Normal, Staged
from flexgen.training import CosineLR, LinearLR, StepLR, WarmupLR
from tests.training import noise, train

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def model(objective: Any = None, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    optimizers = {"generator_optimizer": SGD, "critic_optimizer": SGD} | options
    return Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8]),
        MLPCritic((3,), hidden_features=[8]),
        Normal(2),
        objective or GAN(),
        **optimizers,
    )


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_clipping_bounds_every_critic_weight() -> None:
    made = model(WGAN(clip=0.01))
    train(made, noise(4, 3))
    assert float(weights(made.critic).abs().max()) == pytest.approx(0.01)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    made = model(LSGAN(), gradient_clip=1e-3)
    before = {player: weights(player) for player in (made.critic, made.generator)}
    train(made, iter([100 * torch.randn(4, 3)]))
    for player, old in before.items():
        assert float((weights(player) - old).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_accumulated_batches_equal_one_of_their_size() -> None:
    x = torch.randn(8, 3)
    found = []
    for batches in ([x], [x[:4], x[4:]]):
        made = model(LSGAN(), accumulate=len(batches))
        made.prior = Staged([Normal(2, scale=1e-12)])  # all fakes alike, however they are drawn
        train(made, iter(batches))
        found.append(weights(made))
        assert made.counters.critic_steps == 1
        assert made.counters.batches == len(batches)
        assert made.counters.images_seen == 8
    torch.testing.assert_close(*found)


def test_the_critic_is_frozen_in_the_generators_step() -> None:
    made = model()
    seen = []

    def note(critic: nn.Module, _: Any) -> None:
        gradients = [torch.zeros(0) if p.grad is None else p.grad for p in critic.parameters()]
        seen.append((weights(critic), torch.cat([g.flatten() for g in gradients])))

    made.critic.register_forward_pre_hook(note)
    train(made, noise(4, 3))
    note(made.critic, None)
    # It is shown real data, fakes for itself, and fakes for the generator.
    assert len(seen) == 4
    (_, first), *_, before, after = seen
    assert not first.any()
    assert before[1].any()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_schedulers_step_once_a_generator_step() -> None:
    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    made = model(critic_steps=3, generator_scheduler=halve, critic_scheduler=halve)
    train(made, noise(4, 3), steps=2)
    assert [o.param_groups[0]["lr"] for o in made.optimizers()] == [0.025, 0.025]


@pytest.mark.parametrize(
    ("make", "shares"),
    [
        (functools.partial(WarmupLR, warmup=3), [0.25, 0.5, 0.75, 1, 1, 1]),
        (functools.partial(LinearLR, steps=4), [1, 0.75, 0.5, 0.25, 0, 0]),
        (functools.partial(LinearLR, steps=5, warmup=1, end=0.2), [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        (functools.partial(CosineLR, steps=4), [1, 0.853553, 0.5, 0.146447, 0, 0]),
        (functools.partial(StepLR, every=2, factor=0.5), [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_schedules_by_name(make: functools.partial[WarmupLR], shares: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, found = make(optimizer), []
    for _ in shares:
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(shares, abs=1e-6)
    assert not {"warmup", "end", "every"} & schedule.state_dict().keys()  # the configuration's
    with pytest.raises(ValueError, match=r"`(warmup|steps|every)` must be"):
        functools.partial(make.func, **make.keywords | {"warmup": -1})(optimizer)


class Scaler:
    """Stands in for a GradScaler and writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def scale(self, loss: Tensor) -> Tensor:
        return loss * 8

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad /= 8

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append("step")
        optimizer.step()

    def update(self) -> None:
        self.calls.append("update")


def test_the_loss_scale_is_updated_once_a_batch() -> None:
    x = torch.randn(2, 4, 3)
    plain, scaled, scaler = model(critic_steps=2), model(critic_steps=2), Scaler()
    for made in (plain, scaled):
        torch.manual_seed(1)
        train(made, iter(x), scaler=scaler if made is scaled else None)
    # Two batches, three steps, two updates: the second batch serves critic and generator.
    assert scaler.calls == [
        "unscale", "step", "update", "unscale", "step", "unscale", "step", "update",
    ]  # fmt: skip
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_samples_come_from_the_average_and_the_prior_in_use() -> None:
    made = model(ema_decay=0.5)
    assert made.decoder is made.ema.module
    for weight in made.ema.module.parameters():
        weight.data.zero_()
    assert made.sample(5).abs().max() == 0
    assert made.sample(2500).shape == (2500, 3)


def test_a_learnable_prior_learns_with_the_generator() -> None:
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    made = Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8]), MLPCritic((3,), hidden_features=[8]),
        zuko.flows.NSF(2, transforms=1, hidden_features=[8]), GAN(),
        generator_optimizer=SGD, critic_optimizer=SGD,
    )  # fmt: skip
    train(made, noise(4, 3))
    gradients = [p.grad for p in made.prior.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"critic_steps": 0}, "critic_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"log_every": 0}, "log_every"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"compile": "critic"}, "compile"),
        ({"objective": WGANGP(), "compile": "both"}, "double backward"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        model(**options)


def test_prior_and_generator_must_agree() -> None:
    made = Adversarial(
        MLPGenerator(2, (3,)), MLPCritic((3,)), Normal(5), GAN(),
        generator_optimizer=SGD, critic_optimizer=SGD,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"prior of codes \(5,\), generator.* one `latent_dim`"):
        made.check_fit((3,))
