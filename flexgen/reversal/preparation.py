"""What every way to codes does first: the pass, tried and made faster, and the contexts."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

from flexgen.reversal.checks import returned, turned
from flexgen.reversal.fast import fast_pass, has_bfloat16, is_light, operations
from flexgen.reversal.freezing import Generator, home
from flexgen.reversal.passes import Generate, NoFastPass, Passes
from flexgen.reversal.starts import Bank

_MOST_BANKS = 64
# Operations of a sample's Jacobian up to which Levenberg-Marquardt's few steps cost less than many
# of a descent's.
_SMALL_JACOBIAN = 2_000_000


def checked(generator: Generator, x: Tensor, latent_shape: tuple[int, ...]) -> Generate:
    """The generator's own pass, in float32 at least, which refuses what is not of x's shape.

    A generator that writes into its codes is called with copies.
    """
    weights = home(generator, x)[1]
    dtype = torch.promote_types(weights, torch.float32)
    shape = x.shape[1:]
    writes: bool | None = None

    def generate(z: Tensor, *context: Tensor) -> Tensor:
        nonlocal writes
        given = z if z.dtype is weights else z.to(weights)
        if writes is None:
            given = given.clone()
            before = given._version
            x_hat = generator(given, *context)
            writes = given._version != before
        else:
            x_hat = generator(given.clone() if writes else given, *context)
        if not isinstance(x_hat, Tensor) or not x_hat.is_floating_point():
            raise ValueError(
                f"the generator must return one floating-point tensor, got {returned(x_hat)}"
            )
        if x_hat.dtype is not dtype:
            x_hat = x_hat.to(dtype)
        if x_hat.shape[1:] != shape or len(x_hat) != len(z):
            made = tuple(x_hat.shape[1:])
            remedy = turned(tuple(shape), made) or (
                "reverse data of the size that the generator was trained on"
            )
            raise ValueError(
                f"`x` must have the generator's output shape {made} for codes of "
                f"`latent_shape` {latent_shape}, got {tuple(shape)}; {remedy}"
            )
        return x_hat

    return generate


def tried(generate: Generate, codes: Tensor, *context: Tensor) -> Tensor:
    """Data of a few codes, made with a gradient, without which nothing can be done."""
    with torch.enable_grad():
        z = codes.clone().requires_grad_()
        made = generate(z.clone(), *context)
    if not made.requires_grad:
        raise ValueError(
            "the generator must be differentiable in its codes, got data without a gradient; "
            "take torch.no_grad, detach or argmax out of it"
        )
    uneven = torch.arange(made.numel(), device=made.device).cos().view_as(made).to(made.dtype)
    try:
        (slope,) = torch.autograd.grad(made, z, uneven, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ValueError(
            "the generator writes in place what its gradient needs, as z /= z.norm() does; let it "
            "make new tensors: z = z / z.norm()"
        ) from error
    if slope is None or not slope.any():
        raise ValueError(
            "the generator's data have no slope in its codes: every gradient is 0, as when it "
            "rounds them to 8 bits; let it return what it has before rounding"
        )
    return made.detach()


@torch.no_grad()
def is_noisy(generate: Generate, codes: Tensor, made: Tensor, *context: Tensor) -> bool:
    """Whether the data of codes are others a second time."""
    again = generate(codes, *context)
    finite = again.isfinite() & made.isfinite()
    if not finite.any():
        return False
    again, made = again[finite], made[finite]
    scale = float(made.max() - made.min()) or 1.0
    return float((again - made).abs().max()) > 1e-4 * scale


def check_context(context: Tensor | None, n: int) -> None:
    if context is not None and (not isinstance(context, Tensor) or len(context) != n):
        raise ValueError(
            f"`context` must hold one entry for each of {n} samples, got "
            f"{tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__}"
        )


class Contexts:
    """The contexts of samples, and how many different ones there are; None: there is none."""

    def __init__(self, context: Tensor | None, device: torch.device) -> None:
        self._context, self.count = None, 1
        if context is not None:
            self._context = context.detach().to(device)
            self._different, self._which = self._context.unique(dim=0, return_inverse=True)
            self.count = len(self._different)

    def of(self, place: Tensor) -> tuple[Tensor, ...]:
        """Those of the samples at `place`, as arguments of a generator."""
        return () if self._context is None else (self._context[place.to(self._context.device)],)

    def first(self, n: int) -> Tensor | None:
        """The first sample's, n times."""
        return (
            None if self._context is None else self._context[:1].expand(n, *self._context.shape[1:])
        )

    def banks(
        self, make: Callable[[tuple[Tensor, ...]], Bank]
    ) -> Callable[[Tensor, Tensor, int], Tensor]:
        """Of places, data there and a count: codes of a bank of their context, made when needed."""
        bank = cache(lambda which: make(self._one(which)))

        def nearest(place: Tensor, x: Tensor, count: int) -> Tensor:
            if self._context is None:
                return bank(0).nearest(x, count)
            if self.count > _MOST_BANKS:
                raise ValueError(
                    f"a bank of starts is made for each context, at most {_MOST_BANKS}, got "
                    f"{self.count} different ones; set init='normal', or give an encoder"
                )
            which = self._which[place.to(self._which.device)]
            codes = [bank(one).nearest(x[which == one], count) for one in which.unique().tolist()]
            return torch.cat(codes)[which.argsort(stable=True).argsort()]

        return nearest

    def _one(self, which: int) -> tuple[Tensor, ...]:
        return () if self._context is None else (self._different[which : which + 1],)


def faster(
    generator: Generator, generate: Generate, precision: str, probe: Tensor, made: Tensor,
    *context: Tensor,
) -> Passes:  # fmt: skip
    """The generator's faster copies, as far as they are its function."""
    try:
        fine = fast_pass(generator, probe.dtype, probe, made, *context)
    except NoFastPass as error:
        return Passes(generate, generate, f"plain passes ({error})")
    name, work = str(probe.dtype).removeprefix("torch."), operations(fine, probe, *context)
    light = is_light(work)
    half = precision == "auto" and probe.dtype == torch.float32
    if half and not light and has_bfloat16(probe.device):
        with suppress(NoFastPass):
            # What was recorded for the fine pass is not recorded again.
            coarse = fast_pass(fine.source[0], torch.bfloat16, probe, made, *context)
            how = f"passes in bfloat16, then {name}"
            return Passes(coarse, fine, how, generate, fine.residual)
    equations = None
    if fine.residual is not None and work * probe[0].numel() < _SMALL_JACOBIAN:
        equations = fine.residual.equations
    return Passes(fine, fine, f"passes in {name}", generate, fine.residual, light, equations)
