"""What the solvers share: passes of a generator, blocks of rows, and what is told on the way."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Called with codes and, where the generator takes one, the context of each.
Generate = Callable[..., Tensor]

# Called with the share of the work done, the codes and their losses.
Tell = Callable[[float, Tensor, Tensor], None]

_ENGINE = torch.autograd.Variable._execution_engine

# Below some eight rows CPU kernels sum in another order; see "Exactness" in `reverse`.
_ROWS = 16


class NoFastPass(ValueError):
    """Why a generator has no faster copy."""


class OfSamples:
    """What a dataclass says of each of n samples."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, the samples first."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if isinstance(v, Tensor) and k != "history"}


def residual(generate: Generate, z: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
    """x − G(z), and the gradient of −½‖x − G(z)‖² in z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x_hat = generate(z, *context)
    left = x - x_hat.detach()
    # `torch.autograd.grad` without its checks of shapes, a tenth of a small network's pass.
    (gradient,) = _ENGINE.run_backward((x_hat,), (left,), False, False, (z,), False, False)
    return left, gradient


@dataclass(frozen=True)
class Passes:
    """One generator's function by passes of different speed.

    Attributes:
        coarse: for the way to a minimum.
        fine: for the last steps.
        how: which these are, in words.
        plain: the generator's own, which the results are of; `fine` if None.
        fine_residual: :func:`residual` of `fine` in less time, if there is such a thing.
        light: whether a pass is so little work that calling it costs more.
        equations: of codes `(n, d)` and data `(n, elements)`, ½‖r‖², JᵀJ and Jᵀr of r = x − G(z),
            J the Jacobian of G, where that is little work too.
    """

    coarse: Generate
    fine: Generate
    how: str
    plain: Generate | None = None
    fine_residual: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    light: bool = False
    equations: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None

    def __call__(self, z: Tensor, *context: Tensor) -> Tensor:
        return (self.plain or self.fine)(z, *context)

    def residual(self, z: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`residual` of `fine`."""
        if self.fine_residual is not None and not context:
            return self.fine_residual(z, x)
        return residual(self.fine, z, x, *context)


@dataclass(frozen=True)
class Work:
    """One batch, for a solver, which returns the fields of `Reversal` for it.

    Attributes:
        x: targets, `(batch, *shape)`.
        start: from the number of a start to codes, `(batch, *latent_shape)`; only called for
            starts that are taken.
        count: of starts at most.
        tell: called now and then.
        context: of each sample, if the generator takes one; else empty.
    """

    x: Tensor
    start: Callable[[int], Tensor]
    count: int
    tell: Tell
    context: tuple[Tensor, ...] = ()


def fill(rows: Tensor, size: int | None = None) -> Tensor:
    """Rows, filled up by copies of the first one to a size, or to a multiple of 16."""
    size = -(-len(rows) // _ROWS) * _ROWS if size is None else size
    return torch.cat([rows, rows[:1].expand(max(size - len(rows), 0), *rows.shape[1:])])
