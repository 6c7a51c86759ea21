"""The priors of a run, in order, and which of them is in use."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["Staged", "event_dim"]


def event_dim(prior: nn.Module) -> int:
    """The latent dimension of any prior, one of zuko's too, from the distribution it returns.

    Raises:
        ValueError: if its event is not a vector.
    """
    shape = tuple(prior().event_shape)
    if len(shape) != 1:
        raise ValueError(
            f"a prior's event shape must be (latent_dim,), got {shape}; "
            "wrap the distribution in `torch.distributions.Independent`"
        )
    return shape[0]


class Staged(nn.Module):
    """Holds every prior that a run will use, so a refit never changes the keys of a checkpoint.

    Stage 0 is the prior that training starts with; each refit fills the next stage and, if its
    prior is kept, makes it the one in use. "A PGAN of a PGAN" is one stage more.

    Args:
        stages: the priors in order, all with the same event shape.

    Raises:
        ValueError: for no stages, or stages of different event shapes.
    """

    stage: Tensor

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        if not self.stages:
            raise ValueError("`stages` must hold at least one prior, got none")
        self.latent_dim = event_dim(self.stages[0])
        for prior in self.stages[1:]:
            self._check(prior)
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        # The buffer is what a checkpoint keeps; reading it on a GPU would wait for the device at
        # every draw, so the index in use is mirrored on the host.
        self._in_use = 0

    def append(self, prior: nn.Module) -> int:
        """Add a prior after the last stage and return its index; it is not yet in use."""
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
    def current(self) -> nn.Module:
        return self.stages[self._in_use]

    @property
    def has_log_prob(self) -> bool:
        return getattr(self.current, "has_log_prob", True)

    @property
    def support(self) -> tuple[float, float] | None:
        return getattr(self.current, "support", None)

    def forward(self) -> Distribution:
        return self.stages[self._in_use]()

    def _check(self, prior: nn.Module) -> None:
        if (dim := event_dim(prior)) != self.latent_dim:
            raise ValueError(
                f"every stage must have the event shape ({self.latent_dim},) of the first, got "
                f"({dim},); give each prior the same `latent_dim`"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if (stage := state_dict.get(f"{prefix}stage")) is not None:
            self._in_use = int(stage)
