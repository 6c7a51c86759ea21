"""What is minimised: the adversarial objectives, and the bounds of likelihood models.

What an objective is, :class:`flexgen.contracts.Objective` says; the games are played on tuples,
data alone or data with what goes with them, see :func:`critic_loss`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import relu, softplus
from torch.overrides import TorchFunctionMode

from flexgen.checks import check_not_negative, check_positive
from flexgen.contracts import Critic, Objective

__all__ = [
    "GAN", "LSGAN", "WGAN", "WGANGP", "Hinge", "Objective", "Played", "clip_weights", "critic_loss",
    "gradient_penalty", "importance_weighted_bound", "kl_floor",
]  # fmt: skip

Played = tuple[Tensor, ...]
"""What a critic is shown of a batch: data `(n, *shape)`, and what goes with them, row by row."""


class _Penalised(Objective):
    """A game with a gradient penalty of weight λ, at least 0; 0: none."""

    def __init__(self, *, penalty_weight: float = 0.0) -> None:
        remedy = "0 turns the gradient penalty off"
        self.penalty_weight = check_not_negative("penalty_weight", penalty_weight, remedy)


class GAN(_Penalised):
    r"""The original game, with D = sigmoid(logits).

    Critic: −E log D(x) − E log(1 − D(G(z))). Generator: −E log D(G(z)) if `non_saturating`, else
    the minimax form E log(1 − D(G(z))), whose gradient vanishes where the critic is sure.

    Source: Goodfellow et al., 2014, eq. 1 and section 3.
    """

    def __init__(self, *, non_saturating: bool = True, penalty_weight: float = 0.0) -> None:
        super().__init__(penalty_weight=penalty_weight)
        self.non_saturating = non_saturating

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return (softplus(-fake_logits) if self.non_saturating else -softplus(fake_logits)).mean()

    def score(self, logits: Tensor) -> Tensor:
        """D(x) in (0, 1), the score of Goerttler & Kloft, eq. 2."""
        return logits.sigmoid()


class LSGAN(_Penalised):
    """Least squares: critic ½E(D(x) − 1)² + ½E D(G(z))², generator ½E(D(G(z)) − 1)².

    Source: Mao et al., "Least squares generative adversarial networks", 2017, eq. 9 (a=0, b=c=1).
    """

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())

    def generator(self, fake_logits: Tensor) -> Tensor:
        return 0.5 * (fake_logits - 1).square().mean()

    def encoder(self, real_logits: Tensor) -> Tensor:
        # Real is 1 and fake 0 here, so they change places by 1 − D.
        return 0.5 * real_logits.square().mean()


class Hinge(_Penalised):
    """Critic E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))), generator −E D(G(z)).

    Source: Lim & Ye, "Geometric GAN", 2017; Miyato et al., 2018, eq. 16 and 17.
    """

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class WGAN(_Penalised):
    """Wasserstein: critic E D(G(z)) − E D(x), generator −E D(G(z)), weights clipped to ±`clip`.

    Source: Arjovsky et al., "Wasserstein GAN", 2017, Algorithm 1 (clip 0.01 with RMSprop).
    """

    def __init__(self, *, clip: float | None = 0.01) -> None:
        super().__init__()
        if clip is not None:
            check_positive("clip", clip, "`null` turns clipping off")
        self.clip = clip

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class WGANGP(WGAN):
    """Wasserstein with a gradient penalty: λ E(‖∇D(x̃)‖ − 1)² on lines between real and fake.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs", 2017, eq. 3 (λ = 10).
    """

    def __init__(self, *, penalty_weight: float = 10.0) -> None:
        super().__init__(clip=None)
        _Penalised.__init__(self, penalty_weight=penalty_weight)


def critic_loss(
    objective: Objective, critic: Critic, real: Played, fake: Played,
    record: Callable[[str, Tensor], None] = lambda name, value: None,
) -> Tensor:  # fmt: skip
    """What a critic's step minimises: the objective's loss and λ times its gradient penalty.

    Args:
        objective: the game.
        critic: a tuple that was played to raw outputs `(n,)`.
        real: data, and what goes with them.
        fake: the same of the generator, without gradient.
        record: told `loss/critic` and, where there is a penalty, `loss/penalty`.
    """
    loss = objective.critic(critic(*real), critic(*fake))
    record("loss/critic", loss)
    if objective.penalty_weight:
        penalty = gradient_penalty(critic, real, fake)
        record("loss/penalty", penalty)
        loss = loss + objective.penalty_weight * penalty
    return loss


@torch.no_grad()
def clip_weights(objective: Objective, weights: Sequence[Tensor]) -> None:
    """Clip a critic's weights after its step, if the objective does."""
    if objective.clip is not None:
        torch._foreach_clamp_min_(list(weights), -objective.clip)
        torch._foreach_clamp_max_(list(weights), objective.clip)


