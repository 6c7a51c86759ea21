"""Fully connected generators, critics and encoders, for data of any shape."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.networks import conditioning, layers


class MLPGenerator(conditioning.ConditionalGenerator):
    """A fully connected generator of data of any shape.

    x = r(W_L h_{L-1} + b_L [+ S z]), h_l = a(norm(W_l h_{l-1} + b_l)), h_0 = z, with r the map to
    the data's range.

    Args:
        latent_dim: size d of a code.
        shape: shape of one datum, `(2,)` or `(channels, height, width)`.
        output_range: range of the data: null (identity), [-1, 1] (tanh) or [0, 1] (sigmoid).
        hidden_features: width of each hidden layer; empty makes the generator affine.
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each hidden activation.
        linear_skip: whether a linear map S of the code is added before the output map, so that the
            output keeps full rank in z when the hidden units do not.
        weight_std: standard deviation of normal initial weights, "he": √(2 / inputs of a unit);
            null keeps torch's.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalGenerator`.

    Raises:
        ValueError: for a size that is not positive, an unknown activation, norm or range.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        output_range: Sequence[float] | None = None,
        hidden_features: Sequence[int] = (256, 256),
        activation: str = "ReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        linear_skip: bool = False,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.data_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        inputs, features = self.latent_dim + self.labels_beside, math.prod(self.shape)
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        self.hidden = self.sequential(layers.dense(widths, norm, activation, negative_slope))
        self.output = nn.Linear(widths[-1], features)
        self.skip = nn.Linear(self.latent_dim, features, bias=False) if linear_skip else None
        self.to_range = layers.output_map(output_range)
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        h = conditioning.beside(z, context, self.labels_beside)
        x = self.output(self.hidden(h, context))
        if self.skip is not None:
            x = x + self.skip(z)
        return self.to_range(x).unflatten(1, self.shape)

    def start_at(self, mean: Tensor) -> None:
        layers.start_bias(self.output.bias, self.to_range, mean)


class MLPStochasticGenerator(MLPGenerator):
    r"""x = m(z) + s(z) ε, ε ~ N(0, I): a fully connected p(x|z), whose mean is its output in eval.

    Args:
        latent_dim: size d of a code.
        shape: shape of one datum.
        output_range: null, as noise leaves any range.
        log_scale: where log s(z) starts, about.

    The other arguments, and what else is refused, are :class:`MLPGenerator`'s.

    Raises:
        ValueError: for a range.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        output_range: None = None,
        hidden_features: Sequence[int] = (256, 256),
        activation: str = "ReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        linear_skip: bool = False,
        weight_std: layers.WeightStd = None,
        log_scale: float = -3.0,
        **labels: Any,
    ) -> None:
        if output_range is not None:
            raise ValueError(
                f"`output_range` must be null for a generator with noise, got {output_range}; use "
                "data without a range, or network=mlp as it is"
            )
        super().__init__(
            latent_dim, (2, *layers.data_shape(shape)), None, hidden_features, activation,
            negative_slope, norm, linear_skip, weight_std, **labels,
        )  # fmt: skip
        self.output.bias.data[math.prod(shape) :] += log_scale

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        loc, log_scale = super().forward(z, context).unbind(1)
        return torch.addcmul(loc, log_scale.exp(), torch.randn_like(loc)) if self.training else loc


class MLPFirstLevel(MLPGenerator):
    """A fully connected decoder of a code's lowest level, its first `latent_dim` numbers.

    p(x|z) = p(x|z₁): what the levels above know of x must go through the lowest.
    """

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(z[:, : self.latent_dim], context)


class MLPCritic(conditioning.ConditionalCritic):
    """A fully connected critic of data of any shape.

    Args:
        shape: shape of one datum.
        hidden_features: width of each hidden layer.
        norm: null, "batch" or "layer", before each hidden activation. Batch norm ties the outputs
            of a batch together, which a gradient penalty per sample does not allow.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalCritic`.

    The other arguments, and what is refused, are the generator's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden_features: Sequence[int] = (256, 256),
        activation: str = "LeakyReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        self.shape = layers.data_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        inputs = math.prod(self.shape) + self.labels_beside
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        self.hidden = nn.Sequential(*layers.dense(widths, norm, activation, negative_slope))
        self.output = conditioning.Projection(widths[-1], self.labels_within)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = conditioning.beside(x.flatten(1), context, self.labels_beside)
        logits: Tensor = self.output(self.hidden(h), context)
        return logits


class MLPEncoder(conditioning.Conditional):
    """A fully connected encoder of data of any shape.

    Args:
        shape: shape of one datum.
        hidden_features: width of each layer, the features last; none leaves the data, flattened.
        activation: name of the activation in torch.nn, also of the features.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        weight_std: standard deviation of normal initial weights, "he": √(2 / inputs of a unit);
            null keeps torch's.
        **labels: see :class:`~flexgen.networks.conditioning.Conditional`.

    The other arguments, and what is refused, are the generator's.

    Source: the defaults are those of Huang et al., 2017 (LED), table 1.
    """

    def __init__(
        self, shape: Sequence[int], hidden_features: Sequence[int] = (200, 200),
        activation: str = "ReLU", negative_slope: float = 0.2,
        weight_std: layers.WeightStd = None, **labels: Any,
    ) -> None:  # fmt: skip
        super().__init__(**labels)
        self.shape = layers.data_shape(shape)
        inputs = math.prod(self.shape) + self.labels_beside
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        self.net = nn.Sequential(*layers.dense(widths, None, activation, negative_slope))
        self.out_features = widths[-1]
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x.flatten(1), context)
