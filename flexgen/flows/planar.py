"""Planar flows: a chain of rank-one bends."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.checks import check_integer
from flexgen.contracts import Cost
from flexgen.flows.transform import Mapped, Transform


class Planar(Transform):
    r"""A chain of planar steps; forward only.

    .. math:: z' = z + \hat u \tanh(w^T z + b), \quad
        \log |\det| = \log (1 + \hat u^T w \, (1 - \tanh^2(w^T z + b)))

    û = u + (m(wᵀu) − wᵀu) w / |w|² with m(a) = log(1 + eᵃ) − 1 keeps ûᵀw above −1, so each step is
    invertible; but the inverse has no closed form, so there is no density of points from outside.
    With a context, u, w and b are linear in it.

    Args:
        features: d, at least 1.
        num_layers: how many steps, at least 1.
        context_features: size of the context.

    Raises:
        ValueError: for sizes out of range.

    Source: Rezende & Mohamed, "Variational inference with normalizing flows", 2015, eq. 10 to 12
    and appendix A.1.
    """

    inverse_cost = Cost.ABSENT

    def __init__(self, features: int, *, num_layers: int = 8, context_features: int = 0) -> None:
        check_integer("features", features)
        check_integer("num_layers", num_layers)
        super().__init__(features, context_features)
        size, scale = 2 * features + 1, 0.1 / math.sqrt(features)
        self.free = nn.Parameter(scale * torch.randn(num_layers, size))
        self.net = None
        if context_features:
            self.net = nn.Linear(context_features, num_layers * size, bias=False)
            nn.init.normal_(self.net.weight, std=0.1 * scale)

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        steps = self.free
        if self.net is not None:
            if context is None:
                raise ValueError(
                    f"`context` must be (*batch, {self.context_features}), got None; "
                    "hand over the encoder's output"
                )
            steps = steps + self.net(context).unflatten(-1, self.free.shape)
        z, ladj = eps, eps.new_zeros(())
        for step in steps.unbind(-2):
            u, w, b = step.split([self.features, self.features, 1], -1)
            wu = (w * u).sum(-1, keepdim=True)
            # ûᵀw = m(wᵀu), so the determinant needs û itself no more.
            constrained = functional.softplus(wu) - 1
            u = u + (constrained - wu) * w / w.square().sum(-1, keepdim=True)
            bend = ((w * z).sum(-1, keepdim=True) + b).tanh()
            z = z + u * bend
            ladj = ladj + (constrained * (1 - bend.square())).log1p().squeeze(-1)
        return z, ladj
