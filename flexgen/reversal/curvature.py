"""What a descent has learned of the curvature: the quasi-Newton direction of each of its rows."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

# Curvature pairs kept of long codes; more gave nothing on latent sizes of 20.
_MEMORY = 10
# Codes up to this size have a matrix of their own, which is cheaper and learns faster.
_DENSE = 64


class Curvature(ABC):
    """The inverse Hessian of each row's loss, from the steps it took and how its gradient changed.

    Attributes:
        known: whether a row has any, `(n,)`.
    """

    known: Tensor

    @abstractmethod
    def learn(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        """Take steps s and changes of the gradient y, `(n, d)`, of the rows that are true."""

    @abstractmethod
    def direction(self, g: Tensor) -> Tensor:
        """−H g of gradients g, `(n, d)`; of no meaning where nothing is known."""

    @abstractmethod
    def _parts(self) -> tuple[Tensor, ...]:
        """All that there is of each row."""

    def forget(self, rows: Tensor) -> None:
        """Know nothing any more of the rows that are true."""
        for part in self._parts():
            part[rows] = 0

    def take(self, rows: Tensor) -> "Curvature":
        """That of some rows, by their numbers."""
        taken = object.__new__(type(self))
        vars(taken).update(
            {name: v[rows] if isinstance(v, Tensor) else v for name, v in vars(self).items()}
        )
        return taken

    def put(self, rows: Tensor, other: "Curvature", which: Tensor | slice) -> None:
        """Take over rows `which` of another, as rows `rows` of this."""
        for part, theirs in zip(self._parts(), other._parts(), strict=True):
            part[rows] = theirs[which]


def curvature(like: Tensor) -> Curvature:
    """Nothing known yet, for codes such as these, `(n, d)`."""
    return (Dense if like.shape[1] <= _DENSE else Limited)(like)


class Dense(Curvature):
    """H itself, by the update of Broyden, Fletcher, Goldfarb and Shanno.

    H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ with ρ = 1 / sᵀy, from γI with γ = sᵀy / yᵀy of the
    first pair.

    Source: Nocedal & Wright, Numerical Optimization, 2006, eq. 6.17 and 6.20.
    """

    def __init__(self, like: Tensor) -> None:
        n, self.features = like.shape
        self.known = torch.zeros(n, dtype=torch.bool, device=like.device)
        size = _padded(self.features)
        self.h = like.new_zeros(n, size, size)

    def learn(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        size = self.h.shape[1]
        s, y = (F.pad(v.where(rows[:, None], 0), (0, size - self.features)) for v in (s, y))
        sy = (s * y).sum(1)
        rho = (1 / sy).where(rows, 0)
        first = rows & ~self.known
        if first.is_cuda or first.any():
            scale = (sy / y.square().sum(1)).where(first, 0)
            self.h.diagonal(dim1=1, dim2=2).add_(scale[:, None])
            self.known = self.known | rows
        hy = (y[:, None] @ self.h)[:, 0]  # H is symmetric, and columns take six times as long
        weight = rho + rho.square() * (y * hy).sum(1)
        scaled = rho[:, None] * s
        right = weight[:, None] * s - rho[:, None] * hy
        # Not one product over the two, whose rounding depends on the place in the batch.
        self.h.addcmul_(s[:, :, None], right[:, None]).addcmul_(hy[:, :, None], -scaled[:, None])

    def direction(self, g: Tensor) -> Tensor:
        g = F.pad(g, (0, self.h.shape[1] - self.features))
        return -(g[:, None] @ self.h)[:, 0, : self.features]

    def _parts(self) -> tuple[Tensor, ...]:
        return self.known, self.h


class Limited(Curvature):
    """The last pairs of each row, from which H g follows without H."""

    def __init__(self, like: Tensor) -> None:
        n, features = like.shape
        self.known = torch.zeros(n, dtype=torch.bool, device=like.device)
        self.s = like.new_zeros(n, _MEMORY, features)
        self.y = self.s.clone()

    def learn(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        mask = rows[:, None, None]
        self.s = torch.where(mask, torch.cat([self.s[:, 1:], s[:, None]], 1), self.s)
        self.y = torch.where(mask, torch.cat([self.y[:, 1:], y[:, None]], 1), self.y)
        self.known = self.known | rows

    def direction(self, g: Tensor) -> Tensor:
        return direction(self.s, self.y, g)[0]

    def _parts(self) -> tuple[Tensor, ...]:
        return self.known, self.s, self.y


def _padded(features: int) -> int:
    """Products over 7 or 17 columns, say, round a row by its place in the batch; over 16 not."""
    return -(-features // 16) * 16


def direction(s: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The quasi-Newton direction −H g of each row, H from its pairs (s, y) by limited-memory BFGS.

    H = γI + [S γY] [[R⁻ᵀ(D + γYᵀY)R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [Sᵀ; γYᵀ], with R the upper triangle of
    SᵀY, D its diagonal and γ = sᵀy / yᵀy of the last pair: two triangular solves in place of the
    two-loop recursion's 4m products.

    Args:
        s: steps, `(batch, m, d)`, the oldest first; rows of zeros stand for pairs not had yet.
        y: changes of the gradient, `(batch, m, d)`.
        g: gradients, `(batch, d)`.

    Returns:
        Directions `(batch, d)`, and `(batch,)` whether there was a pair to build on.

    Source: Byrd, Nocedal & Schnabel, 1994, eq. 3.1 (theorem 2.2 for BFGS in compact form).
    """
    features = g.shape[1]
    s, y, g = (F.pad(value, (0, _padded(features) - features)) for value in (s, y, g))
    products = s @ y.mT
    diagonal = products.diagonal(dim1=1, dim2=2)
    r = products.triu() + torch.diag_embed((diagonal == 0).to(s.dtype))  # no pair: an identity
    known = diagonal[:, -1] > 0
    gamma = (diagonal[:, -1] / y[:, -1].square().sum(1).clamp_min(1e-30))[:, None, None]
    g = g[:, :, None]
    u = torch.linalg.solve_triangular(r, s @ g, upper=True)
    w = diagonal[:, :, None] * u + gamma * (y @ (y.mT @ u - g))
    v = torch.linalg.solve_triangular(r.mT, w, upper=False)
    return -(gamma * (g - y.mT @ u) + s.mT @ v)[:, :features, 0], known
