"""Programs of any kind, as layers: the same function, for any number of codes, ready to fold."""

from pathlib import Path

import generators
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.reversal.fast import fast_pass
from flexgen.reversal.graphs import as_layers
from flexgen.reversal.loading import load_generator


class Block(nn.Module):
    """A residual block that doubles its maps."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(before, after, 3, padding=1))
        self.norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.beside = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0)
        h = F.leaky_relu(self.norm(self.first(x)), 0.2)
        return F.relu(self.second(h) + self.beside(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6 * 16)
        self.blocks = nn.Sequential(Block(6, 5), Block(5, 4))
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.last(self.blocks(self.first(z).view(z.shape[0], 6, 4, 4))))


class Modulated(nn.Module):
    """A mapping network, a constant first map, weights scaled by the code, fixed noise."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6))
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.weight = nn.Parameter(torch.randn(5, 6, 3, 3))
        self.noise = nn.Parameter(torch.randn(8, 8))
        self.image = nn.Conv2d(5, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        n = z.shape[0]
        style = self.mapping(z * z.square().mean(1, keepdim=True).rsqrt()) + 1
        weight = self.weight * style[:, None, :, None, None]
        weight = weight * weight.square().sum([2, 3, 4], keepdim=True).rsqrt()
        x = F.interpolate(self.constant.repeat(n, 1, 1, 1), scale_factor=2.0, mode="bilinear")
        x = x.reshape(1, n * 6, 8, 8)
        x = F.conv2d(x, weight.reshape(n * 5, 6, 3, 3), padding=1, groups=n)
        x = F.leaky_relu(x.reshape(n, 5, 8, 8) + 0.1 * self.noise, 0.2)
        return torch.tanh(self.image(x))


KINDS = {"small": generators.Small, "residual": Residual, "modulated": Modulated}


def network(kind: str) -> nn.Module:
    torch.manual_seed(2)
    net = KINDS[kind]()
    with torch.no_grad():
        net(torch.randn(64, 4))  # for the statistics of its batch norms
    return net.eval().requires_grad_(False)


def exported(path: Path, net: nn.Module, batch: int | None) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    program = torch.export.export(net, (torch.randn(batch or 3, 4),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("small", "script"), ("small", "export"), ("residual", "export of 7"),
        ("residual", "function"), ("modulated", "script"), ("modulated", "function"),
    ],
)  # fmt: skip
def test_every_form_of_a_program_has_the_fast_pass(tmp_path: Path, kind: str, form: str) -> None:
    net, path = network(kind), tmp_path / "g.pt2"
    if form == "function":
        generator = lambda z: net(z)  # noqa: E731
    else:
        batch = 7 if form == "export of 7" else None
        generators.script(path, net) if form == "script" else exported(path, net, batch)
        generator = load_generator(path, trust=True).generator
    z = torch.randn(32, 4)
    fast = fast_pass(generator, torch.float32, z, net(z))
    assert not any("BatchNorm" in type(module).__name__ for module in fast.modules())
    for n in (1, 17):
        torch.testing.assert_close(fast(z[:n]), net(z[:n]), rtol=1e-4, atol=1e-5)
    # In bfloat16 too, where a constant in another precision would be refused.
    half = fast_pass(generator, torch.bfloat16, z, net(z))
    assert (half(z) - net(z)).norm() < 0.05 * net(z).norm()


def test_rows_of_layers_become_sequences() -> None:
    net = network("small")
    found = as_layers(net, torch.randn(3, 4))
    assert [type(layer) for layer in found] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.Tanh, nn.Unflatten,
    ]  # fmt: skip
    torch.testing.assert_close(found(torch.ones(5, 4)), net(torch.ones(5, 4)))


def test_a_context_goes_in_beside_the_codes() -> None:
    net, table = network("small"), torch.randn(3, 4)
    found = as_layers(lambda z, y: net(z + table[y]), torch.randn(2, 4), torch.tensor([0, 1]))
    z, y = torch.randn(7, 4), torch.arange(7) % 3
    torch.testing.assert_close(found(z, y), net(z + table[y]))


def test_half_precision_is_searched_in_float32() -> None:
    net = network("small").half()
    z = torch.randn(32, 4)
    x_hat = net(z.half()).float()
    fast = fast_pass(net, torch.float32, z, x_hat)
    assert {weight.dtype for weight in fast.parameters()} == {torch.float32}
    torch.testing.assert_close(fast(z), x_hat, rtol=1e-2, atol=1e-2)
