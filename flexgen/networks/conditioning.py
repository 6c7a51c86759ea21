"""Labels in networks: beside the input, in a normalisation, or against a critic's features."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of
from flexgen.networks.layers import start_bias


class Conditional(nn.Module):
    """A network, `net`, that can take labels `(batch,)` as context: one-hot beside its input.

    Args:
        num_classes: of the labels; null: it takes none.

    Raises:
        ValueError: for a number under 1; an heir, for an unknown condition.
    """

    net: nn.Module

    def __init__(self, *, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        classes = 0 if num_classes is None else check_integer("num_classes", num_classes)
        self.labels_beside, self.labels_within = classes, 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What the contract of a generator, critic or encoder says; labels with classes alone."""
        y: Tensor = self.net(beside(x, context, self.labels_beside))
        return y

    def _take_within(self) -> None:
        self.labels_beside, self.labels_within = 0, self.labels_beside


class ConditionalGenerator(Conditional):
    """A generator that can take labels in either of two places.

    Args:
        condition: "input", one-hot beside the code, or "norm", by a scale and a shift of each class
            in every normalisation.
        **labels: see :class:`Conditional`.
    """

    def __init__(self, *, condition: Literal["input", "norm"] = "input", **labels: Any) -> None:
        super().__init__(**labels)
        check_one_of("condition", condition, ("input", "norm"))
        if condition == "norm":
            self._take_within()

    def start_at(self, mean: Tensor) -> None:
        """Have the last bias alone make data of this mean, `(*shape)`.

        Raises:
            ValueError: if the output has no logistic map to a range.
        """
        *_, last, to_range = self.net.children()
        assert isinstance(last.bias, Tensor)
        start_bias(last.bias, to_range, mean)

    def sequential(self, layers: list[nn.Module]) -> "Sequential":
        """`layers` in a row; with "norm" each normalisation, at least one, is conditional."""
        if self.labels_within:
            layers = [_conditional(layer, self.labels_within) for layer in layers]
            if not any(isinstance(layer, ConditionalNorm) for layer in layers):
                raise ValueError(
                    "`condition='norm'` needs a normalisation, got a network without; set "
                    "norm=batch, or condition=input"
                )
        return Sequential(*layers)


class ConditionalCritic(Conditional):
    """A critic that can take labels in either of two places.

    Args:
        condition: "projection" of the last features on the class's direction, or "concatenation",
            one-hot beside the data.
        **labels: see :class:`Conditional`.
    """

    def __init__(
        self, *, condition: Literal["projection", "concatenation"] = "projection", **labels: Any
    ) -> None:
        super().__init__(**labels)
        check_one_of("condition", condition, ("projection", "concatenation"))
        if condition == "projection":
            self._take_within()


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


def _conditional(layer: nn.Module, num_classes: int) -> nn.Module:
    bare: nn.Module
    match layer:
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            features = layer.num_features
            bare = type(layer)(features, affine=False)
        case nn.LayerNorm():
            (features,) = layer.normalized_shape
            bare = nn.LayerNorm(features, elementwise_affine=False)
        case nn.GroupNorm():
            features = layer.num_channels
            bare = nn.GroupNorm(layer.num_groups, features, affine=False)
        case _:
            return layer
    return ConditionalNorm(bare, features, num_classes)
