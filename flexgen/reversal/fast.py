"""A faster copy of a generator's pass, for the hundreds of passes that a reversal takes."""

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from flexgen.reversal.passes import residual

# Transposed convolutions with so few output channels leave the library's vector units idle.
_FEW_CHANNELS = 4

# MKL's products with 5 to 11 columns round a row by its place in the batch; 16 do not.
_COLUMNS = 16

WORTH_BFLOAT16 = 1_000_000
"""Floating-point operations of one sample's pass from which bfloat16 pays."""


class FastPass(nn.Module):
    """A frozen copy of a generator with batch norms folded in, in a given precision.

    Codes go in and data come out in their own precision. The generator itself is not touched.

    Args:
        generator: a module in eval mode from here on; batch norms that follow a linear or a
            convolutional layer in an `nn.Sequential` are folded into its weights, maps lie channels
            last, and transposed convolutions to few channels are a product with overlap-add. What
            is not recognised stays as it is.
        dtype: of the weights and activations, float32 or bfloat16.

    Attributes:
        residual: :func:`~flexgen.reversal.passes.residual` without a graph, of linear layers with a
            ReLU between them; else None.
    """

    def __init__(self, generator: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        generator = copy.deepcopy(generator).eval().requires_grad_(False)
        for module in list(generator.modules()):
            if isinstance(module, nn.Sequential):
                _fold_batch_norms(module)
                _rectify_in_place(module)
        self.residual = _dense_residual(generator) if dtype != torch.bfloat16 else None
        wrapper = nn.Sequential(generator)  # so that a bare layer is replaced as any other
        last = [m for m in wrapper.modules() if next(m.parameters(recurse=False), None) is not None]
        last = last[-1:]
        for module in list(wrapper.modules()):
            for name, child in list(module.named_children()):
                if (replaced := _replacement(child, dtype)) or child in last:
                    replaced = replaced or child
                    setattr(module, name, _Wide(replaced) if child in last else replaced)
        self.generator, self.dtype = wrapper.to(dtype), dtype
        for module in list(wrapper.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Sequential) and (layers := _dense_layers(child)):
                    setattr(module, name, _Dense(layers))
        if dtype.is_floating_point:
            self.generator.to(memory_format=torch.channels_last)  # of four-dimensional weights

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        x: Tensor = self.generator[0](z.to(self.dtype), *context)
        return x.to(z.dtype)


def fast_pass(
    generator: nn.Module, dtype: torch.dtype, z: Tensor, x_hat: Tensor, *context: Tensor
) -> FastPass | None:
    """The fast copy of `generator`, or None where it could not be made or is not the same function.

    Its data lie within 1e-4 (float32) or 5 % (bfloat16) of the generator's in norm, its gradients
    within 1 % or 30 %. A generator that draws noise, or one whose forward pass reads a batch norm
    that was folded away, has none.

    Args:
        generator: in eval mode, its parameters without gradients.
        dtype: precision of the copy.
        z: codes to compare the two on, `(batch, *latent_shape)`.
        x_hat: what the generator itself makes of them, `(batch, *shape)`.
        *context: of each code, if the generator takes one.
    """
    try:
        fast = FastPass(generator, dtype).to(z.device)
        ours, our_gradient = _with_gradient(fast, z, x_hat, *context)
        theirs, gradient = _with_gradient(generator, z, x_hat, *context)
    except Exception:  # any module may come here; one that cannot be copied is run as it is
        return None
    of_data, of_gradients = (0.05, 0.3) if dtype == torch.bfloat16 else (1e-4, 1e-2)
    agrees = (ours - x_hat).norm() <= of_data * x_hat.norm()
    agrees &= (our_gradient - gradient).norm() <= of_gradients * gradient.norm()
    agrees &= (theirs - x_hat).norm() <= of_data * x_hat.norm()
    if not agrees:
        return None
    if fast.residual is not None and not context:
        pairs = zip(fast.residual(z, x_hat + 1), residual(fast, z, x_hat + 1), strict=True)
        if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in pairs):
            fast.residual = None
    return fast


def _with_gradient(
    generate: nn.Module, z: Tensor, towards: Tensor, *context: Tensor
) -> tuple[Tensor, Tensor]:
    """G(z), and the gradient of its product with `towards`."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x_hat = generate(z, *context)
        (gradient,) = torch.autograd.grad((x_hat * towards).sum(), z)
    return x_hat.detach(), gradient


def worth_bfloat16(generator: nn.Module, z: Tensor, *context: Tensor) -> bool:
    """Whether a pass is so much work, counted, not timed, that casts cost less than they save."""
    if not has_bfloat16(z.device):
        return False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator(z, *context)
    return counter.get_total_flops() >= WORTH_BFLOAT16 * len(z)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu  # emulated, they are slower
    return device.type == "cpu" and (
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )


class _Wide(nn.Module):
    """The last layer, whose output goes on in float32: 1 − tanh² of a rounded tanh is no slope."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y.to(torch.promote_types(y.dtype, torch.float32))


