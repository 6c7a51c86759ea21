"""An objective of one's own: what critic and generator minimise, of the critic's raw outputs."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from flexgen.objectives import Objective


class SmoothedGAN(Objective):
    """The non-saturating game with one-sided label smoothing: data are real by `real` < 1.

    Args:
        real: the label of data, in (0.5, 1].

    Source: Salimans et al., "Improved techniques for training GANs", 2016, section 3.4.
    """

    def __init__(self, real: float = 0.9) -> None:
        if not 0.5 < real <= 1:
            raise ValueError(
                f"`real` must be in (0.5, 1], got {real}; set `model.objective.real=0.9`"
            )
        self.real = real

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        label = torch.full_like(real_logits, self.real)
        return binary_cross_entropy_with_logits(real_logits, label) + softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return softplus(-fake_logits).mean()
