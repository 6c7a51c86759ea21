"""Generators and critics: shapes, sizes found from the image, gradients, and the papers' tables."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from flexgen.networks import DCGANCritic, DCGANGenerator, MLPCritic, MLPEncoder, MLPGenerator
from flexgen.networks.dcgan import map_sizes

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 13, 30), (1, 3, 5)]
POINTS = [(2,), (3,), (4, 5)]


def config(name):
    """A YAML file of conf/network with its one-level defaults merged, as Hydra composes it."""
    folder = Path(__file__).parents[2] / "conf" / "network"
    own = OmegaConf.load(folder / f"{name}.yaml")
    parents = own.pop("defaults", [])
    return OmegaConf.merge(*(OmegaConf.load(folder / f"{parent}.yaml") for parent in parents), own)


def pair(name, shape, range_=None, latent_dim=20):
    data = {"shape": list(shape), "range": range_}
    root = {"latent_dim": latent_dim, "data": data, "num_classes": None}
    composed = OmegaConf.create({**root, "network": config(name)})
    return instantiate(composed.network.generator), instantiate(composed.network.critic)


def convolutions(network):
    """Kind, in and out channels, kernel and stride of each convolution."""
    return [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]


@pytest.mark.parametrize("shape", POINTS + IMAGES)
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_mlp_shapes(shape, norm):
    generator = MLPGenerator(7, shape, (-1, 1), [12, 9], norm=norm)
    x = generator(torch.randn(5, 7))
    assert x.shape == (5, *shape)
    assert MLPCritic(shape, [6], norm=norm)(x).shape == (5,)
    assert (generator.latent_dim, generator.shape) == (7, shape)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("upsampling", ["deconvolution", "nearest"])
@pytest.mark.parametrize("channels", [[6], [6, 5, 4, 3, 2]])
def test_dcgan_shapes(shape, kernel_size, upsampling, channels):
    generator = DCGANGenerator(7, shape, None, channels, kernel_size, upsampling=upsampling)
    x = generator(torch.randn(3, 7))
    assert x.shape == (3, *shape)
    assert DCGANCritic(shape, channels[::-1], kernel_size)(x).shape == (3,)


@pytest.mark.parametrize(
    ("size", "num_layers", "expected"),
    [
        (64, 4, [64, 32, 16, 8, 4]),
        (64, 5, [64, 32, 16, 8, 4, 4]),
        (64, 2, [64, 32, 16]),
        (32, 3, [32, 16, 8, 4]),
        (28, 3, [28, 14, 7, 4]),
        (28, 2, [28, 14, 7]),
        (8, 3, [8, 4, 4, 4]),
        (5, 1, [5, 5]),
    ],
)
def test_map_sizes_halve_the_image_down_to_four(size, num_layers, expected):
    assert map_sizes(size, size, num_layers) == [(side, side) for side in expected]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_every_map_of_generator_and_critic_has_the_planned_size(shape):
    generator = DCGANGenerator(5, shape, None, [8, 6, 4, 3])
    critic = DCGANCritic(shape, [3, 4, 6, 8])
    seen = {"up": [], "down": []}
    for network, key in ((generator, "up"), (critic, "down")):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(
                    lambda _module, _args, out, key=key: seen[key].append(tuple(out.shape[2:]))
                )
    critic(generator(torch.randn(2, 5)))
    plan = map_sizes(*shape[1:], 4)
    assert seen == {"up": plan[-2::-1], "down": plan[1:]}


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 7)])
def test_nearest_upsampling_repeats_pixels(size):
    generator = DCGANGenerator(5, (1, *size), None, [3], upsampling="nearest")
    seen = []
    for module in generator.net:
        module.register_forward_hook(lambda _, x, y: seen.append((*x, y)))
    generator(torch.randn(2, 5))
    ((x, doubled),) = [(x, y) for x, y in seen if x.shape[2:] == (4, 4) != y.shape[2:]]
    expected = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    assert torch.equal(doubled, expected[:, :, : size[0], : size[1]])


def test_nearest_upsampling_has_no_transposed_convolution():
    generator = DCGANGenerator(3, (1, 28, 28), None, [4, 3, 2], upsampling="nearest")
    assert [kind for kind, *_ in convolutions(generator)] == ["Conv2d"] * 3


@pytest.mark.parametrize(("output_range", "low", "high"), [([-1, 1], -1, 1), ([0.0, 1.0], 0, 1)])
@pytest.mark.parametrize("kind", [MLPGenerator, DCGANGenerator])
def test_output_range_bounds_the_data(kind, output_range, low, high):
    torch.manual_seed(0)
    x = kind(4, (1, 8, 8), output_range)(100 * torch.randn(64, 4))
    assert low <= x.min() < low + 0.3 * (high - low)
    assert high >= x.max() > high - 0.3 * (high - low)


@pytest.mark.parametrize("kind", [MLPGenerator, DCGANGenerator])
def test_no_output_range_leaves_the_data_unbounded(kind):
    torch.manual_seed(0)
    generator = kind(4, (1, 8, 8), None).eval()
    assert generator(1e3 * torch.randn(64, 4)).abs().max() > 2


NETWORKS = {
    "mlp": lambda norm: (
        MLPGenerator(4, (1, 8, 8), (-1, 1), [12, 12], norm=norm, linear_skip=True),
        MLPCritic((1, 8, 8), [12, 12], norm=norm),
    ),
    "dcgan": lambda norm: (
        DCGANGenerator(4, (1, 28, 28), (-1, 1), [8, 6, 4, 3], norm=norm),
        DCGANCritic((1, 28, 28), [3, 4, 6, 8], norm=norm),
    ),
    "dense dcgan": lambda norm: (
        DCGANGenerator(4, (1, 28, 28), (-1, 1), [8, 4], 5, [9], "nearest", norm=norm),
        DCGANCritic((1, 28, 28), [4, 8], 5, [9], norm=norm),
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_batch_norm_replaces_the_bias_of_hidden_layers_alone(kind):
    generator, _ = NETWORKS[kind]("batch")
    weighted = [
        m
        for name, m in generator.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and name != "skip"
    ]
    assert [m.bias is not None for m in weighted] == [False] * (len(weighted) - 1) + [True]


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_gets_a_gradient(kind, norm):
    torch.manual_seed(1)
    generator, critic = (network.double() for network in NETWORKS[kind](norm))
    x = generator(torch.randn(16, 4, dtype=torch.float64))
    critic(x).square().sum().backward()
    for network in (generator, critic):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("kind", NETWORKS)
def test_critics_without_batch_norm_judge_each_sample_alone(kind):
    torch.manual_seed(0)
    generator, critic = NETWORKS[kind](None)
    x = generator(torch.randn(6, 4)).detach()
    torch.testing.assert_close(critic(x)[:2], critic(x[:2]))


def test_linear_skip_adds_a_linear_map_of_the_code():
    generator = MLPGenerator(3, (2,), None, [5], linear_skip=True)
    z = torch.randn(4, 3)
    with_skip = generator(z)
    skip, generator.skip = generator.skip, None
    torch.testing.assert_close(with_skip - generator(z), z @ skip.weight.T)


def test_no_hidden_layers_make_an_affine_generator():
    generator = MLPGenerator(3, (2,), None, [])
    z = torch.randn(4, 3)
    torch.testing.assert_close(generator(z), generator.output(z))


@pytest.mark.parametrize("kind", [MLPGenerator, DCGANGenerator])
def test_weight_std_sets_the_initial_weights(kind):
    torch.manual_seed(0)
    generator = kind(64, (3, 32, 32), weight_std=0.02)
    weights = torch.cat([p.flatten() for p in generator.parameters() if p.dim() > 1]).detach()
    assert weights.std() == pytest.approx(0.02, rel=0.02)
    assert weights.mean().abs() < 1e-3
    shifts = [p for name, p in generator.named_parameters() if name.endswith("bias")]
    assert all((shift == 0).all() for shift in shifts)


def test_he_weights_are_as_wide_as_the_inputs_of_a_unit_allow():
    torch.manual_seed(0)
    encoder = MLPEncoder((20, 30), [300, 200], weight_std="he")
    generator = DCGANGenerator(
        16, (3, 32, 32), channels=[64, 32], upsampling="deconvolution", weight_std="he"
    )
    layers = [m for n in (encoder, generator) for m in n.modules() if hasattr(m, "weight")]
    inputs = {
        nn.Linear: lambda layer: layer.in_features,
        # A pixel of the output is reached by a quarter of the kernel's, at stride 2.
        nn.ConvTranspose2d: lambda layer: layer.in_channels * math.prod(layer.kernel_size) / 4,
    }
    drawn = [layer for layer in layers if type(layer) in inputs]
    assert {type(layer) for layer in drawn} == set(inputs)
    for layer in drawn:
        wanted = (2 / inputs[type(layer)](layer)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(wanted, rel=0.05)


def test_creswell_bharath_table_1():
    generator, critic = pair("creswell_bharath", (1, 28, 28), [0, 1], latent_dim=100)
    dense = [(m.in_features, m.out_features) for m in generator.modules() if type(m) is nn.Linear]
    assert dense == [(100, 1024), (1024, 6272)]
    norms = [m.num_features for m in generator.modules() if type(m) is nn.BatchNorm1d]
    assert norms == [1024, 6272]
    assert next(m for m in generator.net if type(m) is nn.Unflatten).unflattened_size == (128, 7, 7)
    assert convolutions(generator) == [("Conv2d", 128, 64, 5, 1), ("Conv2d", 64, 1, 5, 1)]
    assert convolutions(critic) == [("Conv2d", 1, 64, 5, 2), ("Conv2d", 64, 128, 5, 2)]
    dense = [(m.in_features, m.out_features) for m in critic.modules() if type(m) is nn.Linear]
    assert dense == [(6272, 1024), (1024, 1)]
    assert [m.num_features for m in critic.modules() if type(m) is nn.BatchNorm2d] == [64, 128]
    assert sum(type(m) is nn.ReLU for m in generator.modules()) == 3
    slopes = {m.negative_slope for m in critic.modules() if type(m) is nn.LeakyReLU}
    assert slopes == {0.2}


def test_kilcher_appendix_e():
    generator, critic = pair("dcgan_kilcher", (3, 64, 64), [-1, 1])
    assert next(m for m in generator.net if type(m) is nn.Unflatten).unflattened_size == (512, 4, 4)
    layers = convolutions(generator)
    assert [cout for _, _, cout, _, _ in layers] == [512, 256, 128, 64, 3]
    assert {kernel for *_, kernel, _ in layers} == {4}
    assert [stride for *_, stride in layers] == [1, 2, 2, 2, 2]
    assert isinstance(generator.net[-1], nn.Tanh)
    assert sum(type(m) is nn.ReLU for m in generator.modules()) == 5
    layers = convolutions(critic)
    assert [(cout, kernel, stride) for _, _, cout, kernel, stride in layers] == [
        (512, 4, 2),
        (256, 4, 2),
        (128, 4, 2),
        (64, 4, 2),
    ]


def test_goerttler_kloft_table_1():
    generator, critic = pair("mlp_goerttler_kloft", (2,), latent_dim=2)
    dense = [m.out_features for m in generator.modules() if type(m) is nn.Linear]
    assert dense == [128, 128, 2]
    assert isinstance(generator.to_range, nn.Tanh)
    assert sum(type(m) is nn.ReLU for m in generator.modules()) == 2
    dense = [m.out_features for m in critic.modules() if type(m) is nn.Linear]
    assert dense == [128, 128, 128, 1]
    assert sum(type(m) is nn.Tanh for m in critic.modules()) == 3


@pytest.mark.parametrize(
    ("name", "kinds", "weight_std"),
    [("mlp", (MLPGenerator, MLPCritic), None), ("dcgan", (DCGANGenerator, DCGANCritic), 0.02)],
)
def test_yaml_and_constructor_defaults_agree(name, kinds, weight_std):
    """The YAML names every option so that it can be overridden; its values must not drift."""
    generator, critic = pair(name, (1, 8, 8))
    assert str(generator) == str(kinds[0](20, (1, 8, 8)))
    assert str(critic) == str(kinds[1]((1, 8, 8)))
    assert config(name).generator.weight_std == config(name).critic.weight_std == weight_std


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPGenerator(0, (2,)), "`latent_dim` must be a whole number"),
        (lambda: MLPGenerator(2.5, (2,)), "`latent_dim` must be a whole number"),
        (lambda: MLPGenerator(2, ()), "`shape` must have at least one size"),
        (lambda: MLPGenerator(2, (3, -1)), r"`shape\[1\]` must be a whole number"),
        (lambda: MLPGenerator(2, (2,), hidden_features=64), "`hidden_features` must be a list"),
        (lambda: MLPGenerator(2, (2,), activation="relu"), "did you mean 'ReLU'"),
        (lambda: MLPCritic((2,), activation="Linear"), "`activation` must name an activation"),
        (
            lambda: MLPGenerator(2, (2,), norm="instance"),
            "`norm` must be one of null, batch, layer",
        ),
        (lambda: MLPGenerator(2, (2,), (0, 255)), r"`output_range` must be .* got \(0, 255\)"),
        (lambda: MLPGenerator(2, (2,), weight_std=0.0), "`weight_std` must be null, positive or"),
        (lambda: MLPCritic((2,), weight_std="xavier"), "or 'he', got 'xavier'"),
        (lambda: DCGANGenerator(2, (2,)), "use `network=mlp`"),
        (lambda: DCGANCritic((1, 1, 9)), "at least 2 x 2 pixels"),
        (lambda: DCGANGenerator(2, (1, 8, 8), channels=[]), "`channels` must name at least one"),
        (
            lambda: DCGANGenerator(2, (1, 8, 8), kernel_size=1),
            "`kernel_size` must be a whole number of at least 2",
        ),
        (lambda: DCGANGenerator(2, (1, 8, 8), upsampling="bilinear"), "`upsampling` must be"),
        (lambda: DCGANCritic((1, 8, 8), linear_features=5), "`linear_features` must be a list"),
    ],
)
def test_wrong_sizes_are_refused_with_a_remedy(build, message):
    with pytest.raises(ValueError, match=message):
        build()
