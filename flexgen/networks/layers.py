"""The parts that generators and critics share, each built from a plain configuration value."""

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from flexgen.checks import check_sizes

Norm = Literal["batch", "layer"] | None
NORMS: tuple[Norm, ...] = (None, "batch", "layer")
WeightStd = float | Literal["he"] | None
# A standard deviation of rounding alone.
_CONSTANT = 1e-6
_SHARE = 0.01


def data_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one datum, `(2,)` for a point in the plane, `(1, 28, 28)` for an image.

    Raises:
        ValueError: if it is empty or has a size below 1.
    """
    sizes = check_sizes("shape", shape)
    if not sizes:
        raise ValueError("`shape` must have at least one size, got (); a scalar datum is (1,)")
    return sizes


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of one image, `(channels, height, width)`, at least 2 pixels high and wide.

    Raises:
        ValueError: if it is no image shape.
    """
    sizes = data_shape(shape)
    if len(sizes) != 3 or min(sizes[1:]) < 2:
        raise ValueError(
            f"`shape` must be (channels, height, width) with at least 2 x 2 pixels for a "
            f"convolutional network, got {sizes}; use `network=mlp` for data that are not images"
        )
    return sizes[0], sizes[1], sizes[2]


def map_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """Channels of the maps of a convolutional network, at least one map.

    Raises:
        ValueError: if there is none, or a size is not positive.
    """
    sizes = check_sizes("channels", channels)
    if not sizes:
        raise ValueError("`channels` must name at least one map, got []; use [64]")
    return sizes


class Gated(nn.Module):
    r"""$\tanh(a) ⊙ σ(b)$ of the first and the second half (a, b) of the units or channels.

    Source: van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, eq. 2;
    the gated multiplicative nonlinearity of Gulrajani et al., "Improved training of Wasserstein
    GANs", 2017, section 5.1.
    """

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a.tanh() * b.sigmoid()


def units_before(act: str) -> int:
    """How many units an activation takes for each that it gives."""
    return 2 if act in ("Gated", "GLU") else 1


def activation(name: str, negative_slope: float) -> nn.Module:
    """The activation that torch.nn calls `name`, or :class:`Gated`.

    That and `GLU`, a ⊙ σ(b), take twice the units or channels.

    Args:
        name: of the class.
        negative_slope: for LeakyReLU alone.

    Raises:
        ValueError: if torch.nn has no activation of that name.
    """
    if name in ("Gated", "GLU"):
        return Gated() if name == "Gated" else nn.GLU(1)
    if name not in torch_activations.__all__:
        lower = {known.lower(): known for known in torch_activations.__all__}
        near = difflib.get_close_matches(str(name).lower(), lower, n=1)
        hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
        raise ValueError(
            f"`activation` must name an activation of torch.nn such as 'ReLU', got {name!r}{hint}"
        )
    kind = getattr(nn, name)
    module: nn.Module = kind(negative_slope) if kind is nn.LeakyReLU else kind()
    return module


