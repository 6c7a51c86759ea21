"""A module's modes and gradients, changed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Put back, on leaving, modes, which parameters take a gradient, and how batch norms track."""
    modes = [(part, part.training) for part in module.modules()]
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    tracking = [(norm.momentum, norm.track_running_stats) for norm in norms]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for norm, (momentum, tracks) in zip(norms, tracking, strict=True):
            norm.momentum, norm.track_running_stats = momentum, tracks
        for parameter, required in gradients:
            parameter.requires_grad_(required)
