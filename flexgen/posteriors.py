"""Approximate posteriors q(z|x); what they are, :class:`flexgen.contracts.Posterior` says."""

import torch
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.contracts import Encoder, Posterior, in_context
from flexgen.distributions import DiagonalNormal, LowerNormal
from flexgen.flows import FlowDistribution, Transform

# A scale that overflows, or is 0, makes the first steps of a deep encoder NaN.
_LOG_SCALE = 10.0


class DiagonalGaussian(Posterior):
    """q(z|x) = N(loc(x), diag(scale(x)²)).

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 1.

    Source: Kingma & Welling, "Auto-encoding variational Bayes", 2014.
    """

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        self.encoder, self.latent_dim = encoder, latent_dim
        self.head = nn.Linear(_out_features(encoder), 2 * latent_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalNormal:
        return self.of(in_context(self.encoder, x, context))

    def of(self, h: Tensor) -> DiagonalNormal:
        """q(z|x) from the encoder's features `(n, out_features)`."""
        # Under autocast a log-density of 50 terms in half precision has a grain of half a nat.
        out = self.head(h)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        loc, log_scale = out.chunk(2, dim=-1)
        return DiagonalNormal(loc, log_scale.clamp(-_LOG_SCALE, _LOG_SCALE).exp())


class FullGaussian(DiagonalGaussian):
    """q(z|x) with a full covariance: z = loc + L y, y ~ N(0, diag(scale²)), L unit lower triangle.

    An inverse autoregressive step that is linear; loc, scale and L are functions of x, and L starts
    as the identity.

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 1.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    section 4 (linear IAF).
    """

    index: Tensor

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__(encoder, latent_dim)
        index = torch.tril_indices(latent_dim, latent_dim, -1)
        self.register_buffer("index", index, persistent=False)
        self.below = nn.Linear(self.head.in_features, index.shape[1])
        nn.init.zeros_(self.below.weight)
        nn.init.zeros_(self.below.bias)

    def of(self, h: Tensor) -> LowerNormal:  # type: ignore[override]
        diagonal = super().of(h)
        eye = torch.eye(self.latent_dim, device=h.device, dtype=diagonal.loc.dtype)
        lower = eye.expand(len(h), -1, -1).clone()
        lower[:, self.index[0], self.index[1]] = self.below(h).to(lower.dtype)
        return LowerNormal(diagonal.loc, diagonal.scale, lower)


class FlowPosterior(DiagonalGaussian):
    r"""q(z|x): a diagonal Gaussian z₀ of x, carried through a flow g that sees x as its context.

    .. math:: \log q(z|x) = \log q(z_0|x) − \log|\det ∂g/∂z_0|

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        flow: g, with `context_features` above 0 or without a context, when it is the same for
            all data.
        latent_dim: d, at least 1.

    Source: Rezende & Mohamed, 2015, eq. 13; Kingma et al., 2016, Algorithm 1 (IAF); Huang et al.,
    2017, eq. 5 (LED).
    """

    def __init__(self, encoder: Encoder, flow: Transform, latent_dim: int) -> None:
        super().__init__(encoder, latent_dim)
        if flow.features != latent_dim:
            raise ValueError(
                f"`flow.features` must equal `latent_dim` {latent_dim}, got {flow.features}; leave "
                "it to the configuration"
            )
        self.flow, self.log_prob_cost = flow, flow.inverse_cost
        features = flow.context_features
        self.to_context = nn.Linear(self.head.in_features, features) if features else None

    def of(self, h: Tensor) -> FlowDistribution:  # type: ignore[override]
        context = None if self.to_context is None else self.to_context(h)
        return FlowDistribution(super().of(h), self.flow, context)


def _out_features(encoder: Encoder) -> int:
    try:
        features = encoder.out_features
    except AttributeError:
        features = None
    if not isinstance(features, int):
        raise ValueError(
            f"`encoder` must have the size of its features as `out_features`, got "
            f"{type(encoder).__name__} without; give it that attribute"
        )
    return features
