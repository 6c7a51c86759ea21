"""Flow matching: a continuous flow that learns by regression, without solving its equation."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import check_one_of
from flexgen.flows import Continuous, LocationScale
from flexgen.priors.flow import FlowPrior


class FlowMatching(FlowPrior):
    r"""z = μ + L f(ε) with f the solution of dz/dt = v(z, t), fitted by flow matching.

    .. math:: \min_v E \left| v(z_t, t) - \dot z_t \right|^2, \quad
        z_t = \cos(\tfrac π2 t)\, ε + \sin(\tfrac π2 t)\, z, \quad t \sim U(0, 1)

    over whitened codes z and ε from N(0, I). The field that has least loss carries N(0, I) to the
    codes. Where codes are normal it is 0, as z_t is N(0, I) at each t, so the fit starts as the
    Gaussian of the codes and learns what that misses. Draws and densities are those of
    :class:`~flexgen.flows.Continuous`: exact but for its steps, whose number they cost. Trained
    with a model, by likelihood, it is a neural ODE.

    Args:
        latent_dim: d.
        hidden_features: width of the field's two hidden layers.
        num_steps: Runge-Kutta steps of a draw or a density, each four passes of the field.
        coupling: of ε and z in a batch. "independent"; or "optimal", the assignment with the least
            sum of squared distances, on straight paths, z_t = (1 − t) ε + t z, which cross less.
        fit: options of :class:`FlowPrior`.

    Raises:
        ValueError: for sizes out of range or another coupling.

    Source: Lipman et al., "Flow matching for generative modeling", 2023, eq. 9; Albergo &
    Vanden-Eijnden, "Building normalizing flows with stochastic interpolants", 2023, eq. 5 (the
    trigonometric path); Tong et al., "Improving and generalizing flow-based generative models with
    minibatch optimal transport", 2024, section 3.2.
    """

    def __init__(
        self, latent_dim: int, *, hidden_features: int = 128, num_steps: int = 8,
        coupling: Literal["independent", "optimal"] = "independent", steps: int = 4000,
        batch_size: int = 500, lr: float = 1e-2, weight_decay: float = 0.0, **fit: Any,
    ) -> None:  # fmt: skip
        check_one_of("coupling", coupling, ("independent", "optimal"))
        flow = Continuous(latent_dim, hidden_features=hidden_features, num_steps=num_steps)
        super().__init__(
            flow, steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay, **fit
        )
        self.coupling = coupling

    def _surrogate(self, z: Tensor) -> Tensor:
        flow, frame = self.transform.transforms
        assert isinstance(flow, Continuous)
        assert isinstance(frame, LocationScale)
        white = frame.inverse(z)[0]
        eps, t = torch.randn_like(white), torch.rand_like(white[:, :1])
        if self.coupling == "optimal":
            eps = eps[_assigned(white, eps)]
            between, towards = torch.lerp(eps, white, t), white - eps
        else:
            angle = 0.5 * math.pi * t
            cos, sin = angle.cos(), angle.sin()
            between = torch.addcmul(cos * eps, sin, white)
            towards = 0.5 * math.pi * torch.addcmul(cos * white, sin, eps, value=-1)
        return (flow.velocity(between, t) - towards).square().sum(1).mean()


def _assigned(z: Tensor, eps: Tensor) -> Tensor:
    """Which ε each code is assigned, `(n,)`."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(z, eps).square().cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1]).to(z.device)
