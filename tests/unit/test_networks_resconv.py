"""Encoders, and the residual convolutional pair: shapes, gradients, LED's sizes."""

import pytest
import torch
from torch import nn

from flexgen.networks import MLPEncoder, ResConvEncoder, ResConvGenerator
from flexgen.networks.resconv import ResidualBlock

IMAGES = [(1, 28, 28), (1, 8, 8), (3, 32, 32), (1, 15, 17), (1, 9, 30), (6, 105, 105)]


def blocks(network: nn.Module) -> list[ResidualBlock]:
    return [m for m in network.modules() if isinstance(m, ResidualBlock)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("channels", [[5], [3, 4, 4], [2, 3, 4, 5, 5]])
def test_shapes(shape: tuple[int, int, int], channels: list[int]) -> None:
    encoder = ResConvEncoder(shape, channels, [11])
    generator = ResConvGenerator(7, shape, None, channels[::-1], [11])
    x = generator(torch.randn(2, 7))
    assert x.shape == (2, *shape)
    assert encoder(x).shape == (2, encoder.out_features) == (2, 11)
    assert (generator.latent_dim, generator.shape, encoder.shape) == (7, shape, shape)


@pytest.mark.parametrize("shape", IMAGES)
def test_the_generator_takes_the_encoders_maps_in_reverse(shape: tuple[int, int, int]) -> None:
    sizes: dict[str, list[tuple[int, ...]]] = {"down": [], "up": []}
    encoder, generator = ResConvEncoder(shape), ResConvGenerator(5, shape)
    for network, way in ((encoder, "down"), (generator, "up")):
        for block in blocks(network):
            block.register_forward_hook(
                lambda _, x, y, way=way: sizes[way].extend([x[0].shape[1:], y.shape[1:]])
            )
    encoder(generator(torch.randn(2, 5)))
    assert sizes["up"] == sizes["down"][::-1]


def test_led_table_1() -> None:
    encoder, generator = ResConvEncoder((1, 28, 28)), ResConvGenerator(32, (1, 28, 28))
    assert encoder.out_features == 450
    down = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
            for b in blocks(encoder) for m in b.residual if isinstance(m, nn.Conv2d)]  # fmt: skip
    assert down == [
        (1, 16, 3, 2),
        (16, 16, 3, 1),
        (16, 32, 3, 2),
        (32, 32, 3, 1),
        (32, 32, 3, 2),
        (32, 32, 3, 1),
    ]
    dense = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert dense == [(32 * 4 * 4, 450)]
    dense = [(m.in_features, m.out_features) for m in generator.modules() if type(m) is nn.Linear]
    assert dense == [(32, 450), (450, 32 * 4 * 4)]
    up = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert {m.stride for m in up} == {(2, 2)}
    assert len(blocks(generator)) == 3
    for network in (encoder, generator):
        kinds = {type(m) for m in network.modules() if not list(m.children())}
        assert kinds <= {
            nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.ELU, nn.Flatten, nn.Unflatten, nn.Identity
        }  # fmt: skip


