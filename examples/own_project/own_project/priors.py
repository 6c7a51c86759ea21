"""A prior of one's own: any module that, called, returns a distribution over codes."""

import torch
from torch import nn
from torch.distributions import Distribution, Independent
from torch.distributions import StudentT as Univariate


class StudentT(nn.Module):
    """Independent Student-t coordinates: codes with heavier tails than N(0, I).

    Args:
        latent_dim: size d of a code.
        df: degrees of freedom; the smaller, the heavier the tails.
    """

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__()
        self.register_buffer("df", torch.full((latent_dim,), float(df)))

    def forward(self) -> Distribution:
        return Independent(Univariate(self.df), 1)
