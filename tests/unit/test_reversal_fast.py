"""The faster pass is the generator's function, and leaves the generator alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexgen.networks import DCGANGenerator, MLPGenerator
from flexgen.reversal import calibrate_batch_norm, reverse
from flexgen.reversal.fast import FastPass, fast_pass
from flexgen.reversal.passes import NoFastPass, residual


def dcgan(**options):
    return DCGANGenerator(20, (1, 28, 28), (-1, 1), [16, 8, 4], **options)


GENERATORS = {
    "dcgan": dcgan,
    "colour": lambda: DCGANGenerator(8, (3, 32, 32), (0, 1), [16, 8]),
    "nearest": lambda: dcgan(upsampling="nearest", linear_features=[32]),
    "odd kernel": lambda: dcgan(kernel_size=5),
    "layer norm": lambda: dcgan(norm="layer"),
    "mlp": lambda: MLPGenerator(10, (1, 8, 8), (-1, 1), [32, 32], norm="batch"),
    "narrow mlp": lambda: MLPGenerator(5, (2,), None, [7, 9]),
    "map of codes": lambda: nn.Sequential(
        nn.ConvTranspose2d(16, 8, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 2, 3, 2, 1, 1, dilation=2),
        nn.Tanh(),
    ),
    "bare layer": lambda: nn.ConvTranspose2d(16, 3, 4, 2),
}


def codes(name, n=32):
    z = torch.randn(n, {"colour": 8, "mlp": 10, "narrow mlp": 5}.get(name, 20))
    return z if name not in ("map of codes", "bare layer") else torch.randn(n, 16, 2, 2)


@pytest.fixture(params=GENERATORS)
def generator(request):
    torch.manual_seed(0)
    generator = GENERATORS[request.param]()
    for module in generator.modules():  # weights that a folding must not confuse
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    z = codes(request.param)
    calibrate_batch_norm(generator, torch.cat([z] * 4))
    return generator.eval(), z


def value_and_gradient(function, z, x):
    z = z.clone().requires_grad_()
    loss = (function(z) - x).square().flatten(1).sum(1) / 2
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


def test_float64_pass_is_the_generator_with_its_gradient(generator):
    generator, z = generator[0].double(), generator[1].double()
    x = torch.rand_like(generator(z))
    expected = value_and_gradient(generator, z, x)
    found = value_and_gradient(FastPass(generator, torch.float64), z, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pass_agrees_in_its_precision_and_the_generator_is_not_changed(generator, dtype):
    generator, z = generator
    before = copy.deepcopy(generator.state_dict())
    wanted = [parameter.requires_grad for parameter in generator.parameters()]
    x_hat = generator(z).detach()
    fast = fast_pass(generator, dtype, z, x_hat)
    assert fast is not None
    assert fast(z).dtype == torch.float32
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert torch.equal(generator(z).detach(), x_hat)
    assert [parameter.requires_grad for parameter in generator.parameters()] == wanted
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])


# Not for maps of codes: the library's convolutions of such sizes may round by batch.
@pytest.mark.parametrize(
    "generator",
    [name for name in GENERATORS if name not in ("map of codes", "bare layer")],
    indirect=True,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_the_batch(generator, dtype):
    generator, z = generator
    fast = FastPass(generator, dtype)
    x = torch.rand_like(generator(z).detach())
    loss, gradient = value_and_gradient(fast, z, x)
    rows = torch.randperm(len(z))[:16]
    alone = value_and_gradient(fast, z[rows], x[rows])
    assert torch.equal(alone[0], loss[rows])
    assert torch.equal(alone[1], gradient[rows])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 16)

    def forward(self, z):
        return self.layer(z) + torch.randn(len(z), 16)


class Peeking(nn.Module):
    """Reads the batch norm's statistics, which a folded copy has not."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))

    def forward(self, z):
        return self.net(z) + self.net[1].running_mean


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("has a handle")

    def forward(self, z):
        return z