def gradient_penalty(
    critic: Critic, real: Played | Tensor, fake: Played | Tensor, eps: Tensor | None = None
) -> Tensor:
    r"""E(‖∇_x̃ D(x̃)‖₂ − 1)² with x̃ = ε x + (1 − ε) G(z), ε ~ U[0, 1] for each pair.

    Of a tuple all that is real-valued is mixed by the same ε, and the norm is that of the gradient
    in all of it; labels are those of the real.

    It needs the gradient of a gradient, so it runs in float32 outside autocast and on an
    uncompiled critic: `torch.compile` does not support double backward.

    Args:
        critic: a tuple that was played to logits `(batch,)`.
        real: images `(batch, *shape)`, alone or with what goes with them; no gradient flows to it.
        fake: of the same shapes, generated; no gradient flows to it.
        eps: mixing weights `(batch,)`; drawn from the global generator if not given.

    Raises:
        ValueError: if the shapes of `real` and `fake` differ.

    Source: Gulrajani et al., 2017, Algorithm 1, lines 4 to 7.
    """
    real, fake = (played if isinstance(played, tuple) else (played,) for played in (real, fake))
    shapes, made = ([tuple(part.shape) for part in played] for played in (real, fake))
    if shapes != made:
        raise ValueError(
            f"`fake` must have the shape of `real` {shapes}, got {made}; "
            "generate as many images as the batch holds"
        )
    device, n = real[0].device, len(real[0])
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        if eps is None:
            eps = torch.rand(n, device=device)
        played = tuple(
            _mixed(x.detach().float(), y.detach().float(), eps) if x.is_floating_point() else x
            for x, y in zip(real, fake, strict=True)
        )
        with _ConstantSlopes():
            logits = critic(*played)
        mixed = [part for part in played if part.requires_grad]
        gradients = torch.autograd.grad(logits.sum(), mixed, create_graph=True)
        flat = [gradient.flatten(1) for gradient in gradients]
        gradient = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
        return (gradient.norm(dim=1) - 1).square().mean()


class _ConstantSlopes(TorchFunctionMode):
    """ReLU and leaky ReLU as the product x · s of their argument and its slope s, a constant.

    It is the same value and gradient. Torch's own second derivative of a slope is a tensor of
    zeros, which the backward pass would carry through the whole critic: a seventh of a step.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SLOPES and not kwargs.get("inplace"):
            x, slope = args[0], kwargs.get("negative_slope", _SLOPES[func])
            slopes = torch.ops.aten.leaky_relu_backward(x.new_ones(1), x.detach(), slope, False)
            return x * slopes
        return func(*args, **kwargs)


_SLOPES = {functional.leaky_relu: 0.01, relu: 0.0, torch.relu: 0.0, Tensor.relu: 0.0}


def _mixed(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return torch.lerp(fake, real, eps.view(-1, *[1] * (real.ndim - 1))).requires_grad_()


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    r"""log (1/K) Σₖ wₖ of each datum, nats; on average a lower bound on log p(x).

    With log w = log p(x|z) + log p(z) − log q(z|x), z ~ q(z|x). K = 1 is the ELBO's integrand; the
    bound rises with K and tends to log p(x).

    Takes `(K, *batch)`, returns `(*batch)`.

    Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016, eq. 8.
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def kl_floor(kl: Tensor, free: Tensor | float) -> Tensor:
    r"""$\sum_j \max(λ, KL_j)$, so that the first λ nats of each group cost nothing to use.

    Args:
        kl: KL of each group of latent dimensions, a mean over the batch, `(groups,)`, nats.
        free: λ, nats a group: one for all, or of each, `(groups,)`.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    eq. 15.
    """
    floored = isinstance(free, Tensor) or free > 0
    return kl.clamp(min=free).sum() if floored else kl.sum()
