"""Starting codes that do not depend on which samples are reversed together."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flexgen.reversal.passes import Generate, fill

_BLOCK = 1024
_BANK_ELEMENTS = 1 << 26
# Nearest codes of a bank whose mean is one start.
_GROUP = 4
# Codes of a bank that go through the generator at a time.
_PASS = 128


def normal_codes(index: Tensor, latent_shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal codes, each a function of (seed, index) alone.

    A generator of its own for every sample would cost more than the draw, so samples share one by
    blocks of 1,024 indices: block b is drawn whole from a generator seeded by (seed, b).

    They are `(n, *latent_shape)`, float32 on the CPU, for indices `(n,)`, which like the seed are
    not negative. The global generator is not touched.
    """
    index = index.cpu()
    codes = torch.empty(len(index), *latent_shape)
    blocks = index // _BLOCK
    for block in blocks.unique().tolist():
        state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        drawn = torch.randn(_BLOCK, *latent_shape, generator=generator)
        inside = blocks == block
        codes[inside] = drawn[index[inside] % _BLOCK]
    return codes


class Bank:
    """Data that a generator makes of many codes; those nearest to a sample give starts for it.

    Args:
        generate: codes, and a context where there is one, to data.
        codes: `(size, *latent_shape)`, draws from the prior.
        context: of all its data, `(1, …)`; empty if the generator takes none.
    """

    def __init__(self, generate: Generate, codes: Tensor, context: tuple[Tensor, ...] = ()) -> None:
        with torch.no_grad():
            passes = [
                generate(part, *(c.expand(len(part), *c.shape[1:]) for c in context)).flatten(1)
                for part in codes.split(_PASS)
            ]
        self.codes, self.data = codes, torch.cat(passes)
        self.squares = self.data.square().sum(1)

    def nearest(self, x: Tensor, count: int) -> Tensor:
        """Starts from the codes whose data lie nearest to x, `(batch, *shape)`, by distance.

        They are `(batch, count, *latent_shape)`: of the nearest four codes their mean and the
        nearest, of the next four the same, and so on. A mean is nearer to the prior's middle, from
        where a descent ends lower; alone it would miss data whose codes lie on two sides of it.
        Elements of x that are NaN are not known, and do not count.
        """
        unknown = fill(x.flatten(1)).isnan()
        rows = fill(x.flatten(1)).masked_fill(unknown, 0)
        squares = self.squares
        if unknown.any():
            squares = (~unknown).to(rows.dtype) @ self.data.square().T
        distance = torch.addmm(squares, rows, self.data.T, alpha=-2)[: len(x)]
        count = min(count, len(self.codes))
        groups = -(-count // 2)
        size = max(1, min(_GROUP, len(self.codes) // groups))
        near = distance.topk(min(size * groups, len(self.codes)), largest=False).indices
        parts = self.codes[near].split(size, 1)
        both = [start for part in parts for start in (part.mean(1), part[:, 0])]
        return torch.stack(both[:count], 1)


class Starts:
    """Starting codes of samples, each a function of the sample and its index alone.

    Args:
        init, latent_shape, bounds, index, seed: see :func:`~flexgen.reversal.reverse`.
        count: starts of a sample; codes given with two batch dimensions have their own.
        num_samples: how many samples there are.
        scale: standard deviation of normal starts.

    Attributes:
        better: of data and an encoder's guess, a better guess; None: the guess is taken as it is.

    Raises:
        ValueError: if `init` is none of these, or codes or `index` do not fit.
    """

    def __init__(
        self, init: Literal["auto", "normal", "bank"] | Tensor | Callable[[Tensor], Tensor],
        count: int, num_samples: int, latent_shape: tuple[int, ...], scale: float,
        bounds: tuple[float, float] | None, index: Tensor | None, seed: int,
    ) -> None:  # fmt: skip
        self.init: Tensor | Callable[[Tensor], Tensor] | str
        self.init = "normal" if isinstance(init, str) and init == "auto" else init
        self.shape, self.scale, self.bounds, self.seed = latent_shape, scale, bounds, seed
        self.bank_size = 0
        self.better: Callable[[Tensor, Tensor], Tensor] | None = None
        if isinstance(self.init, Tensor):
            codes = self.init.detach()
            codes = codes[:, None] if codes.dim() == 1 + len(latent_shape) else codes
            fits = (codes.shape[0], *codes.shape[2:]) == (num_samples, *latent_shape)
            if not fits or not codes.shape[1] or not codes.isfinite().all():
                raise ValueError(
                    "`init` must be finite codes of shape "
                    f"{(num_samples, *latent_shape)}, or {(num_samples, 'count', *latent_shape)}, "
                    f"got {tuple(self.init.shape)}; give codes for each sample"
                )
            self.init, count = codes, codes.shape[1]
        elif not callable(self.init) and self.init not in ("normal", "bank"):
            raise ValueError(
                "`init` must be 'auto', 'normal', 'bank', codes, or a function from data to codes, "
                f"got {init!r}"
            )
        self.count = count
        self.index = torch.arange(num_samples) if index is None else index
        whole = self.index.shape == (num_samples,) and not self.index.is_floating_point()
        if not whole or (self.index < 0).any():
            raise ValueError(
                f"`index` must hold a whole number of at least 0 for each of {num_samples} "
                f"samples, got {self.index.dtype} of shape {tuple(self.index.shape)}"
            )

    def bank_codes(self, bank: int | Tensor, elements: int) -> Tensor:
        """Codes of a bank, whose data have so many elements; no more starts are taken than it has.

        Raises:
            ValueError: for codes of another shape, none, or some that are not finite.
        """
        if isinstance(bank, Tensor):
            if bank.shape[1:] != self.shape or not len(bank) or not bank.isfinite().all():
                raise ValueError(
                    f"`bank` must be a number, or finite codes of shape (size, *{self.shape}), got "
                    f"{tuple(bank.shape)}; give draws from the prior"
                )
            codes = bank.detach()[: max(_BANK_ELEMENTS // elements, 64)]
        else:
            size = min(bank, max(_BANK_ELEMENTS // elements, 64))
            codes = normal_codes(torch.arange(size), self.shape, self.seed)
            if self.bounds is not None:
                low, high = self.bounds
                codes = low + (high - low) * torch.special.ndtr(codes)
        self.bank_size = len(codes)
        if self.init == "bank" if isinstance(self.init, str) else callable(self.init):
            self.count = min(self.count, self.bank_size + int(callable(self.init)))
        return codes

    def probe(self) -> Tensor:
        """A few codes such as the prior's, `(32, *latent_shape)`, to try a generator on."""
        codes = normal_codes(torch.arange(32), self.shape, self.seed)
        return codes if self.bounds is None else codes.clamp(*self.bounds)

    def of(
        self, place: Tensor, x: Tensor, bank: Callable[[Tensor, Tensor, int], Tensor]
    ) -> Callable[[int], Tensor]:
        """From the number of a start, below `count`, to codes `(batch, *latent_shape)`.

        Args:
            place: numbers of the samples, `(batch,)`.
            x: their data, `(batch, *shape)`.
            bank: place, data and a count to as many codes for each, `(batch, count, …)`.

        Raises:
            ValueError: if an encoder gives codes of another shape.
        """
        nearest: list[Tensor] = []

        def start(k: int) -> Tensor:
            if isinstance(self.init, Tensor):
                codes = self.init[place.to(self.init.device), k]
            elif self.init == "normal":
                index = self.index[place.to(self.index.device)]
                codes = self.scale * normal_codes(index, self.shape, self.seed + k)
            elif callable(self.init) and not k:
                codes = self._guess(self.init, x)
            else:
                own = int(callable(self.init))
                nearest[:] = nearest or [bank(place, x, self.count - own)]
                codes = nearest[0][:, k - own]
            return codes.to(x.device, x.dtype)

        return start

    def _guess(self, encoder: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        filled = fill(x)
        with torch.no_grad():
            codes = encoder(filled.nan_to_num(0))
        if codes.shape != (len(filled), *self.shape):
            raise ValueError(
                f"`init` gave codes of shape {tuple(codes.shape)} for {len(filled)} samples, "
                f"expected {(len(filled), *self.shape)}; give an encoder of this generator"
            )
        return (codes if self.better is None else self.better(filled, codes))[: len(x)]

    def __str__(self) -> str:
        many = "1 start" if self.count == 1 else f"up to {self.count} starts"
        if isinstance(self.init, Tensor):
            return f"{many} as given"
        if self.init == "normal":
            return f"{many} from N(0, {self.scale:g}²)"
        if self.init == "bank":
            return f"{many} from the nearest of {self.bank_size} samples"
        more = f" and the nearest of {self.bank_size} samples" if self.count > 1 else ""
        return f"{many} from an encoder{more}"
