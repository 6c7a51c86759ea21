"""Normals whose mean, and maybe scale, a network makes of what is given."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexgen.checks import check_positive
from flexgen.distributions import DiagonalNormal, normal_of
from flexgen.networks.mlp import MLPGenerator


class GivenNormal(MLPGenerator):
    """p(y|h) = N(m(h), s(h)²), or with one s for all h.

    Args:
        in_features: of h.
        dim: of y.
        hidden_features: of the network of m and log s, in each hidden layer.
        log_scale: where log s starts.
        constant_scale: whether s is a parameter, the same for all h.
        output_scale: by which the last layer's weights start smaller than torch draws them.
    """

    def __init__(
        self, in_features: int, dim: int, hidden_features: Sequence[int], *,
        log_scale: float = 0.0, constant_scale: bool = False, output_scale: float = 1.0,
    ) -> None:  # fmt: skip
        shape = (dim,) if constant_scale else (2 * dim,)
        super().__init__(in_features, shape, None, hidden_features)
        self.output.weight.data *= check_positive("output_scale", output_scale)
        nn.init.zeros_(self.output.bias)
        self.output.bias.data[dim:] = log_scale
        constant = torch.full((dim,), float(log_scale))
        self.log_scale = nn.Parameter(constant) if constant_scale else None

    def outputs(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s of h `(*batch, in_features)`, `(*batch, dim)` each."""
        out = super().forward(h.reshape(-1, h.shape[-1])).view(*h.shape[:-1], -1)
        if self.log_scale is not None:
            return out, self.log_scale.expand_as(out)
        loc, log_scale = out.chunk(2, dim=-1)
        return loc, log_scale

    def forward(self, h: Tensor, context: None = None) -> DiagonalNormal:  # type: ignore[override]
        """The normals of h `(*batch, in_features)`, `(*batch, dim)`."""
        return normal_of(*self.outputs(h))
