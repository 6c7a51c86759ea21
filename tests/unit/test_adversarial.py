"""The adversarial module: what its options do, without a trainer where that will do."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.contracts import Batch
from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN, LSGAN, WGAN, WGANGP
from flexgen.priors import Normal, Staged

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def model(objective: Any = None, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    optimizers = {"generator_optimizer": SGD, "critic_optimizer": SGD} | options
    made = Adversarial(
        MLPGenerator(2, (3,), hidden_features=[8]),
        MLPCritic((3,), hidden_features=[8]),
        Normal(2),
        objective or GAN(),
        **optimizers,
    )
    made._trainer = type("Alone", (), {"world_size": 1})()
    made.manual_backward = lambda loss: made._scaled(loss).backward()
    made._scaled = lambda loss: loss if made._scaler is None else made._scaler.scale(loss)
    made._scaler = None
    return made


def batches(*x: Tensor) -> Iterator[Batch]:
    return iter([Batch(each) for each in x])


def test_clipping_bounds_every_critic_weight() -> None:
    made = model(WGAN(clip=0.01))
    made.update(batches(torch.randn(4, 3)), *made.configure_optimizers()[0])
    assert max(float(p.detach().abs().max()) for p in made.critic.parameters()) <= 0.01


def test_the_gradient_is_clipped_to_its_norm() -> None:
    made = model(LSGAN(), gradient_clip=1e-3)
    before = [p.detach().clone() for p in made.critic.parameters()]
    made.update(batches(100 * torch.randn(4, 3)), *made.configure_optimizers()[0])
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(before, made.critic.parameters(), strict=True)]
    )
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_accumulated_batches_equal_one_of_their_size() -> None:
    x = torch.randn(8, 3)
    weights = []
    for accumulate, stream in ((1, batches(x)), (2, batches(x[:4], x[4:]))):
        made = model(LSGAN(), accumulate=accumulate)
        made.prior = Staged([Normal(2, scale=1e-12)])  # all fakes alike, however they are drawn
        made.update(stream, *made.configure_optimizers()[0])
        weights.append(torch.cat([p.detach().flatten() for p in made.critic.parameters()]))
        assert made.counters.critic_steps == 1
        assert made.counters.batches == accumulate
        assert made.counters.images_seen == 8
    torch.testing.assert_close(*weights)


def test_the_critic_is_frozen_in_the_generators_step() -> None:
    made = model()
    generator_opt, critic_opt = made.configure_optimizers()[0]
    made.update(batches(torch.randn(4, 3)), generator_opt, critic_opt)
    critic_opt.zero_grad()
    before = [p.detach().clone() for p in made.critic.parameters()]
    made._generator_step(generator_opt)
    assert all(p.grad is None for p in made.critic.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, made.critic.parameters(), strict=True))


def test_schedulers_step_once_a_generator_step() -> None:
    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    made = model(critic_steps=3, generator_scheduler=halve, critic_scheduler=halve)
    optimizers, _ = made.configure_optimizers()
    for _ in range(2):
        made.update(batches(*torch.randn(3, 4, 3)), *optimizers)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.025, 0.025]


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
    plain, scaled = model(critic_steps=2), model(critic_steps=2)
    scaled._scaler = Scaler()
    for made in (plain, scaled):
        torch.manual_seed(1)
        made.update(batches(*x), *made.configure_optimizers()[0])
    # Two batches, three steps, two updates: the second batch serves critic and generator.
    assert scaled._scaler.calls == [
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
    made._trainer = type("Alone", (), {"world_size": 1})()
    made.manual_backward = lambda loss: loss.backward()
    made._scaler = None
    made.update(batches(torch.randn(4, 3)), *made.configure_optimizers()[0])
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
