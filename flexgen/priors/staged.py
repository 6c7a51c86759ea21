"""The priors of a run, in order, and which of them is in use; the one adapter of foreign ones."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen.contracts import BaseSpace, Cost, Prior, Score
from flexgen.priors.fitting import maximise_likelihood


def as_prior(module: nn.Module) -> Prior:
    """`module` itself if it is a :class:`~flexgen.contracts.Prior`, else adapted to one.

    Raises:
        ValueError: if it is neither, nor returns a distribution over vectors when called.
    """
    return module if isinstance(module, Prior) else _Foreign(module)


class _Foreign(Prior):
    """A distribution module that does not know the contract: a zuko flow, ten lines of a user's.

    What it has of the contract is taken from it, the rest are the contract's defaults. One with
    parameters and a density learns from codes by maximum likelihood.

    Args:
        module: called, returns a distribution with the event shape `(latent_dim,)`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # Called once, to see what it is; the caller's draws stay what they were.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                distribution = module()
                z = distribution.sample()
            except TypeError as error:
                raise ValueError(
                    f"a prior must return a distribution over codes when it is called, got "
                    f"{type(module).__name__}, which does not ({error}); give it a `forward()`"
                ) from error
            if len(z.shape) != 1 or len(distribution.event_shape) != 1:
                batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
                raise ValueError(
                    "a prior's event shape must be (latent_dim,) and its batch shape (), got "
                    f"{event} and {batch} of {type(module).__name__}; wrap the distribution: "
                    "torch.distributions.Independent(distribution, 1)"
                )
            try:
                distribution.log_prob(z)
            except NotImplementedError:
                self.log_prob_cost = Cost.ABSENT
        self.latent_dim = len(z)
        for name in (
            "log_prob_cost", "normalised", "spherical", "support", "normal_scale", "num_values",
            "takes_context",
        ):  # fmt: skip
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        has_weights = next(module.parameters(), None) is not None
        self.learns = hasattr(module, "fit") or (has_weights and self.has_log_prob)

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    def forward(self, context: Tensor | None = None) -> Distribution:
        distribution: Distribution = self.module(context) if self.takes_context else self.module()
        return distribution

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(getattr(self.module, "needs", ()))

    def bind(self, **offers: Any) -> None:
        if hasattr(self.module, "bind"):
            self.module.bind(**offers)  # type: ignore[operator]

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        own = getattr(self.module, "cross_entropy", super().cross_entropy)
        loss: Tensor = own(z, context)
        return loss

    def fit(self, codes: Tensor, **options: Any) -> dict[str, float]:
        if not self.learns:
            return super().fit(codes, **options)
        if not self.takes_context:
            options.pop("context", None)
        if hasattr(self.module, "fit"):
            options.pop("draws", None)
            found: dict[str, float] = self.module.fit(codes, **options)  # type: ignore[operator]
            return found
        return maximise_likelihood(self, codes, **options)

    def base_space(self) -> BaseSpace:
        own: Callable[[], BaseSpace] = getattr(self.module, "base_space", super().base_space)
        return own()


def _of_current(name: str) -> Any:
    return property(lambda staged: getattr(staged.current, name))


class Staged(Prior):
    """Holds every prior that a run will use, so a refit never changes the keys of a checkpoint.

    Stage 0 is the prior that training starts with; each refit fills the next stage and, if its
    prior is kept, makes it the one in use. "A PGAN of a PGAN" is one stage more. What the contract
    asks of it is answered by the stage in use.

    Args:
        stages: the priors in order, all of the same `latent_dim`; a distribution module that is no
            :class:`~flexgen.contracts.Prior` is adapted.

    Raises:
        ValueError: for no stages, or stages of different sizes.
    """

    stage: Tensor
    log_prob_cost = _of_current("log_prob_cost")
    normalised = _of_current("normalised")
    spherical = _of_current("spherical")
    support = _of_current("support")
    normal_scale = _of_current("normal_scale")
    num_values = _of_current("num_values")
    takes_context = _of_current("takes_context")
    levels = _of_current("levels")
    statistics = _of_current("statistics")

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(as_prior(stage) for stage in stages)
        if not self.stages:
            raise ValueError("`stages` must hold at least one prior, got none")
        first, *others = self._parts()
        self.latent_dim = first.latent_dim
        for prior in others:
            self._check(prior)
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        # The buffer is what a checkpoint keeps; reading it on a GPU would wait for the device at
        # every draw, so the index in use is mirrored on the host.
        self._in_use = 0

    def __getitem__(self, stage: int) -> Prior:
        prior = self.stages[stage]
        assert isinstance(prior, Prior)
        return prior

    def append(self, prior: nn.Module) -> int:
        """Add a prior after the last stage and return its index; it is not yet in use."""
        prior = as_prior(prior)
        self._check(prior)
        self.stages.append(prior.to(self.stage.device))
        return len(self.stages) - 1

    def use(self, stage: int) -> None:
        """Make stage `stage` the prior that draws come from.

        Raises:
            IndexError: if there is no such stage.
        """
        if not 0 <= stage < len(self.stages):
            raise IndexError(f"`stage` must be in [0, {len(self.stages) - 1}], got {stage}")
        self._in_use = stage
        self.stage.fill_(stage)

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def current(self) -> Prior:
        return self[self._in_use]

    def forward(self, context: Tensor | None = None) -> Distribution:
        distribution: Distribution = self.stages[self._in_use](context)
        return distribution

    def at(
        self, player: str, step: int, score: Score | None, context: Tensor | None = None
    ) -> Distribution:
        return self.current.at(player, step, score, context)

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.current.cross_entropy(z, context)

    def base_space(self) -> BaseSpace:
        return self.current.base_space()

    def _check(self, prior: Prior) -> None:
        if prior.latent_dim != self.latent_dim:
            raise ValueError(
                f"every stage must have the event shape ({self.latent_dim},) of the first, got "
                f"({prior.latent_dim},); give each prior the same `latent_dim`"
            )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._in_use = int(self.stage)


def base_codes(prior: Prior, z: Tensor) -> Tensor | None:
    """Codes `(n, d)` in the prior's base space, in units in which N(0, I) stands there.

    None where no normal does, or the map has no inverse.
    """
    space = prior.base_space()
    if space.from_code is None or (scale := space.prior.normal_scale) is None:
        return None
    return space.from_code(z) / scale
