"""Approximate posteriors q(z|x); what they are, :class:`flexgen.contracts.Posterior` says."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from flexgen.checks import check_integer, check_positive, check_sizes
from flexgen.contracts import Cost, Encoder, Ladder, Posterior, Prior, in_context
from flexgen.directional import Directions, PowerSpherical, VonMisesFisher
from flexgen.distributions import DiagonalNormal, LowerNormal, Point, Shape, Vectors, normal_of
from flexgen.flows import FlowDistribution, Transform
from flexgen.networks import layers


class DiagonalGaussian(Posterior):
    """q(z|x) = N(loc(x), diag(scale(x)²)).

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 1.
        log_scale: where log scale(x) starts, about.

    Source: Kingma & Welling, "Auto-encoding variational Bayes", 2014.
    """

    def __init__(self, encoder: Encoder, latent_dim: int, *, log_scale: float = 0.0) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        self.encoder, self.latent_dim = encoder, latent_dim
        self.head = nn.Linear(_out_features(encoder), 2 * latent_dim)
        self.head.bias.data[latent_dim:] += log_scale

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalNormal:
        return self.of(in_context(self.encoder, x, context))

    def of(self, h: Tensor) -> DiagonalNormal:
        """q(z|x) from the encoder's features `(n, out_features)`."""
        return normal_of(*self.head(h).chunk(2, dim=-1))


class _OverDirections(Posterior):
    """q(z|x) over directions, |z| = 1, around a mean direction of x with a concentration of x."""

    spherical = True
    of: type[Directions]

    def __init__(self, encoder: Encoder, latent_dim: int, *, concentration: float = 50.0) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 2, "set `latent_dim=20`")
        check_positive("concentration", concentration, "set `posterior.concentration=50`")
        self.encoder, self.latent_dim = encoder, latent_dim
        self.head = nn.Linear(_out_features(encoder), latent_dim + 1)
        self.head.bias.data[-1] += concentration

    def forward(self, x: Tensor, context: Tensor | None = None) -> Directions:
        out = self.head(in_context(self.encoder, x, context)).float()
        return self.of(normalize(out[:, :-1], dim=1), softplus(out[:, -1]))


class PowerSphericalPosterior(_OverDirections):
    """q(z|x) over directions, |z| = 1: power spherical, its mean and concentration of x.

    Its prior is `prior=hyperspherical`, to which the KL is in closed form, or a mixture: of such
    posteriors, vamp, or one fitted afterwards, spherical_mixture.

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 2; directions in d dimensions.
        concentration: where κ(x) starts, about, above 0.

    Source: De Cao & Aziz, "The power spherical distribution", 2020; in the place of von
    Mises-Fisher in Davidson et al., "Hyperspherical variational auto-encoders", 2018, section 3.
    """

    of = PowerSpherical


class VonMisesFisherPosterior(_OverDirections):
    """q(z|x) over directions, |z| = 1: von Mises-Fisher, its mean and concentration of x.

    What :class:`PowerSphericalPosterior` says of priors holds here.

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 2; directions in d dimensions.
        concentration: where κ(x) starts, about, above 0.

    Source: Davidson et al., "Hyperspherical variational auto-encoders", 2018, section 3.
    Departure: another gradient of draws, see :class:`~flexgen.directional.VonMisesFisher`.
    """

    of = VonMisesFisher


