"""Small generators in every form that a file or an import path can have."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Codes of 4 to images of 1×8×8, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 32)
        self.norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 64)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(z)))
        return torch.tanh(self.last(h)).view(-1, 1, 8, 8)


def small() -> Small:
    """The same weights every time, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Small()
        with torch.no_grad():
            net(torch.randn(256, 4))
    return net.eval()


network = small()


def function(z: Tensor) -> Tensor:
    return network(z)


def maps(z: Tensor) -> Tensor:
    """Codes of the shape (2, 2, 1)."""
    return network(z.flatten(1))


def images(n: int) -> Tensor:
    """Images that the generator can make."""
    with torch.no_grad():
        return network(torch.randn(n, 4, generator=torch.Generator().manual_seed(5)))


def script(path: Path, net: nn.Module | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out
        torch.jit.script(net or small()).save(path)
    return path


def export(path: Path, batch: int = 4, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(small(), (torch.zeros(batch, 4),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


class Style(nn.Module):
    """Codes of 4 by a mapping network and three layers with noise to images of 1×12×12."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.mapping = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2))
            self.synthesis = Synthesis()

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.mapping(z)[:, None].expand(-1, 3, -1))


class Synthesis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 144) for _ in range(3))
        self.register_buffer("noise_const", torch.randn(12, 12))

    def forward(self, ws: Tensor) -> Tensor:
        pairs = zip(self.layers, ws.unbind(1), strict=True)
        x = torch.stack([layer(w) for layer, w in pairs]).sum(0).view(-1, 1, 12, 12)
        return torch.tanh(x + 0.1 * self.noise_const)


style = Style().eval()


class Conditional(nn.Module):
    """Codes of 4 and one of 3 labels to images of 1×12×12."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.classes = nn.Embedding(3, 144)
            self.layer = nn.Linear(4, 144)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.layer(z) + self.classes(label)).view(-1, 1, 12, 12)


conditional = Conditional().eval()


class _Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        assert c.shape == (len(z), 0)
        w: Tensor = self.layer(z)
        return w[:, None].expand(-1, 2, -1)


class _Synthesis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(6, 64)
        self.register_buffer("noise_const", torch.randn(64))

    def forward(self, w: Tensor, noise_mode: str = "random") -> Tensor:
        x = self.first(w[:, 0]) * self.last(w[:, 1])
        noise = torch.randn_like(x) if noise_mode == "random" else self.noise_const
        return torch.tanh(x + 0.1 * noise).view(-1, 1, 8, 8)


class Styled(nn.Module):
    """Called and built as StyleGAN's: codes and labels, two networks, noise."""

    z_dim, c_dim = 4, 0

    def __init__(self) -> None:
        super().__init__()
        self.mapping, self.synthesis = _Mapping(), _Synthesis()

    def forward(self, z: Tensor, c: Tensor, **options: str) -> Tensor:
        x: Tensor = self.synthesis(self.mapping(z, c), **options)
        return x


def onnx(path: Path, net: nn.Module | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter that needs no further package is on its way out
        torch.onnx.export(
            net or small(), (torch.zeros(3, 4),), str(path), dynamo=False, input_names=["z"],
            dynamic_axes={"z": {0: "n"}},
        )  # fmt: skip
    return path
