"""What reversal minimises: the reconstruction loss of each sample, and the moment regulariser."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def half_squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """½‖x̂ − x‖² of each sample, `(batch,)`.

    Source: Kilcher et al., 2017, eq. 4.
    """
    return (x_hat - x).square().flatten(1).sum(1) / 2


def cross_entropy(x_hat: Tensor, x: Tensor) -> Tensor:
    """−Σ [x log x̂ + (1 − x) log(1 − x̂)] of each sample, `(batch,)`, in nats; both in [0, 1].

    Source: Creswell & Bharath, 2016, Algorithm 1, line 4 (eq. 1 and 5 there lack the second term).
    """
    # A saturated sigmoid gives exactly 0 or 1: the floor keeps log and its gradient finite, and it
    # is the smallest normal number so that a nearly saturated pixel still has its true gradient.
    floor = torch.finfo(x_hat.dtype).tiny
    log_p, log_q = x_hat.clamp_min(floor).log(), (1 - x_hat).clamp_min(floor).log()
    return -(x * log_p + (1 - x) * log_q).flatten(1).sum(1)


LOSSES: dict[str, Loss] = {"mse": half_squared_error, "bce": cross_entropy}


def moment_penalty(z: Tensor, loc: float, scale: float) -> Tensor:
    """(μ − μ̂)² + (σ − σ̂)², with μ̂ and σ̂ the mean and standard deviation of all elements of z.

    z are the codes of one batch, μ (`loc`) and σ (`scale`) the prior's.

    Source: Creswell & Bharath, 2016, eq. 5.
    """
    std, mean = torch.std_mean(z, correction=0)
    return (mean - loc).square() + (std - scale).square()


class ToUnit(nn.Module):
    """Data in [low, high] moved to [0, 1], where a cross-entropy wants them."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / (self.high - self.low)


class FromUnit(ToUnit):
    """Data in [0, 1] moved back to [low, high]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.high - self.low) + self.low
