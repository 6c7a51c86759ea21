"""Continuous flows: the solution of an ordinary differential equation, with an exact divergence."""

import math

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.flows.transform import Mapped, Transform

_FREQUENCIES = 4
_START = 1e-3


class Velocity(nn.Module):
    r"""v(z, t) by two hidden layers, and its divergence in closed form.

    .. math:: v = W_3\, a(h_2), \quad h_2 = W_2\, a(h_1) + b_2, \quad h_1 = W_1 z + V τ(t) + b_1,
        \quad \mathrm{tr} \frac{∂v}{∂z} = a'(h_2)^T \big(W_2 ∘ (W_1 W_3)^T\big) a'(h_1)

    with a the SiLU and τ(t) = (t, cos 2πkt, sin 2πkt) for k = 1 … 4. The divergence takes one
    product more, and no derivative of a graph. W₃ starts near 0, and the map near the identity.

    Args:
        features: d.
        hidden_features: width of both layers.
    """

    frequencies: Tensor

    def __init__(self, features: int, hidden_features: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden_features)
        self.time = nn.Linear(1 + 2 * _FREQUENCIES, hidden_features, bias=False)
        self.second = nn.Linear(hidden_features, hidden_features)
        self.last = nn.Linear(hidden_features, features, bias=False)
        nn.init.normal_(self.last.weight, std=_START / math.sqrt(hidden_features))
        frequencies = 2 * math.pi * torch.arange(1, _FREQUENCIES + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """v `(*batch, d)` of codes `(*batch, d)` and times `(*batch, 1)` or `(1,)`."""
        a1 = nn.functional.silu(self.first(z) + self._of(t))
        v: Tensor = self.last(nn.functional.silu(self.second(a1)))
        return v

    def with_divergence(self, z: Tensor, t: Tensor, kernel: Tensor) -> Mapped:
        """v, and its divergence `(*batch,)`, given :meth:`kernel`."""
        h1 = self.first(z) + self._of(t)
        s1 = h1.sigmoid()
        a1 = h1 * s1
        h2 = self.second(a1)
        s2 = h2.sigmoid()
        a2 = h2 * s2
        # a' = σ + a (1 − σ)
        slope1, slope2 = torch.addcmul(s1, a1, 1 - s1), torch.addcmul(s2, a2, 1 - s2)
        return self.last(a2), (slope1 @ kernel.mT * slope2).sum(-1)

    def kernel(self) -> Tensor:
        """W₂ ∘ (W₁ W₃)ᵀ."""
        return self.second.weight * (self.first.weight @ self.last.weight).mT

    def _of(self, t: Tensor) -> Tensor:
        angles = t * self.frequencies
        times: Tensor = self.time(torch.cat([t, angles.cos(), angles.sin()], -1))
        return times


class Continuous(Transform):
    r"""z = z(1) of dz/dt = v(z, t) from z(0) = ε; log |det ∂z/∂ε| = ∫ tr ∂v/∂z dt.

    Both directions take `num_steps` steps of the classical Runge-Kutta method of order four, whose
    error falls with the fourth power of the step: of the image, of the determinant, and of what one
    direction leaves of the other. :meth:`step_error` measures it.

    Args:
        features: d, at least 1.
        hidden_features: width of the field's two hidden layers.
        num_steps: Runge-Kutta steps from base to z, at least 1; each passes the field four times.

    Raises:
        ValueError: for sizes out of range.

    Source: Chen et al., "Neural ordinary differential equations", 2018, theorem 1. Departure: the
    trace is exact, in closed form, as the field has two layers.
    """

    def __init__(self, features: int, *, hidden_features: int = 128, num_steps: int = 8) -> None:
        check_integer("features", features)
        check_integer("hidden_features", hidden_features)
        super().__init__(features)
        self.num_steps = check_integer("num_steps", num_steps)
        self.velocity = Velocity(features, hidden_features)

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return self._solved(eps, 0.0, 1.0, self.num_steps)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        return self._solved(z, 1.0, 0.0, self.num_steps)

    @torch.no_grad()
    def step_error(self, z: Tensor) -> Tensor:
        """|Δ log p| of each of codes `(*batch, d)` between these steps and twice as many, nats.

        p is the density that N(0, I) gets by this map.
        """
        both = [self._solved(z, 1.0, 0.0, k * self.num_steps) for k in (1, 2)]
        once, twice = (ladj - 0.5 * eps.square().sum(-1) for eps, ladj in both)
        return (once - twice).abs()

    def _solved(self, z: Tensor, start: float, end: float, num_steps: int) -> Mapped:
        kernel, step = self.velocity.kernel(), (end - start) / num_steps

        def field(z: Tensor, t: float) -> Mapped:
            return self.velocity.with_divergence(z, z.new_full((1,), t), kernel)

        total = z.new_zeros(z.shape[:-1])
        for k in range(num_steps):
            t = start + k * step
            v1, d1 = field(z, t)
            v2, d2 = field(z + 0.5 * step * v1, t + 0.5 * step)
            v3, d3 = field(z + 0.5 * step * v2, t + 0.5 * step)
            v4, d4 = field(z + step * v3, t + step)
            z = z + step / 6 * (v1 + 2 * (v2 + v3) + v4)
            total = total + step / 6 * (d1 + 2 * (d2 + d3) + d4)
        return z, total