def dense(widths: Sequence[int], norm: Norm, act: str, slope: float) -> list[nn.Module]:
    """Fully connected layers from each width to the next, normalised per unit and activated."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        # Batch norm subtracts the batch's mean, so a bias before it would never get a gradient.
        wide = after * units_before(act)
        layers.append(nn.Linear(before, wide, bias=norm != "batch"))
        if norm is not None:
            layers.append((nn.BatchNorm1d if norm == "batch" else nn.LayerNorm)(wide))
        layers.append(activation(act, slope))
    return layers


def after_map(channels: int, norm: Norm, act: str, slope: float) -> list[nn.Module]:
    """A feature map's normalisation (batch: per channel, layer: over the map) and activation.

    Args:
        channels: after the activation.
        norm: null, "batch" or "layer".
        act: the activation's name.
        slope: of LeakyReLU.
    """
    layers: list[nn.Module] = []
    wide = channels * units_before(act)
    if norm is not None:
        layers = [nn.BatchNorm2d(wide) if norm == "batch" else nn.GroupNorm(1, wide)]
    return [*layers, activation(act, slope)]


def output_map(output_range: Sequence[float] | None) -> nn.Module:
    """What ends a generator: identity for null, tanh for [-1, 1], sigmoid for [0, 1].

    Raises:
        ValueError: for another range.
    """
    if output_range is None:
        return nn.Identity()
    match tuple(output_range):
        case (-1, 1):
            return nn.Tanh()
        case (0, 1):
            return nn.Sigmoid()
        case other:
            raise ValueError(
                f"`output_range` must be null, [-1, 1] or [0, 1], got {other}; scale the data to "
                f"one of them (`data.range=[-1,1]`)"
            )


def start_bias(bias: Tensor, to_range: nn.Module, mean: Tensor) -> None:
    """Set the bias before an output map so that alone it makes data of this mean, `(*shape)`.

    A bias of a whole channel gets that of the channel's mean.

    Raises:
        ValueError: for an identity, which has no log-odds.
    """
    if isinstance(to_range, nn.Identity):
        raise ValueError(
            "log-odds are of an output in a range, and this generator's is not bounded; set "
            "`network.generator.output_range=${data.range}`, or `model.data_bias=false`"
        )
    if bias.numel() != mean.numel():
        mean = mean.flatten(1).mean(1)
    tanh = isinstance(to_range, nn.Tanh)
    share = (mean.flatten() + 1) / 2 if tanh else mean.flatten()
    # A pixel that is the same in all data would need an infinite one.
    logits = share.clamp(_SHARE, 1 - _SHARE).logit()
    bias.data.copy_(logits / 2 if tanh else logits)


def draw_weights(module: nn.Module, std: WeightStd) -> None:
    """Draw all weights of linear and convolutional layers from N(0, std²), biases zero.

    None keeps torch's own initialisation. Normalisations keep scale 1 and shift 0.

    Args:
        module: what holds the layers.
        std: a number above 0; or "he", √(2 / inputs of a unit), of each layer its own.

    Raises:
        ValueError: if std is not positive.

    Source: He et al., "Delving deep into rectifiers", 2015, eq. 10.
    """
    if std is None:
        return
    if std != "he" and (isinstance(std, str) or std <= 0):
        raise ValueError(f"`weight_std` must be null, positive or 'he', got {std!r}")
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            each = math.sqrt(2 / _inputs(layer)) if std == "he" else std
            nn.init.normal_(layer.weight, 0.0, each)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _inputs(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Of a unit; a transposed convolution's overlap by stride."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight[:, 0].numel() / math.prod(layer.stride)
    return layer.weight[0].numel()


def normalise_weights(module: nn.Module) -> None:
    r"""Make all weights of linear and convolutional layers $w = g\, v / \lVert v \rVert$.

    One g for each output; at first w is what it was.

    Source: Salimans & Kingma, "Weight normalization", 2016, eq. 2.
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # A transposed convolution's weight has its outputs second.
            outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            parametrizations.weight_norm(layer, dim=outputs)


@torch.no_grad()
def initialise_from_data(
    module: nn.Module, run: Callable[[], object], scale: float
) -> list[Tensor]:
    r"""Have each output of a weight-normed layer a mean of 0 and a standard deviation on data.

    As the data pass, the layers one after the other, $g ← g\, c/σ$ and $b ← (b - μ)\, c/σ$ with μ
    and σ of an output over the batch and its pixels. An output that is constant keeps its own.

    Args:
        module: its layers that :func:`normalise_weights` changed and that have a bias.
        run: has the data pass through them.
        scale: c.

    Returns:
        The parameters that were set.

    Source: Salimans & Kingma, "Weight normalization", 2016, eq. 5 and 6, with c = 1; Kingma et al.,
    2016, appendix.
    """
    found: list[Tensor] = []

    def centre(layer: Any, _: Any, out: Tensor) -> Tensor:
        hooks.pop(layer).remove()
        std, mean = torch.std_mean(out.transpose(0, 1).flatten(1), 1, correction=0)
        factor = torch.where(std > _CONSTANT, scale / std, 1.0)
        length = layer.parametrizations.weight.original0
        length.mul_(factor.view_as(length))
        mean = mean.where(std > _CONSTANT, 0.0)
        layer.bias.sub_(mean).mul_(factor)
        found.extend((length, layer.bias))
        shape = -1, *(1,) * (out.ndim - 2)
        return (out - mean.view(shape)) * factor.view(shape)

    normed = [layer for layer in module.modules() if is_parametrized(layer, "weight")]
    hooks = {m: m.register_forward_hook(centre) for m in normed if m.bias is not None}
    try:
        run()
    finally:
        for hook in hooks.values():
            hook.remove()
    return found