class Deterministic(Posterior):
    """z = E(x): all mass at one code, as a BiGAN's encoder has it; an adversarial game takes it.

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, at least 1.

    Source: Donahue, Krähenbühl & Darrell, "Adversarial feature learning", 2017, section 3.
    """

    is_point, log_prob_cost = True, Cost.ABSENT

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1, "set `latent_dim=20`")
        self.encoder, self.latent_dim = encoder, latent_dim
        self.head = nn.Linear(_out_features(encoder), latent_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Point:
        return Point(self.head(in_context(self.encoder, x, context)))


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


class LevelDraws(NamedTuple):
    """Draws z of a posterior of L levels, and what the pass that drew them found.

    Args:
        z: `(*batch, d)`.
        log_q: log q of each level given those before it, `(*batch, L)`, nats.
        log_p: log p(z_l | z_{>l}) by the ladder that the pass went down, `(*batch, L)`; None: it
            went up.
        kl: of each level, `(*batch, L)`: in closed form where both are diagonal normals, else
            log_q − log_p.
        state: the ladder's, below the lowest level.
    """

    z: Tensor
    log_q: Tensor
    log_p: Tensor | None = None
    kl: Tensor | None = None
    state: Any = None


Walk = Callable[[int, Sequence[Tensor] | None], LevelDraws]


class LevelwiseDistribution(Vectors):
    """q(z|x) of a batch of n data, one level after the other.

    Args:
        n: data.
        levels: the sizes, the lowest first.
        walk: a number of copies m, and `(m · n, d_l)` of each level or None for draws, to what a
            pass finds of so many rows.
        ladder: which the pass goes down; None: it goes up.
    """

    def __init__(self, n: int, levels: Sequence[int], walk: Walk, ladder: Ladder | None) -> None:
        self.levels, self.walk, self.ladder = list(levels), walk, ladder
        super().__init__((n,), sum(levels))

    def draw(self, sample_shape: Shape = ()) -> LevelDraws:
        """Draws, `(*sample_shape, n)` of them."""
        shape = *sample_shape, *self._batch_shape
        z, log_q, log_p, kl, state = self.walk(math.prod(sample_shape), None)
        log_p, kl = (None if each is None else each.view(*shape, -1) for each in (log_p, kl))
        return LevelDraws(z.view(*shape, -1), log_q.view(*shape, -1), log_p, kl, state)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.draw(sample_shape).z

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, in one pass."""
        found = self.draw(sample_shape)
        return found.z, found.log_q.sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self._batch_shape)
        rows = value.expand(*shape, -1).reshape(-1, *self._event_shape)
        copies = len(rows) // self._batch_shape[0]
        return self.walk(copies, rows.split(self.levels, -1)).log_q.sum(-1).view(shape)


class _OfLevels(Posterior):
    """What posteriors of levels share: each level's normal, or a flow on one, of network outputs.

    The prior that a model starts with says which levels there are, when it is bound.
    """

    def __init__(
        self, encoder: Encoder, latent_dim: int, *,
        flow: Callable[..., Transform] | None = None, flow_levels: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.latent_dim = encoder, check_integer("latent_dim", latent_dim)
        self.out_features = _out_features(encoder)
        if flow is not None and not callable(flow):
            raise ValueError(
                f"`flow` must make a flow of a size, got {flow}; set `posterior.flow=null` for "
                "none, or use posterior=bidirectional_iaf"
            )
        self._flow = flow
        self._flow_levels = None if flow_levels is None else check_sizes("flow_levels", flow_levels)
        self.levels: tuple[int, ...] = ()
        self.flows = nn.ModuleDict()

    def _outputs(self, levels: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[int]:
        """Take the levels and their flows; how many outputs, or maps of them, each level needs."""
        if sum(levels) != self.latent_dim:
            raise ValueError(
                f"the prior's levels {list(levels)} must add up to the posterior's `latent_dim` "
                f"{self.latent_dim}; set `latent_dim={sum(levels)}`"
            )
        self.levels, self._channels = tuple(levels), [shape[0] for shape in shapes]
        chosen = range(1, len(levels) + 1) if self._flow_levels is None else self._flow_levels
        if max(chosen, default=0) > len(levels):
            raise ValueError(
                f"`flow_levels` must be of 1 to {len(levels)}, 1 the lowest, got {list(chosen)}; "
                "set `posterior.flow_levels=null` for all"
            )
        outputs = [2 * channels for channels in self._channels]
        for level in chosen if self._flow is not None else ():
            assert self._flow is not None
            shape = shapes[level - 1]
            flow = self._flow(shape if len(shape) > 1 else shape[0])
            self.flows[str(level - 1)] = flow
            self.log_prob_cost = max(self.log_prob_cost, flow.inverse_cost)
            outputs[level - 1] += flow.context_features // math.prod(shape[1:])
        return outputs

    def _of(self, level: int, out: Tensor) -> DiagonalNormal | FlowDistribution:
        """q of a level from a network's outputs, `(rows, outputs)` or maps."""
        channels = self._channels[level]
        loc, log_scale = out[:, :channels], out[:, channels : 2 * channels]
        base = normal_of(loc.flatten(1), log_scale.flatten(1))
        if str(level) not in self.flows:
            return base
        context = out[:, 2 * channels :].flatten(1)
        return FlowDistribution(base, self.flows[str(level)], context if context.numel() else None)  # type: ignore[arg-type]


class BottomUp(_OfLevels):
    r"""$q(z|x) = q(z_1|x) \prod_l q(z_{l+1}|z_l, x)$: the lowest level first.

    Each level is a diagonal normal of a network of the data's features and the level below, or a
    flow on one. It shares nothing with the prior. Without features of the data above the lowest
    level it is the Markov chain q(z_1|x) ∏ q(z_{l+1}|z_l) of hierarchical ALI.

    Args:
        encoder: data `(n, *shape)` to features `(n, encoder.out_features)`.
        latent_dim: d, of all levels.
        flow: a size to a flow of that many numbers, with or without a context, e.g. a
            `functools.partial`; null: none.
        flow_levels: which levels have one, 1 the lowest; null: all.
        hidden_features: of each level's network but the lowest, in each hidden layer.
        sees_data: whether the levels above the lowest see the data's features too.
        log_scale: where the logarithm of each scale starts, about.
        constant_scale: whether scales are parameters, the same for all data. As functions of x they
            grow within a few hundred steps of an adversarial game to where a code says little of x.

    Raises:
        ValueError: for a size out of range; when it is bound, for a prior without levels, or of
            another size, and for a level that is none.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    section 2 (the ordering of levels); Sønderby et al., "Ladder variational autoencoders", 2016,
    eq. 3 to 6 (departure: each level sees the data's features too); Belghazi et al., "Hierarchical
    adversarially learned inference", 2018, eq. 2 (without them).
    """

    def __init__(
        self, encoder: Encoder, latent_dim: int, *, hidden_features: Sequence[int] = (100,),
        sees_data: bool = True, log_scale: float = 0.0, constant_scale: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(encoder, latent_dim, **options)
        self.hidden_features = check_sizes("hidden_features", hidden_features)
        self.sees_data = sees_data
        self.log_scale, self.constant_scale = log_scale, constant_scale
        self.networks, self.log_scales = nn.ModuleList(), nn.ParameterList()

    def bind(self, *, prior: Prior) -> None:
        if self.networks:
            return
        if not prior.levels:
            raise ValueError(_without_levels("bottom_up", prior))
        outputs = self._outputs(prior.levels, [(size,) for size in prior.levels])
        for level, (size, features) in enumerate(zip(self.levels, outputs, strict=True)):
            seen = self.out_features if self.sees_data or not level else 0
            below = self.levels[level - 1] if level else 0
            widths = (seen + below, *(self.hidden_features if level else ()))
            last = nn.Linear(widths[-1], features - size * self.constant_scale)
            if self.constant_scale:
                self.log_scales.append(torch.full((size,), float(self.log_scale)))
            else:
                last.bias.data[size : 2 * size] += self.log_scale
            self.networks.append(nn.Sequential(*layers.dense(widths, None, "ReLU", 0.0), last))

    def forward(self, x: Tensor, context: Tensor | None = None) -> LevelwiseDistribution:
        h = in_context(self.encoder, x, context)

        def walk(copies: int, values: Sequence[Tensor] | None) -> LevelDraws:
            rows = _copied(h, copies)
            z: list[Tensor] = []
            log_q = []
            for level, network in enumerate(self.networks):
                seen = [rows] if self.sees_data or not level else []
                out = network(torch.cat([*seen, *z[-1:]], 1))
                if self.constant_scale:
                    size, log_scale = self.levels[level], self.log_scales[level]
                    parts = out[:, :size], log_scale.expand(len(out), -1), out[:, size:]
                    out = torch.cat(parts, 1)
                q = self._of(level, out)
                own, log_prob = _drawn(q, None if values is None else values[level])
                z.append(own)
                log_q.append(log_prob)
            return LevelDraws(torch.cat(z, 1), torch.stack(log_q, 1))

        return LevelwiseDistribution(len(x), self.levels, walk, None)


class Bidirectional(_OfLevels):
    r"""$q(z|x) = \prod_l q(z_l|z_{>l}, x)$: up to features of data, then down the prior's levels.

    The pass down is the prior's own ladder, which has seen the levels above. A level's normal is
    the sum of what the data's features say and what the ladder does. One pass gives draws, both
    log-densities and, where the ladder is the decoder's, what it makes of the draws.

    Args:
        encoder: data to features `(n, out_features)`, all of which each level sees; of levels that
            are maps, as many maps of each as the ladder's own, the lowest level first.
        latent_dim: d, of all levels.
        flow: the size of a level, or its shape if that is a map, to a flow, with or without a
            context; null: none.
        flow_levels: which levels have one, 1 the lowest; null: all.
        weight_norm: whether its own layers' weights are a direction and a length for each output.

    Raises:
        ValueError: for a size out of range; when it is bound, for a prior without a ladder, or of
            another size, for features that are not those of its maps, and for a level that is none.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    figure 3 and appendix (ResNet VAE); Sønderby et al., "Ladder variational autoencoders", 2016.
    Departure: the two are added, as in the first, where the second weighs them by their precision.
    """

    shares_prior = True

    def __init__(
        self, encoder: Encoder, latent_dim: int, *, weight_norm: bool = False, **options: Any
    ) -> None:
        super().__init__(encoder, latent_dim, **options)
        self.weight_norm = weight_norm
        self.up, self.down = nn.ModuleList(), nn.ModuleDict()
        # In a tuple: the ladder is the prior's or the decoder's, saved and trained there.
        self._ladder: tuple[Ladder] | None = None

    def bind(self, *, prior: Prior) -> None:
        if self._ladder is not None:
            return
        if (ladder := prior.ladder) is None:
            raise ValueError(_without_levels("bidirectional", prior))
        outputs = self._outputs(ladder.levels, ladder.level_shapes)
        self._maps = len(ladder.level_shapes[0]) > 1
        self._shapes = [shape or () for shape in ladder.feature_shapes]
        if self._maps and self.out_features != (size := sum(map(math.prod, self._shapes))):
            raise ValueError(
                f"the encoder must give maps {self._shapes}, {size} numbers, got "
                f"{self.out_features}; give encoder and decoder the same sizes"
            )
        for level, (shape, out) in enumerate(zip(self._shapes, outputs, strict=True)):
            if self._maps:
                self.up.append(nn.Conv2d(shape[0], out, 3, padding=1))
                self.down[str(level)] = nn.Conv2d(shape[0], out, 3, padding=1)
            else:
                self.up.append(nn.Linear(self.out_features, out))
                if shape:
                    self.down[str(level)] = nn.Linear(shape[0], out, bias=False)
        if self.weight_norm:
            for module in (self.up, self.down, self.flows):
                layers.normalise_weights(module)
        self._ladder = (ladder,)

    def forward(self, x: Tensor, context: Tensor | None = None) -> LevelwiseDistribution:
        assert self._ladder is not None, "a posterior of levels is bound to a prior by its model"
        (ladder,) = self._ladder
        h = in_context(self.encoder, x, context)
        each = [h] * len(self.up)
        if self._maps:
            parts = h.split([math.prod(shape) for shape in self._shapes], 1)
            each = [part.unflatten(1, s) for part, s in zip(parts, self._shapes, strict=True)]
        ups = [head(part) for head, part in zip(self.up, each, strict=True)]

        def walk(copies: int, values: Sequence[Tensor] | None) -> LevelDraws:
            state = ladder.start(copies * len(x))
            found: list[tuple[Tensor, ...]] = []
            for level in reversed(range(len(ups))):
                prior, features, kept = ladder.rung(level, state)
                out = _copied(ups[level], copies)
                if str(level) in self.down:
                    out = out + self.down[str(level)](features)
                q = self._of(level, out)
                z, log_q = _drawn(q, None if values is None else values[level])
                log_p = prior.log_prob(z)
                kl = log_q - log_p
                if isinstance(q, DiagonalNormal) and isinstance(prior, DiagonalNormal):
                    kl = q.kl(prior).sum(-1)
                found.insert(0, (z, log_q, log_p, kl))
                state = ladder.below(level, kept, z)
            drawn, *terms = zip(*found, strict=True)
            log_q, log_p, kl = (torch.stack(term, 1) for term in terms)
            return LevelDraws(torch.cat(drawn, 1), log_q, log_p, kl, state)

        return LevelwiseDistribution(len(x), self.levels, walk, ladder)


def _copied(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else rows.expand(copies, *rows.shape).flatten(0, 1)


def _drawn(q: DiagonalNormal | FlowDistribution, value: Tensor | None) -> tuple[Tensor, Tensor]:
    return q.rsample_and_log_prob() if value is None else (value, q.log_prob(value))


def _without_levels(name: str, prior: Prior) -> str:
    return (
        f"posterior={name} is of the levels of a prior, and a {type(prior).__name__} prior has "
        "none; use prior=hierarchical, or prior=top_down with network=resnet_vae"
    )


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
