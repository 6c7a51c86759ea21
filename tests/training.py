"""Training by Lightning's own loop, in memory and without a run."""

import itertools
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from torch import Tensor, nn

from flexgen.contracts import Batch, BatchStream
from flexgen.training import Loop


class _LossScale(Precision):
    """Full precision, with a loss scale as float16 has it."""

    def __init__(self, scaler: Any) -> None:
        super().__init__()
        self.scaler = scaler

    def pre_backward(self, tensor: Tensor, module: pl.LightningModule) -> Tensor:  # type: ignore[override]
        return super().pre_backward(self.scaler.scale(tensor), module)


class _Stream(BatchStream):
    def __init__(self, batches: Iterator[Batch | Tensor]) -> None:
        self.batches = batches

    def __next__(self) -> Batch:
        batch = next(self.batches)
        return Batch(batch) if isinstance(batch, Tensor) else batch


class _After(pl.Callback):
    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def on_train_batch_end(self, *_: Any) -> None:
        self.act()


def train(
    model: Loop,
    stream: Iterator[Batch | Tensor],
    steps: int = 1,
    *,
    after: Callable[[], Any] = lambda: None,
    scaler: Any = None,
) -> None:
    """Train for `steps` more generator steps.

    Args:
        model: what is trained.
        stream: its batches, or their data alone.
        steps: how many.
        after: called after each.
        scaler: of the loss, as float16 has it.
    """
    model.schedule.register(every=1)
    model.schedule.end = model.counters.generator_steps + steps
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        callbacks=[_After(after)],
        plugins=[] if scaler is None else [_LossScale(scaler)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found .* in eval mode")  # the average of an EMA
        trainer.fit(model, itertools.repeat(_Stream(stream)))


def labelled(draw: Callable[[], Tensor]) -> Iterator[Batch]:
    """Batches without end, each datum with one of eight labels."""

    def batch() -> Batch:
        x = draw()
        return Batch(x, torch.arange(len(x)) % 8)

    return iter(batch, None)


def noise(*shape: int) -> Iterator[Batch]:
    """Batches of N(0, I) without end, labelled."""
    return labelled(lambda: torch.randn(shape))


def trainable(*modules: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that learn, by name: a critic's are frozen after the generator's step."""
    return [(n, p) for module in modules for n, p in module.named_parameters() if p.requires_grad]


def without_gradient(parameters: list[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of those that have no finite, non-zero gradient."""
    return [
        name
        for name, p in parameters
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]


def at_call(
    patched: pytest.MonkeyPatch,
    owner: type,
    name: str,
    number: int,
    act: Callable[[Tensor], Tensor],
) -> None:
    """Have call `number` of a method, counted from 1, return what `act` makes of its result."""
    method, calls = getattr(owner, name), itertools.count(1)

    def counted(*args: Any) -> Tensor:
        result = method(*args)
        return act(result) if next(calls) == number else result

    patched.setattr(owner, name, counted)


def interrupt(result: Tensor) -> Tensor:
    """Press Ctrl-C once."""
    signal.raise_signal(signal.SIGINT)
    return result


def not_a_number(loss: Tensor) -> Tensor:
    """NaN, with the gradient that the loss has."""
    return loss + torch.nan
