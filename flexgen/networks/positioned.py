"""A pixel network that knows where a pixel lies: the control of a PixelVAE."""

import torch
from torch import Tensor, nn

from flexgen.contracts import Density
from flexgen.networks.pixels import PixelNetwork, PixelsGivenMaps


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
        self.maps = nn.Parameter(0.1 * torch.randn(network.context_size, *network.shape[1:]))
        self.data_range, self.has_mass = network.data_range, network.has_mass

    def forward(self, context: Tensor | None = None) -> PixelsGivenMaps:
        if context is not None:
            raise ValueError(
                "gated_pixelcnn_positioned knows no classes; set conditional=false, or "
                "network=gated_pixelcnn"
            )
        return PixelsGivenMaps(self.network, self.maps)

    def check_data(self, x: Tensor) -> None:
        self.network.check_data(x)
