"""Affine couplings: half of the coordinates moves, given the other half."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import check_integer
from flexgen.flows.conditioner import Conditioner
from flexgen.flows.stack import Stack
from flexgen.flows.updates import Additive, Affine, Update


class Coupling(Stack):
    r"""A stack of affine couplings, RealNVP: both directions take one pass.

    .. math:: z_a = e^{s} ε_a + t, \quad z_b = ε_b, \quad (s, t) = f(ε_b, c), \quad
        \log |\det ∂z/∂ε| = \sum_i s_i

    a and b change places from layer to layer, so every two layers move each coordinate once. s is
    bounded, g tanh(·) with a learned gain g, and f is a fully connected network whose last
    product starts out small: a deep stack is stable without batch norm and starts near the
    identity.

    Args:
        features: d, at least 2.
        num_layers: how many couplings, at least 2.
        hidden_features: width of each hidden layer of f.
        mask: "alternating": even coordinates against odd ones; "random": a split of its own,
            drawn at construction, for every two layers; "checkerboard": the fields of each map of
            an image by their colour.
        shape: `(channels, height, width)` that a code is the flattening of, for the checkerboard.
        volume_preserving: whether s = 0 throughout (NICE).
        context_features: size of the context.
        activation: of f: "ReLU", "ELU" or "Tanh".

    Raises:
        ValueError: for sizes out of range, an unknown mask, or a `shape` that does not fit.

    Source: Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", 2017, eq. 4 to 8
    and figure 3 (checkerboard); Huang et al., "Learnable explicit density", 2017, section 4
    (random masks). Departures: no batch norm; the random masks come in complementary pairs, since
    independent ones leave some coordinates unmoved.

    Example:
        >>> flow = Coupling(4, num_layers=2)
        >>> z, ladj = flow(torch.randn(7, 4))
        >>> z.shape, ladj.shape
        (torch.Size([7, 4]), torch.Size([7]))
    """

    def __init__(
        self,
        features: int,
        *,
        num_layers: int = 8,
        hidden_features: Sequence[int] = (100,),
        mask: Literal["alternating", "random", "checkerboard"] = "alternating",
        shape: Sequence[int] | None = None,
        volume_preserving: bool = False,
        context_features: int = 0,
        activation: str = "ReLU",
    ) -> None:
        for name, value in (("features", features), ("num_layers", num_layers)):
            check_integer(name, value, 2, "a coupling moves one part given the other")
        update: Update = Additive() if volume_preserving else Affine()
        pairs = [_split(features, mask, shape) for _ in range(math.ceil(num_layers / 2))]
        if mask != "random":
            pairs = pairs[:1] * len(pairs)
        orders = torch.stack([torch.cat(pairs[layer // 2]) for layer in range(num_layers)])
        parts = [len(part) for part in pairs[0]]
        kinds = 1 if parts[0] == parts[1] else 2
        nets = [
            Conditioner(
                len(range(part, num_layers, kinds)), parts[part - 1], hidden_features, parts[part],
                update.num_outputs, context_features=context_features, activation=activation,
                has_gain=update.has_gain,
            )
            for part in range(kinds)
        ]  # fmt: skip
        super().__init__(nets, parts, update, orders, context_features)


def _split(features: int, mask: str, shape: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The indices of the two halves."""
    if mask == "random":
        first, second = torch.randperm(features).tensor_split(2)
        return first, second
    if mask == "alternating":
        colour = torch.arange(features) % 2
    elif mask == "checkerboard":
        if shape is None or len(shape) != 3 or math.prod(shape) != features:
            raise ValueError(
                f"`shape` must be (channels, height, width) with a product of {features} for the "
                f"checkerboard, got {shape}; set `shape`, or `mask=alternating`"
            )
        _, height, width = shape
        board = torch.arange(height)[:, None] + torch.arange(width)
        colour = (board % 2).expand(*shape).flatten()
        if height * width < 2:
            raise ValueError(
                f"`shape` must have at least two fields a map for the checkerboard, got {shape}; "
                "use `mask=alternating`"
            )
    else:
        raise ValueError(f"`mask` must be alternating, random or checkerboard, got {mask!r}")
    return (colour == 0).nonzero().flatten(), (colour == 1).nonzero().flatten()
