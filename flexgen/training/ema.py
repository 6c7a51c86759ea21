"""Exponential moving average of a network's weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    r"""A copy of `module` whose parameters follow θ̄ ← β θ̄ + (1 − β) θ.

    Buffers are copied as they are. Batch-norm statistics are not averaged: an average matches no
    set of weights. The copy stays in eval mode and never collects a gradient.

    Args:
        module: the network to follow.
        decay: β, in [0, 1). The first steps use min(β, (1 + t)/(10 + t)), so that the average
            forgets the initial weights.

    Raises:
        ValueError: if `decay` is not in [0, 1).

    Source: the warm-up is TensorFlow's ExponentialMovingAverage; the use on a GAN's generator
    is Yazıcı et al., "The unusual effectiveness of averaging in GAN training", 2019.
    """

    updates: Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {decay}; `null` turns it off")
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._updates = 0
        self._pairs: tuple[list[Tensor], ...] | None = None

    def forward(self, *args: Any) -> Any:
        return self.module(*args)

    def train(self, mode: bool = True) -> "EMA":
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow `module`, always the same one, on the device where training left it."""
        if self._pairs is None:
            # Lists, built once: torch's AveragedModel walks both module trees at each update, which
            # costs 2 to 8 times as much as averaging itself.
            self._pairs = (
                list(self.module.parameters()), list(module.parameters()),
                list(self.module.buffers()), list(module.buffers()),
            )  # fmt: skip
        averages, parameters, buffers, live_buffers = self._pairs
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(averages, parameters, 1 - decay)
        if buffers:
            torch._foreach_copy_(buffers, live_buffers)
        self._updates += 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if (updates := state_dict.get(f"{prefix}updates")) is not None:
            self._updates = int(updates)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.updates.fill_(self._updates)
        super()._save_to_state_dict(*args)
