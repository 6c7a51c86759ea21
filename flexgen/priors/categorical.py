"""Codes whose coordinates are names, each drawn for itself."""

import torch
from torch import Tensor

from flexgen.checks import check_integer, check_positive
from flexgen.contracts import Draws, Prior, Report
from flexgen.distributions import Shape, Vectors
from flexgen.priors.gaussian import check_codes


class Names(Vectors):
    """Whole numbers 0 … K − 1, each coordinate by probabilities of its own.

    Args:
        log_probs: of each value, `(d, K)`.
    """

    has_rsample = False

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs
        super().__init__((), len(log_probs))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        n = shape.numel() // self.event_shape[0]
        drawn = torch.multinomial(self.log_probs.exp(), n, replacement=True)
        return drawn.mT.reshape(shape).to(self.log_probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        index = value.long()[..., None]
        table = self.log_probs.expand(*value.shape, -1)
        return table.gather(-1, index).squeeze(-1).sum(-1)


class Categorical(Prior):
    r"""$p(z) = \prod_i π_{i z_i}$ of codes of d names out of K; uniform until it is fitted.

    What a VQ-VAE trains with: −log p(z) = d log K, whatever the code is. A fit sets
    $π_{ik} = (n_{ik} + α) / (n + α K)$ by the counts of each value at each coordinate: what
    position alone says of a code, which a prior that sees the other coordinates has to beat. Each
    datum counts once, however many codes there are of it. It reports `nll_train`, −log p(z) of the
    codes, nats per code.

    Args:
        latent_dim: d, at least 1.
        num_values: K, at least 2.
        smoothing: α, above 0, so that no value is impossible.

    Raises:
        ValueError: for a size out of range; in a fit, for codes that are no names.

    Source: van den Oord et al., "Neural discrete representation learning", 2017, section 3.1 (the
    uniform prior); Laplace's rule for α = 1.

    Example:
        >>> prior = Categorical(2, 4)
        >>> prior().log_prob(torch.tensor([0.0, 3.0])).exp()
        tensor(0.0625)
    """

    learns = True
    num_values: int
    log_probs: Tensor

    def __init__(self, latent_dim: int, num_values: int, smoothing: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 1, "set `latent_dim=16`")
        self.num_values = check_integer("num_values", num_values, 2)
        self.smoothing = check_positive("smoothing", smoothing, "set `prior.smoothing=1`")
        uniform = torch.full((latent_dim, num_values), 1 / num_values)
        self.register_buffer("log_probs", uniform.log())

    def forward(self, context: Tensor | None = None) -> Names:
        return Names(self.log_probs)

    @torch.no_grad()
    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        check_codes(codes, self.latent_dim, at_least=1)
        index = codes.long()
        if (index != codes).any() or index.min() < 0 or index.max() >= self.num_values:
            raise ValueError(
                f"`codes` must be whole numbers from 0 to {self.num_values - 1}, got values from "
                f"{float(codes.min()):g} to {float(codes.max()):g}; set `prior.num_values`"
            )
        weight = torch.ones(len(codes), dtype=torch.float64, device=codes.device)
        if draws is not None:
            _, which, count = draws.datum.unique(return_inverse=True, return_counts=True)
            weight /= count[which]
        found = torch.zeros(self.log_probs.shape, dtype=torch.float64, device=codes.device)
        found.scatter_add_(1, index.mT, weight.expand(self.latent_dim, -1))
        found += self.smoothing
        self.log_probs.copy_((found / found.sum(1, keepdim=True)).log())
        return {"nll_train": -float(self().log_prob(codes).mean())}
