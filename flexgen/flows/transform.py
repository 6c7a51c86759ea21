"""What every invertible map is, and the ways to put maps together."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.contracts import Cost

Mapped = tuple[Tensor, Tensor]
"""An image `(*batch, features)` and log |det J| of the direction taken, `(*batch,)`."""


class Transform(nn.Module):
    """An invertible map between base noise and codes; forward is base to z.

    Both directions take `(*batch, features)` and, where `context_features` is above 0, a context
    `(*batch, context_features)` whose batch broadcasts. They return the image and log |det J| of
    the direction that was taken, `(*batch,)`, in one pass; `forward_cost` is what base to z costs,
    `inverse_cost` what z to base costs.
    """

    forward_cost = Cost.PARALLEL
    inverse_cost = Cost.PARALLEL

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        """Base noise to z, with log |det ∂z/∂ε|."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """z to base noise, with log |det ∂ε/∂z|.

        Raises:
            NotImplementedError: if `inverse_cost` is `Cost.ABSENT`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse, so no density of points from outside; use "
            "`rsample_and_log_prob`, or a coupling or autoregressive map"
        )

    def start(self, z: Tensor) -> None:
        """Start from codes `(n, features)`, where a map's first weights depend on data."""

    def compile(self, *args: Any, **options: Any) -> None:
        """Hand both directions to `torch.compile`, in place."""
        super().compile(*args, **options)
        if self.inverse_cost is not Cost.ABSENT:
            compiled: Callable[..., Mapped] = torch.compile(self.inverse, *args, **options)
            self.inverse = compiled  # type: ignore[method-assign]


class Chain(Transform):
    """Maps in a row, the first next to the base; each is given the same context.

    Args:
        transforms: at least one map, all of the same `features`; those that take a context, of the
            same `context_features`.

    Raises:
        ValueError: for no maps, or sizes that differ.
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        parts = list(transforms)
        if not parts:
            raise ValueError("`transforms` must hold at least one map, got none")
        sizes = {part.features for part in parts}
        contexts = {part.context_features for part in parts} - {0}
        if len(sizes) > 1 or len(contexts) > 1:
            raise ValueError(
                f"`transforms` must agree in `features` and `context_features`, got {sorted(sizes)}"
                f" and {sorted(contexts)}; give each map the same"
            )
        super().__init__(sizes.pop(), contexts.pop() if contexts else 0)
        self.transforms = nn.ModuleList(parts)
        self.forward_cost = max(part.forward_cost for part in parts)
        self.inverse_cost = max(part.inverse_cost for part in parts)

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        first, *others = self.transforms
        for part in reversed(others):
            part.start(z)  # type: ignore[operator]
            z = part.inverse(z)[0]  # type: ignore[operator]
        first.start(z)  # type: ignore[operator]

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        z, total = eps, eps.new_zeros(())
        for part in self.transforms:
            z, ladj = part(z, context)
            total = total + ladj
        return z, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        eps, total = z, z.new_zeros(())
        for part in reversed(self.transforms):
            eps, ladj = part.inverse(eps, context)  # type: ignore[operator]
            total = total + ladj
        return eps, total


class Inverse(Transform):
    """A map with its directions exchanged: the inverse of an IAF is a MAF."""

    def __init__(self, transform: Transform) -> None:
        super().__init__(transform.features, transform.context_features)
        self.transform = transform
        self.forward_cost = transform.inverse_cost
        self.inverse_cost = transform.forward_cost

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return self.transform.inverse(eps, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        found: Mapped = self.transform(z, context)
        return found


class Permutation(Transform):
    """zᵢ = ε_order[i]; log |det J| = 0.

    Args:
        order: each of 0 … d − 1 once.

    Raises:
        ValueError: if it is not.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Iterable[int]) -> None:
        order = [int(i) for i in order]
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"`order` must hold each of 0 … {len(order) - 1} once, got {order}")
        super().__init__(len(order))
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("inverse_order", self.order.argsort(), persistent=False)

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return eps.index_select(-1, self.order), eps.new_zeros(eps.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        return z.index_select(-1, self.inverse_order), z.new_zeros(z.shape[:-1])

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.inverse_order.copy_(self.order.argsort())


class LocationScale(Transform):
    """z = μ + L ε with fixed μ and lower triangular L; log |det J| = Σᵢ log Lᵢᵢ.

    Both are buffers, the identity at first: a fit to codes takes location and scale out of what a
    flow must learn.
    """

    loc: Tensor
    factor: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("factor", torch.eye(features))

    def forward(self, eps: Tensor, context: Tensor | None = None) -> Mapped:
        return eps @ self.factor.mT + self.loc, self._ladj()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        rows = torch.atleast_2d(z - self.loc)
        white = torch.linalg.solve_triangular(self.factor.mT, rows, upper=True, left=False)
        return white.view(z.shape), -self._ladj()

    def _ladj(self) -> Tensor:
        return self.factor.diagonal().log().sum()
