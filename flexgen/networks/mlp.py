"""Fully connected generators, critics and encoders, for data of any shape."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.networks import conditioning, layers


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
        num_classes: of the labels that it takes as context; null: it takes none.
        condition: how it takes them: "input", one-hot beside the code, or "norm", by a scale and a
            shift of each class in every normalisation.

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
        num_classes: int | None = None,
        condition: conditioning.GeneratorCondition = "input",
    ) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.shape = layers.data_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        self.num_classes = num_classes
        classes = conditioning.check_classes(num_classes, condition, ("input", "norm"))
        self.labels_beside = classes if condition == "input" else 0
        widths = (
            self.latent_dim + self.labels_beside,
            *check_sizes("hidden_features", hidden_features),
        )
        hidden: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            hidden += layers.dense(narrow, wide, norm, activation, negative_slope)
        features = math.prod(self.shape)
        if classes and condition == "norm":
            hidden = conditioning.conditioned(hidden, classes)
        self.hidden = conditioning.Sequential(*hidden)
        self.output = nn.Linear(widths[-1], features)
        self.skip = nn.Linear(self.latent_dim, features, bias=False) if linear_skip else None
        self.to_range = layers.output_map(output_range)
        layers.draw_weights(self, weight_std)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Generate data.

        Args:
            z: codes, `(batch, latent_dim)`.
            context: labels `(batch,)`, with `num_classes` alone.

        Returns:
            Data, `(batch, *shape)`, in `output_range`.
        """
        h = conditioning.beside(z, context, self.labels_beside)
        x = self.output(self.hidden(h, context))
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
        num_classes: of the labels that it takes as context; null: it takes none.
        condition: how it takes them: "projection" of the last features on the class's direction,
            or "concatenation", one-hot beside the data.

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
        num_classes: int | None = None,
        condition: conditioning.CriticCondition = "projection",
    ) -> None:
        super().__init__()
        self.shape = layers.data_shape(shape)
        check_one_of("norm", norm, layers.NORMS)
        self.num_classes = num_classes
        known = ("projection", "concatenation")
        classes = conditioning.check_classes(num_classes, condition, known)
        self.labels_beside = classes if condition == "concatenation" else 0
        inputs = math.prod(self.shape) + self.labels_beside
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        hidden: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            hidden += layers.dense(wide, narrow, norm, activation, negative_slope)
        self.hidden = nn.Sequential(*hidden)
        projected = classes if condition == "projection" else 0
        self.output = conditioning.Projection(widths[-1], projected)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Criticise data.

        Args:
            x: data, `(batch, *shape)`.
            context: labels `(batch,)`, with `num_classes` alone.

        Returns:
            Raw outputs, `(batch,)`; what they mean is the objective's affair.
        """
        h = conditioning.beside(x.flatten(1), context, self.labels_beside)
        logits: Tensor = self.output(self.hidden(h), context)
        return logits


class MLPEncoder(nn.Module):
    """A fully connected encoder of data of any shape.

    Args:
        shape: shape of one datum.
        hidden_features: width of each layer, the features last; none leaves the data, flattened.
        activation: name of the activation in torch.nn, also of the features.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        num_classes: of the labels that it takes as context, one-hot
            beside the data; null: it takes none.

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
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = layers.data_shape(shape)
        self.num_classes = num_classes
        self.labels_beside = conditioning.check_classes(num_classes, "input", ("input",))
        inputs = math.prod(self.shape) + self.labels_beside
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        net: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            net += layers.dense(wide, narrow, None, activation, negative_slope)
        self.net = nn.Sequential(*net)
        self.out_features = widths[-1]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Encode data.

        Args:
            x: data, `(batch, *shape)`.
            context: labels `(batch,)`, with `num_classes` alone.

        Returns:
            Features, `(batch, out_features)`.
        """
        features: Tensor = self.net(conditioning.beside(x.flatten(1), context, self.labels_beside))
        return features
