"""Networks of one's own: plain modules, sized by their arguments."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvGenerator(nn.Module):
    """Codes `(n, latent_dim)` to images `(n, *shape)` in [-1, 1]: dense, then upsampling.

    Args:
        latent_dim: size d of a code.
        shape: (channels, height, width), height and width even.
        width: feature maps at half the size.
    """

    def __init__(self, latent_dim: int, shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        channels, height, across = shape
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, width * (height // 2) * (across // 2)),
            nn.ReLU(),
            nn.Unflatten(1, (width, height // 2, across // 2)),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.layers(z)
        return x


class ConvCritic(nn.Module):
    """Images `(n, *shape)` to raw outputs `(n,)`.

    Args:
        shape: (channels, height, width), height and width even.
        width: feature maps at half the size.
    """

    def __init__(self, shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        channels, height, across = shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(width * (height // 2) * (across // 2), 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits.squeeze(1)
