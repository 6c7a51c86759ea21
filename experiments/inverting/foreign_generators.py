"""Generators that FlexGen did not train: plain torch, a minute or two each on one CPU core.

`train(folder)` writes what a stranger would bring: a DCGAN of MNIST as TorchScript, as a
torch.export archive and as a pickle in half precision; a small StyleGAN2 of MNIST at 32 × 32, whole
and as `G_ema` in a dictionary; and a class-conditional DCGAN as TorchScript.
"""

import copy
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import MNIST

BATCH = 64


class DCGAN(nn.Module):
    """z `(n, 20)` to images `(n, 1, 28, 28)` in [-1, 1]; with classes, of a label `(n,)` too."""

    def __init__(self, classes: int = 0, z_dim: int = 20, channels: int = 32) -> None:
        super().__init__()
        c = channels
        self.classes = nn.Embedding(max(classes, 1), z_dim)
        self.first = nn.Sequential(
            nn.Linear(z_dim, 2 * c * 49, bias=False), nn.BatchNorm1d(2 * c * 49), nn.ReLU()
        )
        self.rest = nn.Sequential(
            nn.Unflatten(1, (2 * c, 7, 7)),
            nn.ConvTranspose2d(2 * c, c, 4, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
            nn.ConvTranspose2d(c, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        z = z if label is None else z + self.classes(label)
        return self.rest(self.first(z))


class OfClasses(DCGAN):
    """A DCGAN that wants a label."""

    def __init__(self) -> None:
        super().__init__(classes=10)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        return self.rest(self.first(z + self.classes(label)))


class Modulated(nn.Module):
    """A convolution whose input channels are scaled by a style, its output to unit variance, with
    noise of a learned strength (Karras et al., 2020, section 2.2)."""

    def __init__(self, channels: int, out: int, w_dim: int, size: int, up: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3) / math.sqrt(9 * channels))
        self.style, self.bias = nn.Linear(w_dim, channels), nn.Parameter(torch.zeros(out, 1, 1))
        nn.init.ones_(self.style.bias)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(size, size))
        self.up = up

    def forward(self, x: Tensor, w: Tensor, noise_mode: str) -> Tensor:
        s = self.style(w)
        # Scaling the input is scaling the weights, and needs no convolution of each sample's own.
        norm = (self.weight.square().sum((2, 3)) @ s.square().T + 1e-8).rsqrt().T
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear") if self.up else x
        x = F.conv2d(x * s[:, :, None, None], self.weight, padding=1) * norm[:, :, None, None]
        if noise_mode == "random":
            x = x + self.noise_strength * torch.randn_like(x[:, :1])
        elif noise_mode == "const":
            x = x + self.noise_strength * self.noise_const
        return F.leaky_relu(x + self.bias, 0.2) * math.sqrt(2)


class Mapping(nn.Module):
    """z to w, the same for each layer."""

    def __init__(self, z_dim: int, w_dim: int, num_ws: int) -> None:
        super().__init__()
        layers = [nn.Linear(z_dim, w_dim), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2))
        self.num_ws = num_ws

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        return self.net(z)[:, None].expand(-1, self.num_ws, -1)


class Synthesis(nn.Module):
    """w of each layer to images: a constant, two layers a resolution, and outputs that add up."""

    def __init__(self, w_dim: int, channels: tuple[int, ...] = (64, 48, 32, 16)) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        layers, outputs, before = [], [], channels[0]
        for i, c in enumerate(channels):
            if i:
                layers.append(Modulated(before, c, w_dim, 4 << i, True))
            layers.append(Modulated(c, c, w_dim, 4 << i, False))
            outputs.append(nn.Conv2d(c, 1, 1))
            before = c
        self.layers, self.outputs = nn.ModuleList(layers), nn.ModuleList(outputs)
        self.num_ws = len(layers)

    def forward(self, ws: Tensor, noise_mode: str = "const") -> Tensor:
        x, image = self.const.expand(len(ws), -1, -1, -1), None
        for i, (layer, w) in enumerate(zip(self.layers, ws.unbind(1), strict=True)):
            x = layer(x, w, noise_mode)
            if i % 2 == 0:
                made = self.outputs[i // 2](x)
                image = made if image is None else made + F.interpolate(image, scale_factor=2.0)
        return image


class Style(nn.Module):
    """A StyleGAN2 in small, with the parts and the arguments of NVIDIA's."""

    def __init__(self, z_dim: int = 32, w_dim: int = 32) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, 0, w_dim
        self.synthesis = Synthesis(w_dim)
        self.mapping = Mapping(z_dim, w_dim, self.synthesis.num_ws)

    def forward(self, z: Tensor, c: Tensor | None = None, noise_mode: str = "const") -> Tensor:
        return self.synthesis(self.mapping(z, c), noise_mode=noise_mode)


def critic(side: int, outputs: int = 1) -> nn.Module:
    def down(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]

    return nn.Sequential(
        *down(1, 32), *down(32, 64), nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, outputs)
    )