class Asserting(nn.Module):
    """Insists on the layer that it was built with."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z):
        assert isinstance(self.layer, nn.Linear)
        return self.layer(z)


@pytest.mark.parametrize("kind", [Peeking, Uncopyable, Asserting])
def test_what_cannot_be_copied_is_recorded(kind):
    generator, z = kind().eval(), torch.randn(16, 4)
    x_hat = generator(z).detach()
    fast = fast_pass(generator, torch.float32, z, x_hat)
    torch.testing.assert_close(fast(z), x_hat)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in fast.modules())


@pytest.mark.parametrize(
    ("generator", "why"),
    [
        (Noisy(), "another image each time"),
        (lambda z: z + 1e-6 * torch.randn_like(z), "draws random numbers"),
        (lambda z: z * 2 if z.sum() > -1e9 else z, "another way for other codes"),
        (lambda z: z * float(z.detach().abs().max()), "another way for other codes"),
        (lambda z: z * (1 + (len(z) == 29)), "a copy was off by"),
    ],
)  # fmt: skip
def test_what_is_another_function_now_and_then_has_no_fast_pass(generator, why):
    z = torch.randn(16, 4)
    with torch.no_grad():
        x_hat = generator(z)
    with pytest.raises(NoFastPass, match=why):
        fast_pass(generator, torch.float32, z, x_hat)


def test_a_spectral_norm_is_computed_once():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(20, 32))
    generator = nn.Sequential(layer, nn.BatchNorm1d(32)).eval()
    z = torch.randn(16, 20)
    fast = fast_pass(generator, torch.float32, z, generator(z).detach())
    torch.testing.assert_close(fast(z), generator(z))
    assert [type(module) for module in fast.modules() if not list(module.children())] == [
        nn.Linear,
        nn.Identity,
    ]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, z):
        return z + self.branch(z)


def test_a_residual_keeps_its_input_when_the_branch_begins_with_a_relu():
    generator = Residual().eval()
    z = torch.randn(16, 4)
    torch.testing.assert_close(FastPass(generator, torch.float32)(z), generator(z))


class _Row(nn.Module):
    """Linear layers, a ReLU between, and what a subclass makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32))

    def forward(self, z):
        return self.net(z).view(-1, 2, 16)


class _Clamped(_Row):
    def forward(self, z):
        return self.net(z).clamp(-9, 9)  # which no code of a probe meets


class _Skipping(_Row):
    def forward(self, z):
        return self.net(z) + F.pad(z, (0, 12))


@pytest.mark.parametrize(
    "generator",
    [
        MLPGenerator(20, (1, 8, 8), (-1.0, 1.0), [64, 64], norm="batch"),
        MLPGenerator(20, (1, 8, 8), (0.0, 1.0), [64]),
        _Row(),
    ],
)
def test_a_row_of_dense_layers_has_its_residual_without_a_graph(generator):
    z, target = torch.randn(32, 20), torch.rand(32, *generator(torch.randn(2, 20)).shape[1:])
    generator.eval().requires_grad_(False)
    fast = fast_pass(generator, torch.float32, z, generator(z))
    assert fast.residual is not None
    for found, expected in zip(fast.residual(z, target), residual(fast, z, target), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for found, expected in zip(
        fast.residual(z, target), residual(generator, z, target), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "generator",
    [_Clamped(), _Skipping(), nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32))],
)
def test_other_graphs_than_a_row_of_dense_layers_keep_theirs(generator):
    generator.eval().requires_grad_(False)
    z = torch.randn(32, 20)
    assert fast_pass(generator, torch.float32, z, generator(z)).residual is None


class Shifted(nn.Module):
    """Linear layers whose code is moved by a label, or as it is without one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 40))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x: Tensor = self.net(z if label is None else z + 3 * label[:, None])
        return x


def test_a_label_that_may_be_left_out_is_heeded() -> None:
    torch.manual_seed(0)
    net, labels = Shifted().eval(), torch.arange(12) % 3
    x = net(torch.randn(12, 16), labels).detach()
    found = reverse(net, x, latent_shape=16, context=labels)
    plain = reverse(net, x, latent_shape=16, context=labels, precision="plain")
    assert found.loss.mean() < 10 * plain.loss.mean() + 1e-3
