"""Losses in the features of a network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.checks import check_one_of

# File names of torchvision's weights, as `torch.hub` keeps them.
_BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
# Smaller images are enlarged: the networks have seen whole photographs.
_LEAST = 64


class FeatureLoss(nn.Module):
    """½‖φ(x̂) − φ(x)‖² of each sample, over all of a network's features.

    Called with reconstructions and data `(batch, *shape)`; a loss for each, `(batch,)`.

    Args:
        features: φ, from data to one tensor `(batch, …)`, or a list of them, such as
            `Classifier.features` of `flexgen.metrics`.

    Source: Johnson, Alahi, Fei-Fei, "Perceptual losses for real-time style transfer and
        super-resolution", 2016, eq. 2, there divided by the number of features.
    """

    def __init__(self, features: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> None:
        super().__init__()
        if not callable(features):
            raise ValueError(
                f"`features` must be a network or a function of data, got {features!r}; as "
                "features=classifier.features"
            )
        self.features = features

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        pairs = zip(self._of(x_hat), self._of(x), strict=True)
        each = [(ours - theirs).square().flatten(1).sum(1) / 2 for ours, theirs in pairs]
        return torch.stack(each).sum(0)

    def _of(self, x: Tensor) -> Sequence[Tensor]:
        features = self.features(x)
        return [features] if isinstance(features, Tensor) else features


class LPIPS(nn.Module):
    """LPIPS of each sample: Σ over layers of the mean over places of ‖w ∘ (φ̂(x̂) − φ̂(x))‖².

    Called with images `(batch, 1 or 3, height, width)` in `range`, a distance for each, `(batch,)`.
    Grey images go to all three channels, sides below 64 pixels are enlarged to that.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric",
        2018, eq. 1; version 0.1 of its weights, which torchmetrics brings.
    """

    def __init__(self, network: nn.Module, range: tuple[float, float]) -> None:
        super().__init__()
        self.network, self.range = network.eval().requires_grad_(False), range

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        distance: Tensor = self.network.to(x.device)(self._ready(x_hat), self._ready(x))
        return distance.flatten(1).sum(1).to(x_hat.dtype)

    def _ready(self, x: Tensor) -> Tensor:
        low, high = self.range
        x = (2 * (x.float() - low) / (high - low) - 1).expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < _LEAST:
            size = [max(_LEAST, side) for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x


def lpips(
    net: Literal["alex", "vgg"] = "alex", backbone: str | Path | None = None,
    range: Sequence[float] = (-1.0, 1.0),
) -> LPIPS:  # fmt: skip
    """LPIPS on a backbone whose weights lie in a file; nothing is downloaded.

    Args:
        net: AlexNet or VGG16.
        backbone: file of torchvision's weights of it; if None, where `torch.hub` keeps it.
        range: (low, high) of the images' black and white.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it holds other weights.
    """
    check_one_of("net", net, _BACKBONES)
    path = Path(backbone or Path(torch.hub.get_dir(), "checkpoints", _BACKBONES[net]))
    if not path.is_file():
        raise FileNotFoundError(
            f"loss 'lpips' needs the weights of its network in a file, and there is no {path}; "
            f"give torchvision's {_BACKBONES[net]} as backbone=FILE, or take another loss, such as "
            "{name: perceptual, features: …}"
        )
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net=net, pnet_rand=True)
    wanted = network.net.state_dict()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        # "slice2.3.weight" here is "features.3.weight" there.
        weights = {name: found["features." + name.split(".", 1)[1]] for name in wanted}
        network.net.load_state_dict(weights)
    except Exception as error:
        raise ValueError(
            f"cannot take the weights of {net} from {path} ({str(error).splitlines()[0]}); give "
            f"torchvision's {_BACKBONES[net]}"
        ) from error
    return LPIPS(network, (float(range[0]), float(range[1])))
