"""A module's modes and gradients, changed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["restored"]


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Put back each part's mode, and whether each parameter takes a gradient, on leaving."""
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)
