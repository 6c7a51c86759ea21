"""Batch norms folded into the layers before them, and ReLUs that write over what they read."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize


def fold_batch_norms(net: nn.Sequential) -> None:
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


def rectify_in_place(net: nn.Sequential) -> None:
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
