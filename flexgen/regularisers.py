"""What keeps an autoencoder's codes in order; what a regulariser is, the contracts say."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from flexgen.checks import check_positive
from flexgen.contracts import Likelihood, Objective, Regulariser, in_context
from flexgen.objectives import critic_loss

_LAYERS = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Weighted(Regulariser):
    """A term of weight λ, above 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = check_positive("weight", weight, "set `model.regulariser=null` for none")


class MMD(_Weighted):
    r"""λ MMD²(q(z), p(z)): the maximum mean discrepancy of codes to draws from the prior.

    .. math:: \mathrm{MMD}^2 = E\,k(z, z') − 2\, E\,k(z, \tilde z) + E\,k(\tilde z, \tilde z'),
        \quad k(a, b) = \sum_s \frac{s C}{s C + \lVert a − b \rVert^2}

    an unbiased estimate of each batch, with C the mean squared distance of two draws of the prior,
    2 d σ² of N(0, σ²I), and s of 0.1 to 10.

    Args:
        weight: λ.

    Source: Tolstikhin et al., 2018, Algorithm 2 and appendix C.2. Departure: C is that of the
    batch's draws, so that it fits any prior.
    """

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__(weight)

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        n = len(z)
        pairs = n * (n - 1)
        within = [_squared_distances(codes, codes) for codes in (z, drawn)]
        scale = within[1].sum() / pairs
        found = z.new_zeros(())
        for s in _SCALES:
            c = s * scale
            # A code's kernel with itself is 1.
            same = sum(((c / (c + d)).sum() - n) / pairs for d in within)
            found = found + same - 2 * (c / (c + _squared_distances(z, drawn))).mean()
        return self.weight * found


class AdversarialCodes(_Weighted):
    r"""λ times an adversarial game's loss by a critic that tells codes from draws of the prior.

    The critic learns from the same batch and by the same optimizer as the encoder answers it.

    Args:
        critic: codes `(n, d)` to raw outputs `(n,)`.
        objective: the game; of a critic that is clipped there is none.
        weight: λ.

    Raises:
        ValueError: for an objective that clips its critic.

    Source: Tolstikhin et al., 2018, Algorithm 1; Makhzani et al., "Adversarial autoencoders", 2016.
    Departure: both players step at once, by step sizes that are equal.
    """

    def __init__(self, critic: nn.Module, objective: Objective, weight: float = 10.0) -> None:
        super().__init__(weight)
        if objective.clip is not None:
            raise ValueError(
                "a critic of codes is not clipped; use `objective@model.regulariser.objective=gan` "
                "or wgan_gp"
            )
        self.critic, self.objective = critic, objective

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        of_critic = critic_loss(self.objective, self.critic, (drawn,), (z.detach(),))
        fixed: Mapping[str, Tensor] = {k: p.detach() for k, p in self.critic.named_parameters()}
        logits: Any = functional_call(self.critic, dict(fixed), (z,))
        answer = self.weight * self.objective.generator(logits)
        # Its value is the encoder's term alone; the critic's gradient comes with it.
        return answer + of_critic - of_critic.detach()


class WeightNorm(_Weighted):
    """λ Σ w² over the weights of the decoder, without its biases (RAE-L2).

    Args:
        weight: λ.

    Source: Ghosh et al., 2020, section 3.1.
    """

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__(weight)

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        weights = [p for p in likelihood.parameters() if p.ndim > 1]
        return self.weight * torch.stack([w.square().sum() for w in weights]).sum()


class DecoderGradient(_Weighted):
    r"""λ E‖∂D(z)/∂z‖²_F at the codes of the data, with D(z) the likelihood's mean (RAE-GP).

    The norm is estimated without bias by one random direction v ~ N(0, I) of each datum,
    E‖vᵀ ∂D/∂z‖².

    Args:
        weight: λ.

    Source: Ghosh et al., 2020, eq. 7.
    """

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__(weight)

    def prepare(self, likelihood: Likelihood) -> None:
        if not likelihood.has_mean:
            raise ValueError(
                f"a gradient of the decoder needs the mean of p(x|z), which a "
                f"{type(likelihood).__name__} likelihood does not have; use likelihood=gaussian"
            )

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        if not z.requires_grad:  # a loss that is only looked at
            z = z.requires_grad_()
        with torch.enable_grad():
            mean = in_context(likelihood, z, context).mean
            (slope,) = torch.autograd.grad(
                (mean * torch.randn_like(mean)).sum(), z, create_graph=True
            )
        return self.weight * slope.square().sum(1).mean()


class SpectralNorm(Regulariser):
    """No term: each layer of the decoder is divided by its largest singular value (RAE-SN).

    Source: Ghosh et al., 2020, section 3.1; Miyato et al., 2018.
    """

    def prepare(self, likelihood: Likelihood) -> None:
        for layer in list(likelihood.modules()):
            if isinstance(layer, _LAYERS):
                parametrizations.spectral_norm(layer)

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        return z.new_zeros(())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs, `(n, m)`; by a product, whose gradient at 0 is 0."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return (norms - 2 * a @ b.T).clamp(min=0)
