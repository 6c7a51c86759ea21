"""Rows of linear layers as one step of a pass: a small network's time is spent between products."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

# MKL's products with 5 to 11 columns round a row by its place in the batch; 16 do not.
COLUMNS = 16


class Dense(nn.Module):
    """Linear layers with a ReLU after each, as one node of the graph: a small network's time is
    spent between its products."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = _DenseFunction.apply(x, *(part for m in self.layers for part in (m.weight, m.bias)))
        return x


class _DenseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Tensor) -> Tensor:
        ctx.weights, outputs = parts[::2], _rectified(x, parts)
        ctx.save_for_backward(*outputs)
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _pulled_back(gradient, ctx.saved_tensors, ctx.weights)
        return gradient, *[None] * (2 * len(ctx.weights))


def _rectified(x: Tensor, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of linear layers with a ReLU after each; `parts` are their weights and biases."""
    outputs = []
    for weight, bias in zip(parts[::2], parts[1::2], strict=True):
        x = F.linear(x, weight, bias).relu_()
        outputs.append(x)
    return outputs


def _pulled_back(
    gradient: Tensor, outputs: Sequence[Tensor], weights: tuple[Tensor, ...]
) -> Tensor:
    """The gradient of what went into such layers, of that of what came out."""
    for output, weight in zip(reversed(outputs), reversed(weights), strict=True):
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0) @ weight
    return gradient


class DenseResidual:
    """:func:`residual` of linear layers, a ReLU between them and a map at the end, without a graph,
    whose bookkeeping takes as long as a small network's products."""

    def __init__(self, layers: list[nn.Linear], last: type[nn.Module]) -> None:
        self.parts = tuple(part for m in layers[:-1] for part in (m.weight, m.bias))
        self.output = layers[-1]
        self.to_range, self.range_backward = _RANGES[last]

    def __call__(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = _rectified(z, self.parts)
            y = self.to_range(self.output(outputs[-1] if outputs else z))
            residual = x.flatten(1) - y
            slope = self.range_backward(residual, y) @ self.output.weight
            return residual.view_as(x), _pulled_back(slope, outputs, self.parts[::2])

    def equations(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """½‖r‖², JᵀJ and Jᵀr of r = x − G(z), J the Jacobian of G: `(n,)`, `(n, d, d)`, `(n, d)`.

        d is filled up with zeros to a multiple of 4: rows that lie in memory in another way than
        their neighbours are rounded in another way.

        Args:
            z: `(n, d)`.
            x: `(n, elements)`.
        """
        with torch.no_grad():
            outputs = _rectified(z, self.parts)
            y = self.to_range(self.output(outputs[-1] if outputs else z))
            residual = x - y
            weights = (*self.parts[::2], self.output.weight)
            slopes = [output.sign_() for output in outputs]
            slopes.append(self.range_backward(torch.ones_like(y), y))
            # A row for each number of a code: how the data change with it.
            first = F.pad(weights[0].T, (0, 0, 0, -z.shape[1] % 4))
            change = first * slopes[0][:, None]
            for weight, slope in zip(weights[1:], slopes[1:], strict=True):
                change = (change.flatten(0, 1) @ weight.T).view(len(z), -1, len(weight))
                change.mul_(slope[:, None])
            downhill = (residual[:, None] @ change.mT)[:, 0]
            return residual.square().sum(1) / 2, change @ change.mT, downhill


_RANGES: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    nn.Identity: (lambda y: y, lambda gradient, y: gradient),
    nn.Tanh: (torch.tanh_, torch.ops.aten.tanh_backward),
    nn.Sigmoid: (torch.sigmoid_, torch.ops.aten.sigmoid_backward),
}


def dense_residual(generator: nn.Module) -> DenseResidual | None:
    """Of a generator whose graph is such layers in a row, and a view at the end."""
    leaves = [type(m) for m in generator.modules() if not list(m.children())]
    if not {*leaves} <= {nn.Linear, nn.ReLU, nn.Unflatten, *_RANGES}:
        return None
    given = [*inspect.signature(generator.forward).parameters.values()][1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arguments that are left out here
            graph = fx.Tracer().trace(generator, {one.name: one.default for one in given})
    except Exception:  # what a graph cannot be made of goes on by autograd
        return None
    (node,) = next(n for n in graph.nodes if n.op == "output").args
    row: list[nn.Module] = []
    while isinstance(node, fx.Node) and node.op != "placeholder":
        layer = generator.get_submodule(str(node.target)) if node.op == "call_module" else None
        if layer is not None and not isinstance(layer, nn.Unflatten):
            row.insert(0, layer)
        elif row or not (layer or node.target in ("unflatten", "view", "reshape")):
            return None
        node = node.args[0]
    last = type(row.pop()) if row and type(row[-1]) in _RANGES else nn.Identity
    layers = dense_layers([*row, nn.ReLU()])
    narrow = any(min(m.in_features, m.out_features) < COLUMNS for m in layers)
    return None if narrow or not layers else DenseResidual(layers, last)


def dense_layers(net: Iterable[nn.Module]) -> list[nn.Linear]:
    """The linear layers of a sequence of them, each before a ReLU; none if it holds anything else.

    Identities, a folded batch norm for one, do not count.
    """
    layers = [layer for layer in net if not isinstance(layer, nn.Identity)]
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    rectified = [layer for layer in layers[1::2] if type(layer) is nn.ReLU]
    return linear if len(linear) == len(rectified) and 2 * len(linear) == len(layers) else []
