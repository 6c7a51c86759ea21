"""A VAE whose likelihood is known: linear decoder, Gaussian noise."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from flexgen.likelihoods import Gaussian
from flexgen.models import VAE
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal

D, FEATURES = 2, 3
NOISE = 0.7
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class Encoder(nn.Module):
    """Data themselves as features."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.out_features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Linear:
    """x = W z + b + noise: p(x) and p(z|x) are Gaussians that are known."""

    def __init__(
        self, posterior: Callable[..., Any] = DiagonalGaussian, off: float = 0.0, n: int = 40
    ) -> None:
        torch.manual_seed(0)
        # Columns at right angles: the exact posterior has independent dimensions.
        w = torch.linalg.qr(torch.randn(FEATURES, D, dtype=torch.float64))[0]
        w = w * torch.tensor([2.0, 0.5], dtype=torch.float64)
        decoder = nn.Linear(D, FEATURES).double()
        with torch.no_grad():
            decoder.weight.copy_(w)
        bias = decoder.bias.detach()
        q = posterior(Encoder(), D).double()
        precision = torch.eye(D, dtype=torch.float64) + w.T @ w / NOISE**2
        gain = torch.linalg.solve(precision, w.T) / NOISE**2
        with torch.no_grad():
            scale = precision.diagonal().rsqrt()
            q.head.weight.copy_(torch.cat([gain, torch.zeros(D, FEATURES)]))
            q.head.bias.copy_(torch.cat([-gain @ bias + off, scale.log()]))
        self.model = VAE(
            q, Gaussian(decoder, NOISE, learn_scale=False).double(), Normal(D).double(),
            optimizer=ADAM,
        )  # fmt: skip
        cov = w @ w.T + NOISE**2 * torch.eye(FEATURES, dtype=torch.float64)
        self.evidence = MultivariateNormal(bias, cov)
        self.x = self.evidence.sample((n,))
        # KL of the shifted posterior to the exact one, which is what the ELBO loses.
        self.gap = float(0.5 * off**2 * precision.diagonal().sum())
