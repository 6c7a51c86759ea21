"""Labels in networks: beside the input, in a normalisation, or against a critic's features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of

__all__ = [
    "ConditionalNorm",
    "GeneratorCondition",
    "Projection",
    "Sequential",
    "beside",
    "check_classes",
    "conditioned",
    "one_hot",
]

GeneratorCondition = Literal["input", "norm"]
CriticCondition = Literal["projection", "concatenation"]


def check_classes(num_classes: int | None, condition: str, known: tuple[str, ...]) -> int:
    """How many inputs one-hot labels take: `num_classes`, or 0 without classes.

    Raises:
        ValueError: for a number under 1, or an unknown `condition`.
    """
    check_one_of("condition", condition, known)
    return 0 if num_classes is None else check_integer("num_classes", num_classes)


def one_hot(context: Tensor | None, num_classes: int) -> Tensor:
    """Labels `(n,)` as one-hot rows `(n, num_classes)`.

    Raises:
        ValueError: without labels.
    """
    if context is None:
        raise ValueError(
            f"a network of {num_classes} classes must be given labels, got none; call it with "
            "(x, labels), or build it with `num_classes=None`"
        )
    return F.one_hot(context, num_classes).float()


def beside(x: Tensor, context: Tensor | None, num_classes: int) -> Tensor:
    """Vectors `(n, d)` or maps `(n, c, h, w)` with one-hot labels as further features or maps."""
    if not num_classes:
        return x
    labels = one_hot(context, num_classes).to(x.dtype)
    if x.ndim == 4:
        labels = labels[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, labels], 1)


class ConditionalNorm(nn.Module):
    r"""$γ_y\, \hat x + β_y$: a normalisation whose scale and shift are those of the class.

    Args:
        norm: the normalisation, without a scale and a shift of its own.
        features: units, or channels of a map.
        num_classes: how many γ and β there are.

    Source: Dumoulin et al., "A learned representation for artistic style", 2017, eq. 5; as the
    generator's of class-conditional GANs, Miyato & Koyama, 2018.
    """

    def __init__(self, norm: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.Parameter(torch.ones(num_classes, features))
        self.shift = nn.Parameter(torch.zeros(num_classes, features))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        labels = one_hot(context, len(self.scale)).to(self.scale.dtype)
        shape = (len(x), -1, *(1,) * (x.ndim - 2))
        # By products, not by index: their gradient is the same on every run.
        scale, shift = ((labels @ value).view(shape) for value in (self.scale, self.shift))
        y: Tensor = self.norm(x) * scale + shift
        return y


class Sequential(nn.Sequential):
    """Layers in a row, of which the conditional norms are given the labels."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, context) if isinstance(layer, ConditionalNorm) else layer(x)
        return x


class Projection(nn.Module):
    r"""$ψ(φ) + v_y^\top φ$: a linear output ψ of features φ, and the label's direction in them.

    Args:
        features: size of φ.
        num_classes: how many v there are; 0: none.

    Source: Miyato & Koyama, "cGANs with projection discriminator", 2018, eq. 3.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(features, 1)
        self.direction = nn.Linear(num_classes, features, bias=False) if num_classes else None

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw outputs `(n,)`."""
        logits: Tensor = self.output(features).squeeze(1)
        if self.direction is not None:
            labels = one_hot(context, self.direction.in_features).to(features.dtype)
            logits = logits + (self.direction(labels) * features).sum(1)
        return logits


def conditioned(layers: list[nn.Module], num_classes: int) -> list[nn.Module]:
    """`layers` with each normalisation's scale and shift given to the classes.

    Raises:
        ValueError: if there is no normalisation.
    """
    found = [_conditional(layer, num_classes) for layer in layers]
    if not any(isinstance(layer, ConditionalNorm) for layer in found):
        raise ValueError(
            "`condition='norm'` needs a normalisation, got a network without; set norm=batch, or "
            "condition=input"
        )
    return found


def _conditional(layer: nn.Module, num_classes: int) -> nn.Module:
    match layer:
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            bare = type(layer)(layer.num_features, affine=False)
            return ConditionalNorm(bare, layer.num_features, num_classes)
        case nn.LayerNorm():
            (features,) = layer.normalized_shape
            bare_layer = nn.LayerNorm(features, elementwise_affine=False)
            return ConditionalNorm(bare_layer, features, num_classes)
        case nn.GroupNorm():
            channels = layer.num_channels
            bare_group = nn.GroupNorm(layer.num_groups, channels, affine=False)
            return ConditionalNorm(bare_group, channels, num_classes)
    return layer