class _PaddedLinear(nn.Module):
    """A linear layer whose few inputs or outputs are padded with zeros; see `_COLUMNS`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.pad = max(_COLUMNS - layer.in_features, 0)
        more = max(_COLUMNS - layer.out_features, 0)
        self.weight = nn.Parameter(F.pad(layer.weight, (0, self.pad, 0, more)), requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(F.pad(layer.bias, (0, more)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(F.pad(x, (0, self.pad)), self.weight, self.bias)
        return y[..., : self.out_features]


class _Dense(nn.Module):
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


class _DenseResidual:
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


_RANGES: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    nn.Identity: (lambda y: y, lambda gradient, y: gradient),
    nn.Tanh: (torch.tanh_, torch.ops.aten.tanh_backward),
    nn.Sigmoid: (torch.sigmoid_, torch.ops.aten.sigmoid_backward),
}


def _dense_residual(generator: nn.Module) -> _DenseResidual | None:
    """Of a generator whose graph is such layers in a row, and a view at the end."""
    leaves = [type(m) for m in generator.modules() if not list(m.children())]
    if not {*leaves} <= {nn.Linear, nn.ReLU, nn.Unflatten, *_RANGES}:
        return None
    given = [*inspect.signature(generator.forward).parameters.values()][1:]
    try:
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
    layers = _dense_layers([*row, nn.ReLU()])
    narrow = any(min(m.in_features, m.out_features) < _COLUMNS for m in layers)
    return None if narrow or not layers else _DenseResidual(layers, last)


def _dense_layers(net: Iterable[nn.Module]) -> list[nn.Linear]:
    """The linear layers of a sequence of them, each before a ReLU; none if it holds anything else.

    Identities, a folded batch norm for one, do not count.
    """
    layers = [layer for layer in net if not isinstance(layer, nn.Identity)]
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    rectified = [layer for layer in layers[1::2] if type(layer) is nn.ReLU]
    return linear if len(linear) == len(rectified) and 2 * len(linear) == len(layers) else []


class _Deconvolution(nn.Module):
    """A transposed convolution on channels-last maps; in bfloat16 a bias inside it is slow."""

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = None
        if dtype == torch.bfloat16:
            self.bias, layer.bias = layer.bias, None
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.contiguous(memory_format=torch.channels_last))
        return y if self.bias is None else y.add_(self.bias[:, None, None])


class _ProductDeconvolution(nn.Module):
    """A transposed convolution to few channels: one product over all pixels, then overlap-add."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert isinstance(layer.padding, tuple)
        self.geometry = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        self.extra = layer.output_padding
        self.weight = nn.Parameter(layer.weight.flatten(1), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        sides = zip((height, width), *self.geometry, self.extra, strict=True)
        size = tuple(
            (pixels - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            for pixels, kernel, dilation, padding, stride, extra in sides
        )
        patches = x.permute(0, 2, 3, 1).reshape(-1, channels) @ self.weight
        # In float32 at least: overlap-add would round each partial sum to the weights' precision.
        wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
        columns = wide.view(n, height * width, -1).transpose(1, 2)
        y = F.fold(columns, size, *self.geometry).to(patches.dtype)
        return y if self.bias is None else y + self.bias[:, None, None]


def _fold_batch_norms(net: nn.Sequential) -> None:
    """Fold each batch norm into the layer before it; an identity keeps its place."""
    names = list(net._modules)
    for i, name in enumerate(names):
        norm = net._modules[name]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or i == 0:
            continue
        before = net._modules[names[i - 1]]
        per_channel = 1
        if isinstance(before, nn.Unflatten) and i > 1:  # a linear layer that makes the first map
            per_channel = _pixels(before)
            before = net._modules[names[i - 2]]
        if (
            isinstance(before, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
            and not parametrize.is_parametrized(before)
            and _fold(before, norm, per_channel)
        ):
            net._modules[name] = nn.Identity()


def _rectify_in_place(net: nn.Sequential) -> None:
    """Let each ReLU write over the sums before it, which nobody else reads in a sequence."""
    sums = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, _BatchNorm)
    made_here = False  # what a sequence is given belongs to others, a residual's input for one
    for name, layer in list(net.named_children()):
        if type(layer) is nn.ReLU and made_here:
            setattr(net, name, nn.ReLU(inplace=True))
        # Identities, a folded batch norm for one, and views pass on what they get.
        passes_on = isinstance(layer, nn.Identity | nn.Unflatten)
        made_here = isinstance(layer, sums) or (passes_on and made_here)


def _pixels(layer: nn.Unflatten) -> int:
    sizes = tuple(int(size) for size in layer.unflattened_size)
    return int(torch.tensor(sizes[1:]).prod()) if layer.dim in (1, -1) else 0


def _fold(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, norm: _BatchNorm, per_channel: int
) -> bool:
    """y = (W x + b − μ) s + β with s = γ / √(σ² + ε), as one layer of weights s W."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    scale, shift = scale.repeat_interleave(per_channel), shift.repeat_interleave(per_channel)
    weight, outputs = layer.weight, int(isinstance(layer, nn.ConvTranspose2d))  # their dimension
    if weight.shape[outputs] != len(scale):
        return False  # groups, or a batch norm over another dimension
    across = [1] * weight.dim()
    across[outputs] = -1
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.weight = nn.Parameter(weight * scale.view(across), requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return True


def _replacement(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if parametrize.is_parametrized(layer):
        return None
    if type(layer) is nn.Linear and min(layer.in_features, layer.out_features) < _COLUMNS:
        return _PaddedLinear(layer)
    if type(layer) is nn.ConvTranspose2d:
        few = layer.out_channels <= _FEW_CHANNELS and layer.groups == 1
        return _ProductDeconvolution(layer) if few else _Deconvolution(layer, dtype)
    return None
