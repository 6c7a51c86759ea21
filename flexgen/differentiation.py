"""Derivatives that are written out, where autograd is asked for more than one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiable_once(
    why: str, grads: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients that a node's backward found without a graph, tied to a refusal.

    Under `create_graph=True` they would otherwise be constants to autograd, and a second derivative
    silently 0; `torch.autograd.function.once_differentiable` refuses only where the incoming
    gradient asks for one.

    Args:
        why: what the RuntimeError says that a second derivative ends in.
        grads: of the inputs, None for those without.
        inputs: what they are functions of, the incoming gradients among them.
    """
    whole = list(grads)
    kept = [i for i, grad in enumerate(whole) if grad is not None]
    for i, grad in zip(
        kept, _Once.apply(why, len(kept), *(whole[i] for i in kept), *inputs), strict=True
    ):
        whole[i] = grad
    return whole


def is_transformed(grad: Tensor | None = None) -> bool:
    """Whether a transform of `torch.func`, forward-mode differentiation or, by its gradient, a
    batch of backwards is at work, which a node that is written out does not know."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad))
    )


class _Once(torch.autograd.Function):
    """Passes the first tensors on, and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, why: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.why = why
        return tuple(grad.clone() for grad in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(ctx.why)
