"""What a prior, a posterior, a likelihood, a network, an objective and a measurement are.

Each contract is an abstract class with defaults. A part that cannot do something says so by an
attribute; nobody asks for a class. Only :class:`~flexgen.priors.Staged` adapts distribution modules
that do not know these classes.
"""

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class Batch(NamedTuple):
    """Data, and what they are conditioned on.

    Args:
        x: `(n, *shape)`.
        context: labels `(n,)` long, or features `(n, c)`; None: not conditional.
    """

    x: Tensor
    context: Tensor | None = None

    @classmethod
    def of(cls, batch: Any, conditional: bool) -> "Batch":
        """What a data loader gives: a tensor, `(x, y)`, or a mapping with `x` and maybe `y`.

        If not `conditional`, y is left out.

        Raises:
            ValueError: for anything else, or if y is wanted and there is none.
        """
        if isinstance(batch, cls):
            x, y = batch
        elif isinstance(batch, Tensor):
            x, y = batch, None
        elif isinstance(batch, Mapping) and isinstance(batch.get("x"), Tensor):
            x, y = batch["x"], batch.get("y")
        elif isinstance(batch, Sequence) and len(batch) in (1, 2) and isinstance(batch[0], Tensor):
            x, y = batch[0], batch[1] if len(batch) == 2 else None
        else:
            raise ValueError(
                "a batch must be a tensor x, (x, y), or a dict with x and maybe y, got "
                f"{type(batch).__name__}; have the data set return one of these"
            )
        if conditional and y is None:
            raise ValueError(
                "a conditional model needs labels with its batches, got data alone; have the data "
                "set return (x, y), or build the networks without `num_classes`"
            )
        return cls(x, y if conditional else None)


class BatchStream(ABC):
    """Batches without end; it deliberately has neither `__iter__` nor `to`.

    Lightning walks through anything iterable to guess a batch size, which would never end, and
    moves what has a `to`.
    """

    @abstractmethod
    def __next__(self) -> Batch: ...


