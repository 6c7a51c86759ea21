"""A faster copy of a generator's pass, for the hundreds of passes that a reversal takes."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from flexgen.checks import first_line
from flexgen.reversal.dense import COLUMNS, Dense, dense_layers, dense_residual
from flexgen.reversal.folding import fold_batch_norms, rectify_in_place
from flexgen.reversal.freezing import Generator, batch_norms, home
from flexgen.reversal.graphs import as_layers
from flexgen.reversal.passes import Generate, NoFastPass, residual

# Transposed convolutions with so few output channels leave the library's vector units idle.
_FEW_CHANNELS = 4

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
        source: the module that it is a copy of, in a tuple, as it is no part of this one.
    """

    def __init__(self, generator: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.source = (generator,)
        generator = copy.deepcopy(generator).eval().requires_grad_(False)
        for module in list(generator.modules()):
            if isinstance(module, nn.Sequential):
                fold_batch_norms(module)
                rectify_in_place(module)
        self.residual = dense_residual(generator) if dtype != torch.bfloat16 else None
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
                if isinstance(child, nn.Sequential) and (layers := dense_layers(child)):
                    setattr(module, name, Dense(layers))
        for weight in self.generator.parameters():
            if weight.dim() == 4:
                weight.data = weight.contiguous(memory_format=torch.channels_last)

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        x: Tensor = self.generator[0](z.to(self.dtype), *context)
        return x.to(z.dtype)


def fast_pass(
    generator: Generator, dtype: torch.dtype, z: Tensor, x_hat: Tensor, *context: Tensor
) -> FastPass:
    """The fast copy of `generator`: of the module itself, or of the layers that its pass comes to.

    The module itself where its weights are those of torch's layers, and no batch norm and no
    weight norm is left standing; else what :func:`~flexgen.reversal.graphs.as_layers` makes of it.

    Its data lie within 1e-4 (float32) or 5 % (bfloat16) of the generator's in norm, its gradients
    within 1 % or 30 %; of a generator in half precision within ten roundings, as its own pass is.

    Args:
        generator: in eval mode, its parameters without gradients; or any callable.
        dtype: precision of the copy.
        z: codes to compare the two on, `(batch, *latent_shape)`.
        x_hat: what the generator itself makes of them, `(batch, *shape)`.
        *context: of each code, if the generator takes one.

    Raises:
        NoFastPass: where it could not be made or is not the same function, saying why.
    """
    own = home(generator, z)[1]

    def plain(z: Tensor, *context: Tensor) -> Tensor:
        x: Tensor = generator(z.to(own, copy=True), *context)  # it may write there
        return x.to(x_hat.dtype)

    theirs, gradient = _with_gradient(plain, z, x_hat, *context)
    rounding = 10 * torch.finfo(own).eps
    of_data, of_gradients = (0.05, 0.3) if dtype == torch.bfloat16 else (1e-4, 1e-2)
    of_data, of_gradients = max(of_data, rounding), max(of_gradients, rounding)
    if not (theirs - x_hat).norm() <= of_data * x_hat.norm():
        raise NoFastPass("the generator gives another image each time for one code")

    def checked(module: nn.Module) -> FastPass:
        fast = FastPass(module, dtype).to(z.device)
        ours, our_gradient = _with_gradient(fast, z, x_hat, *context)
        off = float((ours - x_hat).norm() / x_hat.norm())
        turned = float((our_gradient - gradient).norm() / gradient.norm())
        if not (off <= of_data and turned <= of_gradients):
            raise NoFastPass(f"a copy was off by {off:.2g}, its gradient by {turned:.2g}")
        if fast.residual is not None:
            pairs = zip(fast.residual(z, x_hat + 1), residual(fast, z, x_hat + 1), strict=True)
            if context or not all(torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in pairs):
                fast.residual = None
        return fast

    whole = None
    if isinstance(generator, nn.Module) and not isinstance(generator, ScriptModule):
        try:
            whole = checked(generator)
        except Exception:  # any module may come here; one that cannot be copied may be recorded
            whole = None
        if whole is not None and not _left(generator, whole):
            return whole
    try:
        size = getattr(generator, "batch_size", None)
        return checked(as_layers(plain, z, *context, batch_size=size))
    except Exception as error:
        if whole is not None:
            return whole
        if isinstance(error, NoFastPass):
            raise
        raise NoFastPass(f"it cannot be recorded: {first_line(error)}") from error


def _left(generator: nn.Module, fast: FastPass) -> bool:
    """Whether a recording may have more to fold than the module showed."""
    own = (m for m in generator.modules() if not type(m).__module__.startswith("torch.nn"))
    unknown = any(list(m.parameters(False)) or list(m.buffers(False)) for m in own)
    folded = not batch_norms(fast) and not any(map(parametrize.is_parametrized, fast.modules()))
    return unknown or not folded


def _with_gradient(
    generate: Generate, z: Tensor, towards: Tensor, *context: Tensor
) -> tuple[Tensor, Tensor]:
    """G(z), and the gradient of its product with `towards`."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x_hat = generate(z, *context)
        (gradient,) = torch.autograd.grad((x_hat * towards).sum(), z)
    return x_hat.detach(), gradient


def operations(generate: Generate, z: Tensor, *context: Tensor) -> float:
    """Floating-point operations of a pass of one sample, counted, not timed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generate(z, *context)
    return counter.get_total_flops() / len(z)


def is_light(operations: float) -> bool:
    """Whether a sample's pass of so many operations is so little that calling it costs more."""
    return operations < WORTH_BFLOAT16


def worth_bfloat16(generate: Generate, z: Tensor, *context: Tensor) -> bool:
    """Whether a pass is so much work that casts cost less than they save."""
    return has_bfloat16(z.device) and not is_light(operations(generate, z, *context))


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
    """A linear layer whose few inputs or outputs are padded with zeros; see `COLUMNS`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.pad = max(COLUMNS - layer.in_features, 0)
        more = max(COLUMNS - layer.out_features, 0)
        self.weight = nn.Parameter(F.pad(layer.weight, (0, self.pad, 0, more)), requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(F.pad(layer.bias, (0, more)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(F.pad(x, (0, self.pad)), self.weight, self.bias)
        return y[..., : self.out_features]


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


def _replacement(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if parametrize.is_parametrized(layer):
        return None
    if type(layer) is nn.Linear and min(layer.in_features, layer.out_features) < COLUMNS:
        return _PaddedLinear(layer)
    if type(layer) is nn.ConvTranspose2d:
        few = layer.out_channels <= _FEW_CHANNELS and layer.groups == 1
        return _ProductDeconvolution(layer) if few else _Deconvolution(layer, dtype)
    return None
