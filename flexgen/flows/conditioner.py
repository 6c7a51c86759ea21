"""The networks of a flow: stacks of fully connected ones of the same sizes, dense or masked."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.checks import check_one_of

BLOCK_ROWS = 128
"""Rows of a masked product that are computed at once: fewer waste calls, more waste zeros."""

_aten = torch.ops.aten
_relu_backward = _aten.threshold_backward.grad_input
_elu_backward = _aten.elu_backward.grad_input
_tanh_backward = _aten.tanh_backward.grad_input

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "ReLU": (torch.relu_, lambda grad, h: _relu_backward(grad, h, 0, grad_input=grad)),
    "ELU": (
        functional.elu_,
        lambda grad, h: _elu_backward(grad, 1, 1, 1, True, h, grad_input=grad),
    ),
    "Tanh": (torch.tanh_, lambda grad, h: _tanh_backward(grad, h, grad_input=grad)),
}
"""By their names in torch.nn: the activation in place, and its gradient, in place, by its value."""


class Conditioner(nn.Module):
    """`num` fully connected networks of the same sizes, each the conditioner of one layer.

    Their weights are stacked, `(num, out, in)`, and the context enters at the first product, for
    all of them at once. Codes are columns.

    The last product starts out small: every layer is close to the identity, and a deep flow starts
    as its base without any batch norm. It does not start at zero, where no other weight would get
    a gradient.

    Masked entries of a weight are zero from the start and get no gradient, so nothing is masked in
    a forward pass. An optimizer that moves weights without a gradient (noise added to them, say)
    would undo the masks.

    Args:
        num: how many networks.
        in_features: size of the input.
        hidden_features: width of each hidden layer, at least one.
        moved: how many coordinates the outputs move.
        num_outputs: outputs for each of them.
        context_features: size of the context, 0 for none.
        activation: "ReLU", "ELU" or "Tanh".
        has_gain: whether each moved coordinate has a learned gain, 1 at the start.
        masks: of each product, `(out, in)`: each row a prefix of the columns, at least as long as
            that of the row before; None: dense.

    Raises:
        ValueError: for no hidden layer or an unknown activation.
    """

    weight0: Tensor

    def __init__(
        self, num: int, in_features: int, hidden_features: Sequence[int], moved: int,
        num_outputs: int, *, context_features: int = 0, activation: str = "ReLU",
        has_gain: bool = True, masks: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        if not hidden_features or min(hidden_features) < 1:
            raise ValueError(
                "`hidden_features` must list the width of at least one hidden layer, got "
                f"{list(hidden_features)}; set [100]"
            )
        check_one_of("activation", activation, ACTIVATIONS)
        self.num, self.depth, self.activation = num, len(hidden_features) + 1, activation
        self.num_outputs, self.has_gain = num_outputs, has_gain
        for k, mask in enumerate(masks):
            self.register_buffer(f"mask{k}", mask.to(torch.get_default_dtype()), persistent=False)
        self.blocks = [_blocks(mask) for mask in masks] or [[]] * self.depth
        sizes = [in_features, *hidden_features, moved * num_outputs]
        # Registered in the order in which a pass takes them: `_parameters` is much faster to read
        # than a ParameterList.
        biases = []
        for k, (narrow, wide) in enumerate(itertools.pairwise(sizes)):
            weight, bias = _uniform(narrow, num, wide, narrow), _uniform(narrow, num, wide, 1)
            if k == self.depth - 1:
                weight, bias = 0.01 * weight, 0 * bias
            if masks:
                weight = weight * masks[k]
            self.register_parameter(f"weight{k}", nn.Parameter(weight))
            biases.append(bias)
        for k, bias in enumerate(biases):
            self.register_parameter(f"bias{k}", nn.Parameter(bias))
        if has_gain:
            self.gain = nn.Parameter(torch.ones(num, moved, 1))
        if context_features:
            weight = _uniform(context_features, num * sizes[1], context_features)
            self.context_weight = nn.Parameter(weight)

    def tensors(self, context: Tensor | None, batch: torch.Size) -> list[Tensor]:
        """Weights, biases and gain; the context's share of the first product is in its bias.

        Args:
            context: `(*c, context_features)`, c broadcastable to `batch`.
            batch: of the codes.
        """
        tensors: list[Tensor] = list(self._parameters.values())  # type: ignore[arg-type]
        if context is not None:
            weight, bias = tensors.pop(), tensors[self.depth]
            rows = context.reshape(-1, context.shape[-1])
            product = torch.addmm(bias.flatten(0, 1), weight, rows.mT)
            # Computed once for each context, however many codes share it.
            own = (1,) * (len(batch) + 1 - context.ndim) + context.shape[:-1]
            product = product.view(*bias.shape[:2], *own).expand(*bias.shape[:2], *batch)
            tensors[self.depth] = product.reshape(*bias.shape[:2], -1)
        return tensors


class Pass:
    """The networks of a :class:`Conditioner` on the tensors of one call, and their gradients.

    Args:
        net: the conditioner.
        tensors: what :meth:`Conditioner.tensors` returned.
        inverse: the direction; the gains' sign is turned.
        keep: n where a backward will follow, for which hidden units are kept; else None.
        traced: whether autograd derives the gradient, as under `torch.compile`.

    Attributes:
        outs: gradients of the outputs, to be filled in: `outs[row][j]`, `(moved, n)`, of output j.
        log_scales: gradient of the log-scale and what the gain multiplies, of each network with a
            gain, to be filled in.
    """

    def __init__(
        self, net: Conditioner, tensors: Sequence[Tensor], inverse: bool, *,
        keep: int | None = None, traced: bool = False,
    ) -> None:  # fmt: skip
        depth, self.inverse, self.num_outputs = net.depth, inverse, net.num_outputs
        self.traced = traced
        self.blocks, self.masks = net.blocks, list(net._buffers.values()) or [None] * depth
        weights, self._biases = tensors[:depth], tensors[depth : 2 * depth]
        if traced:
            # The gradient that autograd derives knows of no mask.
            weights = [
                w if mask is None else w * mask for w, mask in zip(weights, self.masks, strict=True)
            ]
            self.blocks = [[]] * depth
        self._weights, self.weights, self.biases = weights, _rows(weights), _rows(self._biases)
        self.gains: Sequence[Tensor | None] = [None] * net.num
        if net.has_gain:
            self.gains = (tensors[-1].neg() if inverse else tensors[-1]).unbind(0)
        self.activate, self.activate_backward = ACTIVATIONS[net.activation]
        self._hidden = [w.new_empty(*w.shape[:2], keep) for w in weights[:-1] if keep is not None]
        self.hidden: Sequence[Sequence[Any]] = _rows(self._hidden)
        if keep is None:
            self.hidden = [[None] * (depth - 1)] * net.num

    def __call__(self, row: int, code: Tensor) -> Tensor:
        """Outputs `(moved · num_outputs, n)` of network `row` for the codes `(in, n)`."""
        weights, biases = self.weights[row], self.biases[row]
        layers = zip(weights, biases, self.blocks, self.hidden[row], strict=False)
        for weight, bias, blocks, out in layers:
            code = self.activate(_product(bias, weight, code, blocks, out))
        return _product(biases[-1], weights[-1], code, self.blocks[-1], None)

    def start_backward(self, grad_ladj: Tensor) -> None:
        """Make room for the gradients, given that of log |det J|, `(n,)`."""
        self.grad_ladj, n = grad_ladj, len(grad_ladj)
        self._grads = [w.new_empty(*w.shape[:2], n) for w in self._weights]
        self.grads = _rows(self._grads)
        self.transposed = _rows([w.mT for w in self._weights])
        self.outs = _rows(self._grads[-1].unflatten(1, (-1, self.num_outputs)).unbind(2))
        self.log_scales: dict[int, tuple[Tensor, Tensor]] = {}

    def backward(self, row: int) -> None:
        """From the outputs of network `row`, whose gradient is known, to its first product."""
        grads, transposed, hidden = self.grads[row], self.transposed[row], self.hidden[row]
        for k in range(len(hidden), 0, -1):
            _product_backward(transposed[k], grads[k], self.blocks[k], grads[k - 1])
            self.activate_backward(grads[k - 1], hidden[k - 1])

    def add_input_grad(self, row: int, grad: Tensor) -> Tensor:
        """`grad` plus the gradient of what network `row` saw."""
        return torch.addmm(grad, self.transposed[row][0], self.grads[row][0])

    def finish(self, seen: list[Tensor]) -> list[Tensor]:
        """Gradients in the order of :meth:`Conditioner.tensors`, given what each network saw."""
        inputs = [torch.stack(seen), *self._hidden]
        weights = [
            _weigh(*each) for each in zip(self._grads, inputs, self.blocks, self.masks, strict=True)
        ]
        biases = [
            grad.sum(-1, keepdim=True) if bias.shape[-1] == 1 else grad
            for grad, bias in zip(self._grads, self._biases, strict=True)
        ]
        if not self.log_scales:
            return [*weights, *biases]
        rows = [self.log_scales[row] for row in range(len(self.gains))]
        grads, multiplied = (torch.stack(each) for each in zip(*rows, strict=True))
        gains = grads.mul_(multiplied).sum(-1, keepdim=True)
        return [*weights, *biases, gains.neg_() if self.inverse else gains]


Blocks = list[tuple[int, int, int, int]]
"""Rows from, to, and the columns that these rows use and the rows above them do not, from, to."""


def _uniform(fan_in: int, *shape: int) -> Tensor:
    bound = 1 / math.sqrt(max(fan_in, 1))
    return torch.empty(shape).uniform_(-bound, bound)


def _blocks(mask: Tensor) -> Blocks:
    """The blocks below the staircase of a mask; none where one product is faster."""
    rows, columns = mask.shape
    if rows < 2 * BLOCK_ROWS:
        return []
    edges = [*range(0, rows - BLOCK_ROWS + 1, BLOCK_ROWS), rows]
    reach = [0, *(int(mask[bottom - 1].sum()) for bottom in edges[1:-1]), columns]
    return list(zip(edges, edges[1:], reach, reach[1:], strict=False))


def _rows(stacks: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """From stacks of matrices, one a product, to the matrices of each network."""
    return list(zip(*(stack.unbind(0) for stack in stacks), strict=True))


def _product(bias: Tensor, weight: Tensor, h: Tensor, blocks: Blocks, out: Tensor | None) -> Tensor:
    """b + W h, in `out` if there is one."""
    if not blocks:
        return torch.addmm(bias, weight, h, out=out)
    if out is None:
        out = h.new_empty(len(weight), h.shape[1])
    for top, bottom, _, right in blocks:
        torch.addmm(bias[top:bottom], weight[top:bottom, :right], h[:right], out=out[top:bottom])
    return out


def _product_backward(transposed: Tensor, grad: Tensor, blocks: Blocks, out: Tensor) -> None:
    """Wᵀ g."""
    if not blocks:
        torch.mm(transposed, grad, out=out)
    for top, _, left, right in blocks:
        torch.mm(transposed[left:right, top:], grad[top:], out=out[left:right])


def _weigh(grad: Tensor, h: Tensor, blocks: Blocks, mask: Tensor | None) -> Tensor:
    """g hᵀ below the staircase, for each network of a stack."""
    if not blocks:
        weight = torch.bmm(grad, h.mT)
        return weight if mask is None else weight.mul_(mask)
    assert mask is not None
    weight = grad.new_zeros(len(grad), grad.shape[1], h.shape[1])
    for top, bottom, left, right in blocks:
        for out, rows, columns in zip(weight, grad, h, strict=True):
            torch.mm(rows[top:bottom], columns[:right].mT, out=out[top:bottom, :right])
        weight[:, top:bottom, left:right] *= mask[top:bottom, left:right]
    return weight