class StreamSource:
    """A data module whose `train_dataloader` gives a :class:`BatchStream`, again and again.

    Attributes:
        shape: of a datum.
        range: (low, high) of its values; None: any.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] | None

    @property
    def fingerprint(self) -> str | None:
        """A digest of the training data, by which a resumed run knows them again; or None."""
        return None

    def record(self) -> dict[str, Any]:
        """What is quick to find of all data, plain values, by which a run knows them again; or
        nothing."""
        return {}


def in_context(network: Callable[..., Any], x: Tensor, context: Tensor | None) -> Any:
    """`network(x, context)`; `network(x)` without a context, so that any plain module fits."""
    return network(x) if context is None else network(x, context)


class Generator(Protocol):
    """Codes `(n, latent_dim)`, and a context where it takes one, to data `(n, *shape)`."""

    def __call__(self, z: Tensor, context: Tensor | None = None) -> Tensor: ...


class Critic(Protocol):
    """A tuple that was played, data and maybe their context, to raw outputs `(n,)`."""

    def __call__(self, *played: Tensor) -> Tensor: ...


class Encoder(Protocol):
    """Data `(n, *shape)`, and a context where it takes one, to features `(n, out_features)`."""

    out_features: int

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor: ...


class Cost(enum.IntEnum):
    """What a density or a direction of a map costs: one pass, one step a coordinate, or it is not
    to be had."""

    PARALLEL = 0
    SEQUENTIAL = 1
    ABSENT = 2


Score = Callable[..., Tensor]
"""Codes `(n, d)`, and a context where there is one, to how real their data look, `(n,)`; higher is
more real."""


class BaseSpace(NamedTuple):
    """Where a prior f#p(ε) is simple.

    Args:
        prior: p(ε).
        to_code: f, ε `(n, base_dim)` to codes `(n, latent_dim)`, with gradient.
        from_code: its inverse; None where there is none.
        to_code_cost: of f.
    """

    prior: "Prior"
    to_code: Callable[[Tensor], Tensor]
    from_code: Callable[[Tensor], Tensor] | None
    to_code_cost: Cost = Cost.PARALLEL


class Draws(NamedTuple):
    """Of n codes that are draws of p(z|x), several of a datum.

    Args:
        datum: which datum each is of, `(n,)`. What a fit holds out shares none with what it learns
            from.
        log_prior: log p(z) of each under the prior they were drawn with, `(n,)`; None: not known.
    """

    datum: Tensor
    log_prior: Tensor | None = None

    def gain(self, log_prob: Tensor) -> Tensor:
        """log p(x) under another prior less that under the one of the draws, of each datum, nats.

        log p'(x) − log p(x) = log E p'(z)/p(z) over z ~ p(z|x), here a mean over the datum's draws,
        which on average lies below, the less the more draws there are.

        Args:
            log_prob: log p'(z) of each draw, `(n,)`.
        """
        assert self.log_prior is not None
        ratio = (log_prob - self.log_prior).double()
        _, which, count = self.datum.unique(return_inverse=True, return_counts=True)
        most = ratio.new_full(count.shape, -math.inf).scatter_reduce(0, which, ratio, "amax")
        total = ratio.new_zeros(count.shape).index_add(0, which, (ratio - most[which]).exp())
        return most + (total / count).log()


class Rung(NamedTuple):
    """A level of n codes, given the levels above it.

    Args:
        prior: p(z_l | z_{>l}), a batch of n, or one for all; event shape `(d_l,)`.
        features: what the levels above say to a posterior of this one, `(n, *feature_shape)`; None:
            nothing.
        state: what :meth:`Ladder.below` takes.
    """

    prior: Distribution
    features: Tensor | None
    state: Any


class Ladder(ABC):
    r"""$p(z) = \prod_l p(z_l | z_{>l})$, drawn from the highest level down.

    One pass carries a state down the levels, which have seen those above; only the ladder itself
    looks into it.

    Attributes:
        levels: the sizes of a code's levels, the lowest first.
        level_shapes: of each as its networks see it: `(d,)`, or `(channels, height, width)` of a
            map.
        feature_shapes: of each, that of a rung's features; None: it has none.
        is_normal: whether every level but the highest is a diagonal normal.
    """

    is_normal: bool = True
    levels: tuple[int, ...]
    level_shapes: tuple[tuple[int, ...], ...]
    feature_shapes: tuple[tuple[int, ...] | None, ...]

    @abstractmethod
    def start(self, n: int) -> Any:
        """The state above the highest level, of n codes."""

    @abstractmethod
    def rung(self, level: int, state: Any) -> Rung:
        """The level's distribution; `level` counts from 0, the lowest."""

    @abstractmethod
    def below(self, level: int, state: Any, z: Tensor) -> Any:
        """The state below a level at z `(n, d_l)`, from what its rung has as `state`."""


class Decodes(Ladder):
    """A ladder whose last state is a decoder's: data are made in the same pass."""

    @abstractmethod
    def output(self, state: Any) -> Tensor:
        """What a likelihood takes, `(n, *shape)`, of the state below the lowest level."""


Report = dict[str, float]
"""What a fit says of itself, by name."""


class _OverCodes(nn.Module):
    """A distribution over codes.

    Attributes:
        latent_dim: size d of a code.
        log_prob_cost: of the density of codes from outside; `Cost.ABSENT`: there is none, or none
            but that of its own draws.
        spherical: whether codes have length 1, and densities are against the sphere's area.
    """

    latent_dim: int
    spherical: bool = False
    log_prob_cost: Cost = Cost.PARALLEL

    @property
    def has_log_prob(self) -> bool:
        """Whether the density of codes from outside can be had, at whatever cost."""
        return self.log_prob_cost is not Cost.ABSENT


