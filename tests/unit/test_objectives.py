"""Adversarial objectives against their definitions."""

import math

import pytest
import torch
from torch import Tensor, nn

from flexgen.objectives import GAN, LSGAN, WGAN, WGANGP, Hinge, gradient_penalty

REAL = torch.tensor([2.0, -1.0], dtype=torch.float64)
FAKE = torch.tensor([0.5, -3.0], dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("objective", "critic", "generator"),
    [
        (
            GAN(),
            -(log_sigmoid(2) + log_sigmoid(-1)) / 2 - (log_sigmoid(-0.5) + log_sigmoid(3)) / 2,
            -(log_sigmoid(0.5) + log_sigmoid(-3)) / 2,
        ),
        (
            GAN(non_saturating=False),
            -(log_sigmoid(2) + log_sigmoid(-1)) / 2 - (log_sigmoid(-0.5) + log_sigmoid(3)) / 2,
            (log_sigmoid(-0.5) + log_sigmoid(3)) / 2,
        ),
        (LSGAN(), 0.25 * (1 + 4 + 0.25 + 9), 0.25 * (0.25 + 16)),
        (Hinge(), (0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
        (WGAN(), -1.25 - 0.5, 1.25),
        (WGANGP(), -1.25 - 0.5, 1.25),
    ],
    ids=["gan", "minimax", "lsgan", "hinge", "wgan", "wgan_gp"],
)
def test_losses_are_as_published(objective: GAN, critic: float, generator: float) -> None:
    assert float(objective.critic(REAL, FAKE)) == pytest.approx(critic)
    assert float(objective.generator(FAKE)) == pytest.approx(generator)


@pytest.mark.parametrize("objective", [GAN(), GAN(non_saturating=False), LSGAN(), Hinge(), WGAN()])
def test_each_player_pushes_its_own_way(objective: GAN) -> None:
    real, fake = (torch.zeros(1, requires_grad=True) for _ in range(2))
    objective.critic(real, fake).backward()
    assert real.grad.item() < 0 < fake.grad.item() or isinstance(objective, LSGAN)
    logits = torch.zeros(1, requires_grad=True)
    objective.generator(logits).backward()
    assert logits.grad.item() < 0


def test_penalty_of_a_linear_critic_is_exact() -> None:
    w = torch.randn(6)
    real, fake = torch.randn(2, 4, 2, 3)
    penalty = gradient_penalty(lambda x: x.flatten(1) @ w, (real,), (fake,))
    assert penalty.item() == pytest.approx((float(w.norm()) - 1) ** 2, rel=1e-5)


def test_penalty_is_taken_on_the_line_between_the_images() -> None:
    real, fake = torch.full((3, 1), 2.0), torch.zeros(3, 1)
    eps = torch.tensor([0.0, 0.5, 1.0])
    # D(x) = x²: the gradient at x̃ = 2ε is 4ε.
    penalty = gradient_penalty(lambda x: x.square().sum(1), (real,), (fake,), eps)
    assert penalty.item() == pytest.approx(((0 - 1) ** 2 + (2 - 1) ** 2 + (4 - 1) ** 2) / 3)


def test_gradient_of_the_penalty_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 3, generator=generator).requires_grad_()
    v = torch.randn(5, generator=generator)
    real, fake = torch.randn(2, 7, 3, generator=generator)
    eps = torch.rand(7, generator=generator)

    def value(weight: torch.Tensor) -> torch.Tensor:
        return gradient_penalty(lambda x: torch.tanh(x @ weight.mT) @ v, (real,), (fake,), eps)

    (gradient,) = torch.autograd.grad(value(w), w)
    step = 1e-2
    for i, j in ((0, 0), (2, 1), (4, 2)):
        bump = torch.zeros_like(w)
        bump[i, j] = step
        slope = (value(w.detach() + bump) - value(w.detach() - bump)) / (2 * step)
        assert gradient[i, j].item() == pytest.approx(slope.item(), rel=0.02, abs=1e-3)


def test_penalty_runs_in_float32_under_autocast() -> None:
    seen = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return x.square().sum(1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        real, fake = torch.randn(2, 4, 3).bfloat16()
        penalty = gradient_penalty(critic, (real,), (fake,))
    assert seen == [(torch.float32, False)]
    assert penalty.dtype == torch.float32


def test_penalty_of_a_dead_critic_has_a_finite_gradient() -> None:
    w = torch.zeros(3, requires_grad=True)
    real, fake = torch.randn(2, 4, 3)
    gradient_penalty(lambda x: x @ w, (real,), (fake,)).backward()
    assert w.grad.isfinite().all()


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="penalty_weight"):
        WGANGP(penalty_weight=-1)
    with pytest.raises(ValueError, match="clip"):
        WGAN(clip=0)
    with pytest.raises(ValueError, match="shape"):
        gradient_penalty(lambda x: x.sum(1), (torch.zeros(3, 2),), (torch.zeros(2, 2),))


ACTIVATIONS = {
    "ReLU": (nn.ReLU(), 0.0),
    "ReLU in place": (nn.ReLU(inplace=True), 0.0),
    "torch.relu": (torch.relu, 0.0),
    "Tensor.relu": (Tensor.relu, 0.0),
    "LeakyReLU": (nn.LeakyReLU(0.2), 0.2),
    "Tanh": (nn.Tanh(), None),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_penalty_and_its_gradient_are_those_of_a_second_derivative(name):
    activation, slope = ACTIVATIONS[name]
    torch.manual_seed(0)
    w1, w2 = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 5), (5,)))
    real, fake = torch.randn(7, 2), torch.randn(7, 2)
    eps = torch.rand(7)
    penalty = gradient_penalty(lambda x: activation(x.double() @ w1) @ w2, real, fake, eps)
    mixed = torch.lerp(fake, real, eps[:, None]).requires_grad_()
    hidden = mixed.double() @ w1
    if slope is None:
        first = 1 - hidden.tanh().square()
    else:
        first = torch.where(hidden > 0, torch.ones_like(hidden), slope)
    expected = ((first * w2) @ w1.mT).norm(dim=1).sub(1).square().mean()
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-6, atol=0)
    got, want = (torch.autograd.grad(p, (w1, w2)) for p in (penalty, expected))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
