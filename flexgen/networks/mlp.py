"""Fully connected generators, critics and encoders, for data of any shape."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from flexgen.networks import layers


class MLPGenerator(nn.Module):
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
        weight_std: standard deviation of normal initial weights; null keeps torch's.

    Attributes:
        latent_dim: size of a code.
        shape: shape of one datum.

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
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = layers.positive("latent_dim", latent_dim)
        self.shape = layers.data_shape(shape)
        layers.check_norm(norm)
        widths = (self.latent_dim, *layers.positives("hidden_features", hidden_features))
        hidden: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            hidden += layers.dense(narrow, wide, norm, activation, negative_slope)
        features = math.prod(self.shape)
        self.hidden = nn.Sequential(*hidden)
        self.output = nn.Linear(widths[-1], features)
        self.skip = nn.Linear(self.latent_dim, features, bias=False) if linear_skip else None
        self.to_range = layers.output_map(output_range)
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor) -> Tensor:
        """Generate data.

        Args:
            z: codes, `(batch, latent_dim)`.

        Returns:
            Data, `(batch, *shape)`, in `output_range`.
        """
        x = self.output(self.hidden(z))
        if self.skip is not None:
            x = x + self.skip(z)
        return self.to_range(x).unflatten(1, self.shape)


class MLPCritic(nn.Module):
    """A fully connected critic of data of any shape.

    Args:
        shape: shape of one datum.
        hidden_features: width of each hidden layer.
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each hidden activation. Batch norm ties the outputs
            of a batch together, which a gradient penalty per sample does not allow.
        weight_std: standard deviation of normal initial weights; null keeps torch's.

    Attributes:
        shape: shape of one datum.

    Raises:
        ValueError: for a size that is not positive, an unknown activation or norm.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden_features: Sequence[int] = (256, 256),
        activation: str = "LeakyReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        self.shape = layers.data_shape(shape)
        layers.check_norm(norm)
        widths = (math.prod(self.shape), *layers.positives("hidden_features", hidden_features))
        hidden: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            hidden += layers.dense(wide, narrow, norm, activation, negative_slope)
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 1))
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor) -> Tensor:
        """Criticise data.

        Args:
            x: data, `(batch, *shape)`.

        Returns:
            Raw outputs, `(batch,)`; what they mean is the objective's affair.
        """
        logits: Tensor = self.net(x).squeeze(1)
        return logits


class MLPEncoder(nn.Module):
    """A fully connected encoder of data of any shape.

    Args:
        shape: shape of one datum.
        hidden_features: width of each layer, the features last; none leaves the data, flattened.
        activation: name of the activation in torch.nn, also of the features.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.

    Attributes:
        shape: shape of one datum.
        out_features: number of features.

    Raises:
        ValueError: for a size that is not positive, or an unknown activation.

    Source: the defaults are those of Huang et al., 2017 (LED), table 1.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden_features: Sequence[int] = (200, 200),
        activation: str = "ReLU",
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.shape = layers.data_shape(shape)
        widths = (math.prod(self.shape), *layers.positives("hidden_features", hidden_features))
        net: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            net += layers.dense(wide, narrow, None, activation, negative_slope)
        self.net = nn.Sequential(nn.Flatten(), *net)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Encode data.

        Args:
            x: data, `(batch, *shape)`.

        Returns:
            Features, `(batch, out_features)`.
        """
        features: Tensor = self.net(x)
        return features
