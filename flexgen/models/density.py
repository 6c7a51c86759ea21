"""Densities of data, trained by maximum likelihood."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import first_line
from flexgen.contracts import Batch, Density
from flexgen.models.latent import in_parts
from flexgen.training import EMA
from flexgen.training.loop import DataRange, Loop, MakeOptimizer, MakeScheduler


class DensityModel(Loop):
    """A density p(x) of data, or p(x|y) of labelled data, trained to minimise −log p, nats a datum.

    It has no codes, and so no prior.

    Args:
        density: a module that, called with a context or without, is a distribution over data.
        optimizer: parameters to an optimizer, e.g. a `functools.partial` of Adam.
        ema_decay: decay of the weights' average, which then is what samples and is measured; None:
            no average.
        scheduler: optimizer to a schedule of its step size, stepped once a generator step.
        **loop: see :class:`~flexgen.training.Loop`.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self, density: Density, *, optimizer: MakeOptimizer, ema_decay: float | None = None,
        scheduler: MakeScheduler | None = None, **loop: Any,
    ) -> None:  # fmt: skip
        super().__init__(optimizers=(optimizer,), schedulers=(scheduler,), **loop)
        self.density = density
        self.ema = None if ema_decay is None else EMA(density, ema_decay)

    @property
    def trained(self) -> Density:
        """What samples and is measured: the average if there is one."""
        return self.density if self.ema is None else self.ema.module  # type: ignore[return-value]

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"density"}

    def learners(self) -> tuple[Density]:
        return (self.density,)

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        density, labels = self.density, self.in_turn(2)
        name = type(density).__name__
        if density.data_range not in (None, data_range):
            raise ValueError(
                f"this {name} is of data in {density.data_range}, got data in {data_range}; use "
                "data=digits_static or mnist_static, or output=categorical with output.levels"
            )
        low = 0.0 if density.data_range is None else density.data_range[0]
        with torch.no_grad():
            try:
                p = density(labels)
                p.log_prob(torch.full((2, *shape), low, device=self.device))
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the {name} and data of shape {shape} do not fit: {first_line(error)}; give "
                    "them one `data.shape` and one `num_classes`"
                ) from error
        if tuple(p.event_shape) != shape:
            raise ValueError(
                f"the density must be of data of shape {shape}, got {tuple(p.event_shape)}; set "
                "`network.pixels.shape=${data.shape}`"
            )

    def check_data(self, x: Tensor) -> None:
        self.density.check_data(x)

    def update(self, stream: Iterator[Batch], *optimizers: Any) -> None:
        self.descend(stream, optimizers[0], self.loss)
        if self.ema is not None:
            self.ema.update(self.density)
        self.finish_step()

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The training loss of a batch, nats per datum; records it."""
        loss = -self.density(context).log_prob(x).mean()
        self.record("loss/nll", loss)
        return loss

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, context: Tensor | None = None, batch_size: int = 200
    ) -> Tensor:
        """log p(x), exact, nats per datum `(n,)`; of a conditional model log p(x|y)."""
        with self.evaluating():
            parts = in_parts(x, context, batch_size)
            return torch.cat([self.trained(labels).log_prob(rows) for rows, labels in parts])

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, batch_size: int = 500) -> Tensor:
        context = self.in_turn(n) if context is None else context
        rows = torch.empty(n, 0, device=self.device)
        with self.evaluating():
            draws = [
                self.trained(labels).sample((len(part),) if labels is None else ())
                for part, labels in in_parts(rows, context, batch_size)
            ]
        return torch.cat(draws)