def play(
    make: Callable[[int, Tensor], Tensor], generator: nn.Module, judge: nn.Module, x: Tensor,
    y: Tensor, steps: int, lr: float,
) -> nn.Module:  # fmt: skip
    """The non-saturating game with R1 every fourth step; the moving average of the generator.

    A critic of several outputs has one for each label.
    """
    average = copy.deepcopy(generator)
    adam = [torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.99)) for net in (generator, judge)]
    several = judge[-1].out_features > 1

    def score(images: Tensor, label: Tensor) -> Tensor:
        scores = judge(images)
        return scores.gather(1, label[:, None]) if several else scores

    for step in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        real, label = x[rows].requires_grad_(step % 4 == 0), y[rows]
        scores = score(real, label)
        loss = (
            F.softplus(-scores).mean()
            + F.softplus(score(make(BATCH, label).detach(), label)).mean()
        )
        if step % 4 == 0:
            (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            loss = loss + 4 * 0.5 * slope.square().sum((1, 2, 3)).mean()
        adam[1].zero_grad()
        loss.backward()
        adam[1].step()
        loss = F.softplus(-score(make(BATCH, label), label)).mean()
        adam[0].zero_grad()
        loss.backward()
        adam[0].step()
        rate = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), generator.parameters(), strict=True):
                kept.lerp_(new, 1 - rate)
            for kept, new in zip(average.buffers(), generator.buffers(), strict=True):
                kept.copy_(new)
    return average.eval().requires_grad_(False)


def digits(train: bool, side: int = 28) -> tuple[Tensor, Tensor]:
    """MNIST in [-1, 1], `(n, 1, side, side)`, black around it, and labels."""
    data = MNIST(os.environ.get("FLEXGEN_DATA", "data"), train=train, download=False)
    x = data.data[:, None].float() / 127.5 - 1
    return F.pad(x, [(side - 28) // 2] * 4, value=-1.0), data.targets


def train(folder: Path, steps: int) -> None:
    """Train what is not there yet, the StyleGAN2 for half the steps, and save it in every form."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = digits(True)
    started = time.process_time()

    def told(name: str) -> None:
        print(f"{name}: {time.process_time() - started:.0f} s of CPU in all", flush=True)

    if not (folder / "dcgan.pt").is_file():
        torch.manual_seed(0)
        net = DCGAN()
        net = play(lambda n, _: net(torch.randn(n, 20)), net, critic(28), x, y, steps, 1e-3)
        script(net, (torch.randn(2, 20),), folder / "dcgan.pt")
        shapes = ({0: torch.export.Dim("batch")}, None)
        program = torch.export.export(net, (torch.randn(2, 20),), dynamic_shapes=shapes[:1])
        torch.export.save(program, folder / "dcgan.pt2")
        torch.save(net.half(), folder / "dcgan_half.pt")
        told("DCGAN")
    if not (folder / "classes.pt").is_file():
        torch.manual_seed(0)
        of = OfClasses()
        net = play(lambda n, c: of(torch.randn(n, 20), c), of, critic(28, 10), x, y, steps, 1e-3)
        script(net, (torch.randn(2, 20), y[:2]), folder / "classes.pt")
        told("conditional DCGAN")
    if not (folder / "style.pkl").is_file():
        torch.manual_seed(0)
        style = Style()
        x = F.pad(x, [2] * 4, value=-1.0)

        def make(n: int, _: Tensor) -> Tensor:
            ws = style.mapping(torch.randn(n, 32))
            return style.synthesis(ws, noise_mode="random")

        net = play(make, style, critic(32), x, y, steps // 2, 2e-3)
        torch.save(net, folder / "style.pt")
        torch.save({"G": style, "G_ema": net}, folder / "style.pkl")
        told("StyleGAN2 in small")


def script(net: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out; there are many files of it
        torch.jit.trace(net, example).save(path)
