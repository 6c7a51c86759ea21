"""Critics of data together with their codes."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer, check_one_of, check_sizes
from flexgen.contracts import Encoder, in_context
from flexgen.networks import conditioning, layers


class JointCritic(conditioning.ConditionalCritic):
    """D(x, z): features of data and features of their codes, side by side, then dense layers.

    Args:
        encoder: data to features `(n, encoder.out_features)`, a network of the critic's own; a
            :class:`~flexgen.networks.MLPEncoder` of no layers leaves the data, flattened.
        latent_dim: size d of a code.
        code_features: widths of layers over the code alone; none leaves the code.
        hidden_features: width of each layer over both.
        activation: name of the hidden activation in torch.nn.
        negative_slope: slope below zero of LeakyReLU; other activations ignore it.
        norm: null, "batch" or "layer", before each hidden activation. Batch norm ties the outputs
            of a batch together, which a gradient penalty per sample does not allow.
        dropout: share of the inputs of each dense layer that is left out in training.
        weight_std: standard deviation of normal initial weights, "he": √(2 / inputs of a unit);
            null keeps torch's.
        **labels: see :class:`~flexgen.networks.conditioning.ConditionalCritic`; "concatenation" is
            beside the features.

    Raises:
        ValueError: for a size that is not positive, an unknown activation or norm, or a share of
            dropout outside [0, 1).

    Source: Dumoulin et al., "Adversarially learned inference", 2017, appendix A: D(x), D(z) and
    D(x, z), with dropout 0.2 and without batch norm.
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: int,
        code_features: Sequence[int] = (),
        hidden_features: Sequence[int] = (256, 256),
        activation: str = "LeakyReLU",
        negative_slope: float = 0.2,
        norm: layers.Norm = None,
        dropout: float = 0.0,
        weight_std: layers.WeightStd = None,
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        check_integer("latent_dim", latent_dim)
        check_one_of("norm", norm, layers.NORMS)
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}; 0 turns it off")

        def dense(widths: Sequence[int]) -> nn.Sequential:
            net: list[nn.Module] = []
            for step in itertools.pairwise(widths):
                net += [nn.Dropout(dropout)] if dropout else []
                net += layers.dense(step, norm, activation, negative_slope)
            return nn.Sequential(*net)

        self.encoder = encoder
        codes = (latent_dim, *check_sizes("code_features", code_features))
        inputs = encoder.out_features + codes[-1] + self.labels_beside
        widths = (inputs, *check_sizes("hidden_features", hidden_features))
        self.of_codes, self.hidden = dense(codes), dense(widths)
        self.output = conditioning.Projection(widths[-1], self.labels_within)
        layers.draw_weights(self, weight_std)

    def forward(self, x: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Raw outputs `(n,)` of data `(n, *shape)` with codes `(n, latent_dim)`."""
        h = torch.cat([in_context(self.encoder, x, context), self.of_codes(z)], 1)
        h = conditioning.beside(h, context, self.labels_beside)
        logits: Tensor = self.output(self.hidden(h), context)
        return logits
