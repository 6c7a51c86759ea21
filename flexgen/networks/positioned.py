"""A pixel network that knows where a pixel lies: the control of a PixelVAE."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from flexgen.contracts import Density
from flexgen.networks.pixels import PixelNetwork


class Positioned(Density):
    """A pixel network whose context are learned maps, the same for every image.

    Half of what a code's maps give a pixel network is where each pixel lies. A PixelVAE is compared
    with this: the same network and as many maps, without a code.

    Args:
        network: of `context_features` maps.

    Raises:
        ValueError: if it takes none, or labels.
    """

    def __init__(self, network: PixelNetwork) -> None:
        super().__init__()
        if network.num_classes is not None or not network.context_size:
            raise ValueError(
                "the network must have `context_features`, as many as maps are to be learned, and "
                "no `num_classes`"
            )
        self.network = network
        self.maps = nn.Parameter(0.1 * torch.randn(1, network.context_size, *network.shape[1:]))
        self.data_range, self.has_mass = network.data_range, network.has_mass

    def forward(self, context: Tensor | None = None) -> "OfOneContext":
        if context is not None:
            raise ValueError(
                "gated_pixelcnn_positioned knows no classes; set conditional=false, or "
                "network=gated_pixelcnn"
            )
        return OfOneContext(self.network(self.maps))

    def check_data(self, x: Tensor) -> None:
        self.network.check_data(x)


class OfOneContext(Distribution):
    """A batch of one distribution as that one."""

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, of_one: Distribution) -> None:
        self.of_one = of_one
        super().__init__(torch.Size(), of_one.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.of_one.log_prob(value.unsqueeze(-4))
        return log_prob.squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn: Tensor = self.of_one.sample(torch.Size(sample_shape))
        return drawn.squeeze(-4)
