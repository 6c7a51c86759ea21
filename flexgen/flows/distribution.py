"""The distribution that a map makes of a base."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from flexgen.distributions import Shape, Vectors, drawn
from flexgen.flows.transform import Transform


class FlowDistribution(Vectors):
    r"""z = f(ε; c) with ε from a base distribution.

    .. math:: \log p(z) = \log p_0(ε) - \log |\det ∂z/∂ε|

    Args:
        base: distribution over vectors, for all contexts or one for each; of one whose draws have
            no gradient, these have none.
        transform: f.
        context: c, `(*batch, context_features)`; None for none.
    """

    def __init__(
        self, base: Distribution, transform: Transform, context: Tensor | None = None
    ) -> None:
        batch = base.batch_shape
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        if base.batch_shape not in (torch.Size(), batch):
            base = base.expand(batch)
        self.base, self.transform, self.context = base, transform, context
        super().__init__(batch, base.event_shape[0])

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        z: Tensor = self.transform(self._noise(sample_shape), self.context)[0]
        return z

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws, `(*sample_shape, *batch, d)`, and their log-density, in one pass."""
        eps = self._noise(sample_shape)
        z, ladj = self.transform(eps, self.context)
        return z, self.base.log_prob(eps) - ladj

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of any points; −inf where the inverse of a finite one overflows.

        Raises:
            NotImplementedError: if the map has no inverse.
        """
        eps, ladj = self.transform.inverse(value, self.context)
        # Past the largest number further steps make NaN, and one such posterior spoils a mixture.
        lost = value.isfinite().all(-1) & ~eps.isfinite().all(-1)
        return (self.base.log_prob(eps) + ladj).masked_fill(lost, -math.inf)

    def _noise(self, sample_shape: Shape) -> Tensor:
        # One base for all contexts: draws for different contexts are independent all the same.
        missing = () if self.base.batch_shape else self._batch_shape
        return drawn(self.base, (*sample_shape, *missing))
