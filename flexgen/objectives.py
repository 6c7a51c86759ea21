"""What is minimised: the adversarial objectives, and the bounds of likelihood models.

An adversarial objective is a small object without parameters. Critics return raw outputs
("logits"), shape `(batch,)`; the objective says what they mean:

* ``critic(real_logits, fake_logits)`` is the scalar that the critic minimises,
* ``generator(fake_logits)`` is the scalar that the generator minimises,
* ``score(logits)`` rises with how real the critic finds an image,
* ``clip`` bounds each critic weight after each critic step (``None``: no clipping),
* ``penalty_weight`` weighs :func:`gradient_penalty` in the critic's loss (0: none).
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = [
    "GAN",
    "LSGAN",
    "WGAN",
    "WGANGP",
    "Hinge",
    "Objective",
    "gradient_penalty",
    "importance_weighted_bound",
    "kl_floor",
]


class Objective(Protocol):
    """What an adversarial training step asks of its objective."""

    clip: float | None
    penalty_weight: float

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor: ...

    def generator(self, fake_logits: Tensor) -> Tensor: ...

    def score(self, logits: Tensor) -> Tensor: ...


class _Adversarial:
    """Neither clipping nor penalty unless an objective says otherwise; the logit is the score."""

    clip: float | None = None
    penalty_weight: float = 0.0

    def __init__(self, *, penalty_weight: float = 0.0) -> None:
        if not penalty_weight >= 0:
            raise ValueError(
                f"`penalty_weight` must be at least 0, got {penalty_weight}; "
                "0 turns the gradient penalty off"
            )
        self.penalty_weight = float(penalty_weight)

    def score(self, logits: Tensor) -> Tensor:
        return logits


class GAN(_Adversarial):
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
        if self.non_saturating:
            return softplus(-fake_logits).mean()
        return -softplus(fake_logits).mean()

    def score(self, logits: Tensor) -> Tensor:
        """D(x) in (0, 1), the score of Goerttler & Kloft, eq. 2."""
        return logits.sigmoid()


class LSGAN(_Adversarial):
    """Least squares: critic ½E(D(x) − 1)² + ½E D(G(z))², generator ½E(D(G(z)) − 1)².

    Source: Mao et al., "Least squares generative adversarial networks", 2017, eq. 9 (a=0, b=c=1).
    """

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())

    def generator(self, fake_logits: Tensor) -> Tensor:
        return 0.5 * (fake_logits - 1).square().mean()


class Hinge(_Adversarial):
    """Critic E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))), generator −E D(G(z)).

    Source: Lim & Ye, "Geometric GAN", 2017; Miyato et al., 2018, eq. 16 and 17.
    """

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class WGAN(_Adversarial):
    """Wasserstein: critic E D(G(z)) − E D(x), generator −E D(G(z)), weights clipped to ±`clip`.

    Source: Arjovsky et al., "Wasserstein GAN", 2017, Algorithm 1 (clip 0.01 with RMSprop).
    """

    def __init__(self, *, clip: float | None = 0.01) -> None:
        super().__init__()
        if clip is not None and not clip > 0:
            raise ValueError(f"`clip` must be above 0, got {clip}; `null` turns clipping off")
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
        _Adversarial.__init__(self, penalty_weight=penalty_weight)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None
) -> Tensor:
    r"""E(‖∇_x̃ D(x̃)‖₂ − 1)² with x̃ = ε x + (1 − ε) G(z), ε ~ U[0, 1] for each pair.

    It needs the gradient of a gradient, so it runs in float32 outside autocast and on an
    uncompiled critic: `torch.compile` does not support double backward.

    Args:
        critic: images `(batch, *shape)` to logits `(batch,)`.
        real: images `(batch, *shape)`; no gradient flows to it.
        fake: generated images, like `real`; no gradient flows to it.
        eps: mixing weights `(batch,)`; drawn from the global generator if not given.

    Returns:
        The scalar penalty, not yet multiplied by λ.

    Raises:
        ValueError: if the shapes of `real` and `fake` differ.

    Source: Gulrajani et al., 2017, Algorithm 1, lines 4 to 7.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"`fake` must have the shape of `real` {tuple(real.shape)}, got {tuple(fake.shape)}; "
            "generate as many images as the batch holds"
        )
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        real, fake = real.detach(), fake.detach()
        real, fake = real.float(), fake.float()
        if eps is None:
            eps = torch.rand(len(real), device=real.device)
        mixed = torch.lerp(fake, real, eps.view(-1, *[1] * (real.ndim - 1))).requires_grad_()
        logits = critic(mixed)
        (gradient,) = torch.autograd.grad(logits.sum(), mixed, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    r"""log (1/K) Σₖ wₖ of each datum, nats; on average a lower bound on log p(x).

    With log w = log p(x|z) + log p(z) − log q(z|x), z ~ q(z|x). K = 1 is the ELBO's integrand; the
    bound rises with K and tends to log p(x).

    Args:
        log_weights: `(K, *batch)`.

    Returns:
        `(*batch)`.

    Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016, eq. 8.
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def kl_floor(kl: Tensor, free: float) -> Tensor:
    r"""$\sum_j \max(λ, KL_j)$, so that the first λ nats of each group cost nothing to use.

    Args:
        kl: KL of each group of latent dimensions, a mean over the batch, `(groups,)`, nats.
        free: λ, nats a group.

    Returns:
        A scalar.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    eq. 15.
    """
    return kl.clamp(min=free).sum() if free else kl.sum()
