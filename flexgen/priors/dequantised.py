"""Densities of vectors as densities of data that take the values of a grid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from flexgen.checks import check_integer
from flexgen.contracts import Density, Prior
from flexgen.outputs import check_levels, level_grid
from flexgen.priors.staged import as_prior


class Dequantised(Density):
    r"""p(v) of vectors, a flow's say, as a density of data of K levels.

    Data x have a number k in 0 … K − 1 in each of d coordinates. Noise makes them continuous, and
    a logit unbounded,

    .. math:: v = \operatorname{logit}(α + (1 − 2α)\, (k + u) / K), \quad u ∼ U[0, 1)^d,

    so that p(v) has a density q(k + u), by the change of variables, and data the probability
    $P(k) = E_u\, q(k + u)$. `log_prob` is that of `num_draws` M draws of u,

    .. math:: \log \frac1M \sum_m q(k + u_m),

    random, and on average a bound on log P(x) from below, the tighter the more draws: with one
    Theis et al.'s. Train mode takes one. A draw is v's number k.

    Args:
        shape: of a datum.
        prior: p(v), with a density, of as many numbers as a datum has.
        range: (low, high), the data's range.
        levels: K.
        alpha: how far the logit stays from its ends, in (0, ½).
        num_draws: M.

    Raises:
        ValueError: for a prior of another size or without a normalised density, a range that does
            not rise, or a value out of range.

    Source: Dinh et al., "Density estimation using Real NVP", 2017, section 4.1 (α = 0.05);
    Theis et al., "A note on the evaluation of generative models", 2016, eq. 5 (the bound).
    """

    has_mass = True

    def __init__(
        self, shape: Sequence[int], prior: nn.Module, *, range: Sequence[float] = (-1.0, 1.0),
        levels: int = 256, alpha: float = 0.05, num_draws: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.grid = tuple(shape), level_grid(range, levels)
        self.data_range = self.grid[:2]
        self.prior: Prior = as_prior(prior)
        d = math.prod(self.shape)
        if self.prior.latent_dim != d:
            raise ValueError(
                f"data of shape {self.shape} are vectors of {d}, and the prior's are of "
                f"{self.prior.latent_dim}; set latent_dim={d}"
            )
        if not self.prior.has_log_prob or not self.prior.normalised:
            raise ValueError(
                f"a {type(self.prior).__name__} prior has no normalised density; use "
                "prior@network.pixels.prior=realnvp or maf"
            )
        if not 0 < alpha < 0.5:
            raise ValueError(f"`alpha` must lie between 0 and 0.5, got {alpha}; 0.05 is usual")
        self.alpha, self.num_draws = alpha, check_integer("num_draws", num_draws)

    def forward(self, context: Tensor | None = None) -> "DequantisedData":
        return DequantisedData(self, context)

    def check_data(self, x: Tensor) -> None:
        check_levels(x, self.grid, "a dequantised density", "network.pixels")


class DequantisedData(Distribution):
    """The distribution of data that a :class:`Dequantised` density is.

    Args:
        density: whose it is.
        context: what the prior is given, one for each datum of a batch; None: no batch shape.

    Raises:
        ValueError: for a context that the prior does not take.
    """

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, density: Dequantised, context: Tensor | None = None) -> None:
        self.density = density
        self.vectors = density.prior(context)
        batch = torch.Size() if context is None else context.shape[:1]
        if self.vectors.batch_shape != batch:
            raise ValueError(
                f"a {type(density.prior).__name__} prior takes no labels; set conditional=false, "
                "or prior@network.pixels.prior=per_class"
            )
        super().__init__(batch, torch.Size(density.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """The bound on log p(x), nats, `(*sample, *batch)`, by as many draws of the noise."""
        own, (low, high, levels) = self.density, self.density.grid
        index = ((value - low) * ((levels - 1) / (high - low))).round().flatten(-len(own.shape))
        log_prob = [self._of_noise(index) for _ in range(1 if own.training else own.num_draws)]
        return torch.stack(log_prob).logsumexp(0) - math.log(len(log_prob))

    def _of_noise(self, index: Tensor) -> Tensor:
        own, levels = self.density, self.density.grid[2]
        inside = own.alpha + (1 - 2 * own.alpha) * (index + torch.rand_like(index)) / levels
        v = inside.logit()
        # dv/dk = (1 − 2α) / K / (σ(v) σ(−v)), of each coordinate.
        slope = math.log((1 - 2 * own.alpha) / levels) - logsigmoid(v) - logsigmoid(-v)
        log_prob: Tensor = self.vectors.log_prob(v)
        return log_prob + slope.sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Data `(*sample_shape, *batch, *shape)`, each value one of the grid's."""
        own, (low, high, levels) = self.density, self.density.grid
        inside = (self.vectors.sample(torch.Size(sample_shape)).sigmoid() - own.alpha) / (
            1 - 2 * own.alpha
        )
        index = (inside * levels).floor().clamp(0, levels - 1)
        x = index * ((high - low) / (levels - 1)) + low
        return x.unflatten(-1, own.shape)