class Prior(_OverCodes):
    """p(z), or p(z|context): called, it returns a `torch.distributions.Distribution` over codes.

    Without a context the distribution has no batch shape and the event shape `(latent_dim,)`. A
    prior that takes a context returns a batch of them, one for each of its rows; one that does not
    ignores it.

    Attributes:
        normalised: whether `log_prob` is the logarithm of a density that integrates to 1. If not,
            the prior is trained by :meth:`cross_entropy`, and no likelihood is ever taken from it.
        support: the (low, high) box outside of which the density is 0; None: none.
        normal_scale: σ, where the prior is N(0, σ²I); else None.
        num_values: K, where codes are whole numbers 0 … K − 1 that are names and not amounts, and
            `log_prob` is of their probability; None: codes are real numbers.
        takes_context: whether it is another distribution for another context.
        levels: the sizes of a code's levels, the lowest first; (): it has none.
        learns: whether :meth:`fit` has anything to learn from codes.
        needs: what it must be bound to before a draw, of "score", "critic", "decoder", "posterior",
            "ladder" and "data".
        ladder: its levels one by one, from the top down; None: it has none.
        statistics: what it says of its last draw, by name; scalars.
        unmasked: the prior whose draws a score chooses from; None: no score chooses.
    """

    normalised: bool = True
    support: tuple[float, float] | None = None
    normal_scale: float | None = None
    num_values: int | None = None
    takes_context: bool = False
    levels: tuple[int, ...] = ()
    learns: bool = False
    statistics: Mapping[str, Tensor] = MappingProxyType({})
    unmasked: "Prior | None" = None

    @property
    def ladder(self) -> Ladder | None:
        return None

    def forward(self, context: Tensor | None = None) -> Distribution:
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """What the priors that this one is made of need, if it is made of any."""
        return frozenset[str]().union(*(prior.needs for prior in self._parts()))

    def bind(
        self, *, score: Score | None = None, critic: Callable[[Tensor], Tensor] | None = None,
        decoder: Callable[..., Tensor] | None = None, posterior: "Posterior | None" = None,
        ladder: Decodes | None = None, data: Callable[[int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Take what `needs` says of a model and its data; what is None is left as it was.

        Args:
            score: of codes, by a critic; called without gradient.
            critic: data `(n, *shape)` to the same critic's score of them, `(n,)`.
            decoder: codes, and a context where there is one, to data; differentiable.
            posterior: data to q(z|x), a module of the model's own.
            ladder: a decoder that draws its levels itself, a module of the model's own.
            data: a number n to n training data `(n, *shape)` at random, or all if there are fewer.
        """
        offers: dict[str, Any] = {
            "score": score, "critic": critic, "decoder": decoder, "posterior": posterior,
            "ladder": ladder, "data": data,
        }  # fmt: skip
        given = {name: offer for name, offer in offers.items() if offer is not None}
        for prior in self._parts():
            prior.bind(**given)

    def at(
        self, player: str, step: int, score: Score | None, context: Tensor | None = None
    ) -> Distribution:
        """What a training step draws from.

        Args:
            player: whose step it is, "critic" or "generator".
            step: generator steps before it.
            score: by the networks as they are in this step.
            context: of the codes, if the model is conditional.
        """
        distribution: Distribution = self(context)
        return distribution

    def draw(self, n: int, context: Tensor | None = None) -> Tensor:
        """Codes `(n, latent_dim)` without gradient, one for each of n rows of the context."""
        distribution: Distribution = self(context)
        with torch.no_grad():
            return distribution.sample(torch.Size() if distribution.batch_shape else (n,))

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """What training minimises over codes `(*batch, d)`: −log p(z) up to a constant, `(*batch)`.

        A prior whose density is not normalised returns what has the gradient of −log p(z) in its
        parameters and in z, such as E(z) − E(z') with draws z' of its own.
        """
        return -self(context).log_prob(z)

    def fit(
        self, codes: Tensor, *, context: Tensor | None = None, draws: Draws | None = None,
        seed: int = 0, progress: bool = False,
    ) -> Report:  # fmt: skip
        """Learn from codes, and freeze.

        Args:
            codes: `(n, latent_dim)`, finite.
            context: of each, where the prior takes one.
            draws: what there is to say of them as draws of p(z|x); None: each is of another datum.
            seed: of the draws; the global generators are restored.
            progress: whether to draw a progress bar.

        Returns:
            What the fit says of itself, by name; see each prior.

        Raises:
            ValueError: if there is nothing to learn, or for codes of another shape, too few, not
                finite, or all the same.
        """
        return self._fit(codes, context, draws, seed, progress)

    def _fit(
        self, codes: Tensor, context: Tensor | None, draws: Draws | None, seed: int, progress: bool
    ) -> Report:
        """What :meth:`fit` does; a prior that learns has its own."""
        raise ValueError(
            f"a {self.kind} prior has nothing to learn from codes; refit with prior=mixture, "
            "pushforward or realnvp"
        )

    @property
    def kind(self) -> str:
        """The name of its class, for messages."""
        return type(self).__name__

    def base_space(self) -> BaseSpace:
        """The space of the simple prior that this one is a map of; by default its own."""
        return BaseSpace(self, lambda eps: eps, lambda z: z)

    def _parts(self) -> "list[Prior]":
        children = self.children()
        lists = [child if isinstance(child, nn.ModuleList) else [child] for child in children]
        return [part for parts in lists for part in parts if isinstance(part, Prior)]


class Posterior(_OverCodes):
    """q(z|x), or q(z|x, context): called, it returns a distribution with `batch_shape = (n,)`.

    The distribution has the event shape `(latent_dim,)` and `rsample_and_log_prob(sample_shape)`, a
    draw and its log-density in one pass, which is what a bound needs and the only cheap way to the
    density of an inverse autoregressive flow.

    Attributes:
        is_point: whether q(z|x) is one code, which has no density: no bound is made of it.
        shares_prior: whether it walks the networks of the prior that it is bound to.
    """

    is_point: bool = False
    shares_prior: bool = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        raise NotImplementedError

    def bind(self, *, prior: Prior) -> None:
        """Take what it needs of the prior that a model starts with; default: nothing.

        Raises:
            ValueError: if the prior does not have it.
        """


class Likelihood(nn.Module):
    """p(x|z), or p(x|z, context): codes `(*batch, latent_dim)` to a distribution over data.

    The distribution has `batch_shape = batch` and `event_shape = shape` of one datum; models ask it
    for `log_prob`, for `sample`, and for `mean` where there is one.

    Attributes:
        has_mean: whether the distribution has a `mean` that is a differentiable function of z. If
            not, a picture of a code is a draw, and nothing can be reversed.
        has_mass: whether pixels have probabilities; else a density.
        data_range: the range that data must have; None: any.
        ladder: its decoder, where that draws a code's levels itself.
    """

    has_mean: bool = True
    has_mass: bool = False
    data_range: tuple[float, float] | None = None

    @property
    def ladder(self) -> Decodes | None:
        return None

    def forward(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        raise NotImplementedError

    def of(self, out: Tensor, event_dims: int) -> Distribution:
        """The distribution that its decoder's output `(*batch, *event)` means, where it has one.

        Args:
            out: what a decoder makes of codes.
            event_dims: how many of its dimensions are of one datum.
        """
        raise NotImplementedError

    def check_data(self, x: Tensor) -> None:
        """Refuse data whose values this is no likelihood of, by a few of them, `(n, *shape)`.

        Raises:
            ValueError: if it is none; it names the remedy.
        """


class Density(nn.Module):
    """p(x), or p(x|context): called, it returns a distribution over data, with a `log_prob`.

    Without a context the distribution has no batch shape and the event shape `shape` of a datum;
    with one it is a batch of them, one for each of its rows.

    Attributes:
        has_mass: whether data have probabilities; else a density.
        data_range: the range that data must have; None: any.
    """

    has_mass: bool = False
    data_range: tuple[float, float] | None = None

    def forward(self, context: Tensor | None = None) -> Distribution:
        raise NotImplementedError

    def check_data(self, x: Tensor) -> None:
        """Refuse data whose values this is no distribution of, by a few of them, `(n, *shape)`.

        Raises:
            ValueError: if it is none; it names the remedy.
        """


class PixelOutput(ABC):
    """What the parameters that a pixel network gives mean: a distribution of a pixel's channels.

    Attributes:
        together: whether one set of parameters is of all channels of a pixel, whose order is the
            output's own affair; else each channel has its own set, by a network that sees the
            channels before it.
        data_range: the range of the data; None: any.
        has_mass: whether values have probabilities; else a density.
        num_values: K, where data are whole numbers 0 … K − 1 that are names; None: amounts.
    """

    together: bool = False
    data_range: tuple[float, float] | None
    has_mass: bool = True
    num_values: int | None = None

    def num_seen(self, channels: int) -> int:
        """How many channels the network sees of so many of the data."""
        return channels

    @abstractmethod
    def num_parameters(self, channels: int) -> int:
        """How many parameters a set has that is of so many channels."""

    @abstractmethod
    def num_uniforms(self, channels: int) -> int:
        """How many uniform numbers a draw of so many channels takes."""

    @abstractmethod
    def seen(self, x: Tensor) -> Tensor:
        """Data `(n, channels, *rest)` as the network sees them, `(n, num_seen, *rest)`."""

    @abstractmethod
    def data(self, seen: Tensor) -> Tensor:
        """The data of what is :meth:`seen`."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p, nats, `(n, *rest)`, of channels x `(n, channels, *rest)` together.

        Args:
            parameters: `(n, num_parameters, *rest)`.
            x: the channels of one set.
        """

    @abstractmethod
    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        """Draw channels, as the network sees them.

        Args:
            parameters: `(n, num_parameters)`.
            noise: `(n, num_uniforms)`, what :meth:`noise` made of numbers from U[0, 1).
            out: where they go, `(n, num_seen)`.
        """

    def noise(self, uniform: Tensor) -> Tensor:
        """What :meth:`draw` takes, of all numbers `(*rest, num_uniforms)`; default: themselves."""
        return uniform

    @abstractmethod
    def check_data(self, x: Tensor) -> None:
        """Refuse data whose values this is no distribution of, by a few of them, `(n, *shape)`.

        Raises:
            ValueError: if it is none; it names the remedy.
        """


class Objective(ABC):
    """An adversarial game: what critic and generator minimise, of raw outputs ("logits") `(n,)`.

    Attributes:
        clip: bound of each of the critic's weights after each of its steps; None: no clipping.
        penalty_weight: of the gradient penalty in the critic's loss; 0: none.
    """

    clip: float | None = None
    penalty_weight: float = 0.0

    @abstractmethod
    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The scalar that the critic minimises."""

    @abstractmethod
    def generator(self, fake_logits: Tensor) -> Tensor:
        """The scalar that the generator minimises."""

    def encoder(self, real_logits: Tensor) -> Tensor:
        """The scalar that an encoder minimises, whose codes go with the real data.

        It is the generator's side of the game in which real and fake have changed places, as their
        logits have the sign; by default −`real_logits` are what the generator is given.
        """
        return self.generator(-real_logits)

    def score(self, logits: Tensor) -> Tensor:
        """How real the critic finds each, `(n,)`; by default the logit itself."""
        return logits


class Regulariser(nn.Module):
    """What an autoencoder minimises beside its reconstruction, nats per datum.

    Its parameters, if it has any, learn with the encoder and the decoder.
    """

    def prepare(self, likelihood: Likelihood) -> None:
        """Take the decoder before training; default: nothing.

        Raises:
            ValueError: if it does not have what is needed of it.
        """

    def forward(
        self, z: Tensor, drawn: Tensor, likelihood: Likelihood, context: Tensor | None
    ) -> Tensor:
        """The term, `()`.

        Args:
            z: codes of a batch, `(n, latent_dim)`.
            drawn: as many draws from the prior, without gradient.
            likelihood: codes to p(x|z).
            context: of each code, where the model is conditional.
        """
        raise NotImplementedError


class Measurement(ABC):
    """Measures a model on data; draws from the global generators as it likes.

    Attributes:
        needs: the capabilities of model and data without which it is refused before training; see
            `capabilities` of :class:`~flexgen.training.Loop` and its heirs, and "labels" of data.
        together: whether all processes of a run call :meth:`measure` alike, which then shares its
            work out; else process zero measures alone.
    """

    needs: tuple[str, ...] = ()
    together: bool = False

    @abstractmethod
    def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        """Values by name; pictures and codes go below the run's folder."""