@pytest.mark.parametrize("before", [(8, 8), (7, 9)])
@pytest.mark.parametrize("up", [False, True])
def test_a_block_adds_its_shortcut(before: tuple[int, int], up: bool) -> None:
    half = tuple(-(-side // 2) for side in before)
    sizes = (half, before) if up else (before, half)
    block = ResidualBlock(3, 5, *sizes, "ELU", 0.2, up)
    x = torch.randn(2, 3, *sizes[0])
    with torch.no_grad():
        full = block(x)
        block.residual[-1].weight.zero_()
        block.residual[-1].bias.zero_()
    assert full.shape == (2, 5, *sizes[1])
    torch.testing.assert_close(block(x), block.shortcut(x))
    assert not torch.allclose(full, block.shortcut(x))


def test_a_block_that_changes_nothing_has_the_identity_as_shortcut() -> None:
    block = ResidualBlock(4, 4, (4, 4), (4, 4), "ELU", 0.2, False)
    assert isinstance(block.shortcut, nn.Identity)


NETWORKS = {
    "encoder": lambda: (ResConvEncoder((2, 9, 12), [3, 4], [6, 5]), torch.rand(4, 2, 9, 12)),
    "generator": lambda: (ResConvGenerator(3, (2, 9, 12), None, [4, 3], [6]), torch.randn(4, 3)),
    "plain, weight norm": lambda: (
        ResConvGenerator(3, (2, 9, 12), None, [4, 3], [6], plain_blocks=1, weight_norm=True),
        torch.randn(4, 3),
    ),
    "plain encoder": lambda: (
        ResConvEncoder((2, 9, 12), [3, 4], [6, 5], plain_blocks=2, weight_norm=True),
        torch.rand(4, 2, 9, 12),
    ),
    "no dense": lambda: (ResConvGenerator(3, (2, 9, 12), None, [4, 3], []), torch.randn(4, 3)),
    "mlp": lambda: (MLPEncoder((2, 9, 12), [16, 12]), torch.rand(4, 2, 9, 12)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[kind]()
    network(x).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_output_depends_neither_on_its_batch_nor_on_the_mode(kind: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[kind]()
    y = network(x)
    assert torch.equal(network.eval()(x), y)
    torch.testing.assert_close(network(x[:1]), y[:1])


def test_plain_blocks_lie_between_strided_ones() -> None:
    encoder = ResConvEncoder((1, 28, 28), plain_blocks=1)
    generator = ResConvGenerator(5, (1, 28, 28), plain_blocks=1)
    plain = [isinstance(block.shortcut, nn.Identity) for block in blocks(encoder)]
    assert plain == [False, True, False, True, False]
    assert [isinstance(b.shortcut, nn.Identity) for b in blocks(generator)] == plain
    first, second = (block.residual[0] for block in blocks(encoder)[1::2])
    assert (first.in_channels, second.in_channels) == (16, 32)
    assert generator(torch.randn(2, 5)).shape == (2, 1, 28, 28)


def test_weight_norm_changes_no_function_and_gives_each_output_one_length() -> None:
    images = torch.rand(2, 1, 9, 12)
    networks = []
    for weight_norm in (False, True):
        torch.manual_seed(0)
        encoder = ResConvEncoder((1, 9, 12), [3, 4], [6], weight_norm=weight_norm)
        generator = ResConvGenerator(6, (1, 9, 12), None, [4, 3], [5], weight_norm=weight_norm)
        networks.append(nn.Sequential(encoder, generator))
    plain, normed = networks
    torch.testing.assert_close(normed(images), plain(images))
    lengths = {n: p.numel() for n, p in normed.named_parameters() if n.endswith("original0")}
    assert sum(lengths.values()) == sum(
        p.numel() for n, p in plain.named_parameters() if n.endswith("bias")
    )
    assert len(lengths) == sum(n.endswith("weight") for n, _ in plain.named_parameters())


@pytest.mark.parametrize(("output_range", "low"), [([-1, 1], -1), ([0, 1], 0)])
def test_output_range_bounds_the_data(output_range: list[int], low: int) -> None:
    torch.manual_seed(0)
    x = ResConvGenerator(4, (1, 8, 8), output_range)(1e3 * torch.randn(16, 4))
    assert low <= x.min() < low + 0.3
    assert 0.7 < x.max() <= 1


def test_logits_go_below_the_floor_of_an_activation() -> None:
    torch.manual_seed(0)
    assert ResConvGenerator(4, (1, 8, 8))(1e3 * torch.randn(16, 4)).min() < -2


def test_mlp_encoder_sizes() -> None:
    encoder = MLPEncoder((1, 28, 28))
    dense = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert dense == [(784, 200), (200, 200)]
    assert sum(isinstance(m, nn.ReLU) for m in encoder.modules()) == 2
    assert encoder(torch.rand(3, 1, 28, 28)).shape == (3, encoder.out_features)
    assert MLPEncoder((2,), [9])(torch.randn(5, 2)).shape == (5, 9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResConvEncoder((2,)), "use `network=mlp`"),
        (lambda: ResConvEncoder((1, 8, 8), [0]), r"`channels\[0\]` must be a whole number"),
        (lambda: ResConvEncoder((1, 8, 8), linear_features=450), "`linear_features` must be a"),
        (lambda: ResConvEncoder((1, 8, 8), activation="elu"), "did you mean 'ELU'"),
        (lambda: ResConvEncoder((1, 8, 8), []), "`channels` must name at least one map"),
        (lambda: ResConvGenerator(3, (1, 8, 8), channels=[]), "`channels` must name at least one"),
        (
            lambda: ResConvEncoder((1, 8, 8), plain_blocks=-1),
            "`plain_blocks` must be a whole number of at least 0",
        ),
        (lambda: ResConvGenerator(0, (1, 8, 8)), "`latent_dim` must be a whole number"),
        (lambda: ResConvGenerator(3, (1, 8, 8), (0, 255)), "`output_range` must be null"),
        (lambda: MLPEncoder((2,), 64), "`hidden_features` must be a list"),
    ],
)
def test_wrong_sizes_are_refused_with_a_remedy(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
