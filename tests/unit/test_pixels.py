"""Pixel networks: what a pixel depends on, that probabilities add up, that draws are exact."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexgen.contracts import PixelOutput
from flexgen.networks import MADE, DiagonalBiLSTM, GatedPixelCNN, PixelCNN, RowLSTM
from flexgen.networks.dense_pixels import DensePixels
from flexgen.networks.pixel_cache import PixelCache
from flexgen.networks.pixels import PixelNetwork
from flexgen.outputs import Bernoulli, Categorical, LogisticMixture

OUTPUTS: dict[str, Callable[[], PixelOutput]] = {
    "bernoulli": Bernoulli,
    "categorical": lambda: Categorical((-1, 1), 4),
    "mixture": lambda: LogisticMixture((0, 1), 6, num_components=2),
}
NETWORKS: dict[str, Callable[..., PixelNetwork]] = {
    "gated": lambda *args, **more: GatedPixelCNN(
        *args, channels=5, num_layers=4, position_bias=True, **more
    ),
    "dense": lambda *args, **more: DensePixels(*args, num_features=6, **more),
    "pixelcnn": lambda *args, **more: PixelCNN(*args, channels=5, num_blocks=3, **more),
    "row_lstm": lambda *args, **more: RowLSTM(*args, channels=4, num_layers=2, **more),
    "diagonal_bilstm": lambda *args, **more: DiagonalBiLSTM(
        *args, channels=4, num_layers=2, **more
    ),
}
ABSENT = {
    "dense": {"dilations", "kernel_size", "first_kernel_size", "head_features"},
    "row_lstm": {"dilations"},
    "diagonal_bilstm": {"dilations", "kernel_size"},
}
"""Options that a network does not have."""
every_output = pytest.mark.parametrize("output", OUTPUTS)
every_network = pytest.mark.parametrize("kind", NETWORKS)


def build(kind: str, shape: Sequence[int], output: str | PixelOutput, **more: Any) -> PixelNetwork:
    """A network as far from its start as trained ones are."""
    torch.manual_seed(0)
    named = OUTPUTS[output]() if isinstance(output, str) else output
    has = {name: value for name, value in more.items() if name not in ABSENT.get(kind, ())}
    network = NETWORKS[kind](shape, named, **has).double()
    for parameter in network.parameters():  # biases start at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.head.last.weight.data *= 10
    return network


def depends(network: PixelNetwork) -> Tensor:
    """Whether the parameters of a pixel's set depend on what is seen of another's channel.

    Returns:
        `(pixels, sets, pixels, channels)`.
    """
    channels, height, width = network.shape
    found = torch.zeros(height * width, network.head.sets, height * width, channels).bool()
    for _ in range(3):  # a rectifier may be off at one image
        seen = torch.randn(2, *network.shape, dtype=torch.float64, requires_grad=True)
        parameters = network.head(network.features(seen, None), seen)
        weights = torch.rand_like(parameters)
        for pixel, k in itertools.product(range(height * width), range(network.head.sets)):
            row, column = divmod(pixel, width)
            total = (weights * parameters)[:, k, :, row, column].sum()
            (grad,) = torch.autograd.grad(total, seen, retain_graph=True)
            found[pixel, k] |= (grad != 0).any(0).flatten(1).mT
    return found


def check_causal(network: PixelNetwork, sees: Tensor | None = None) -> None:
    """Nothing but what comes before, and all of it that is in the receptive field `(pixels,
    pixels)`; None: all pixels before."""
    channels, height, width = network.shape
    before = torch.ones(height * width, height * width).tril(-1).bool()
    expected = (before if sees is None else sees)[:, None, :, None]
    expected = expected.expand(-1, network.head.sets, -1, channels).clone()
    if network.head.sets > 1:
        for pixel in range(height * width):
            expected[pixel, :, pixel] = torch.ones(channels, channels).tril(-1).bool()
    found = depends(network)
    assert not (found & ~expected).any(), "a pixel sees what comes after it"
    assert not (~found & expected).any(), "a pixel does not see all that comes before it"


@every_output
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dilations", [[1], [2, 1]])
def test_a_gated_network_sees_every_pixel_before_and_no_other(
    dilations: list[int], channels: int, output: str
) -> None:
    check_causal(build("gated", (channels, 5, 6), output, dilations=dilations))


@every_output
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dense_network_sees_every_pixel_before_and_no_other(channels: int, output: str) -> None:
    check_causal(build("dense", (channels, 3, 4), output))


def cone(shape: Sequence[int], kernels: Sequence[tuple[int, int, bool]]) -> Tensor:
    """Which pixels those of an image see through causal kernels of (reach, dilation, centre)."""
    _, height, width = shape
    seen = torch.zeros(height * width, height, width).bool()
    for pixel in range(height * width):
        here = {divmod(pixel, width)}
        for reach, step, centre in reversed(kernels):
            offsets = [(-a * step, b * step) for a in range(1, reach + 1)
                       for b in range(-reach, reach + 1)]  # fmt: skip
            offsets += [(0, -b * step) for b in range(0 if centre else 1, reach + 1)]
            here = {(i + a, j + b) for i, j in here for a, b in offsets}
            here = {(i, j) for i, j in here if i >= 0 and 0 <= j < width}
        for i, j in here:
            seen[pixel, i, j] = True
    return seen.flatten(1)


@every_output
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dilations", [[1], [2, 1]])
def test_a_pixelcnn_sees_its_kernels_cone_and_no_more(
    dilations: list[int], channels: int, output: str
) -> None:
    shape = (channels, 5, 7)
    network = build("pixelcnn", shape, output, dilations=dilations, first_kernel_size=3)
    steps = itertools.islice(itertools.cycle(dilations), 3)
    sees = cone(shape, [(1, 1, False), *((1, step, True) for step in steps)])
    check_causal(network, sees)


def test_the_blind_spot_is_pixelcnns_alone() -> None:
    small = {"first_kernel_size": 3}
    check_causal(build("gated", (1, 3, 7), "bernoulli", **small, kernel_size=5))
    with pytest.raises(AssertionError, match="does not see all"):
        check_causal(build("pixelcnn", (1, 3, 7), "bernoulli", **small, kernel_size=5))


FAILURES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "first row": lambda features, x: features(x) + x.roll(1, 2),  # it takes the last for that above
    "mask reversed": lambda features, x: features(x.flip(3)).flip(3),
    "mask B first": lambda features, x: features(x) + x,
    "batch statistics": lambda features, x: features(x) - features(x).mean((0, 2, 3), True),
}
"""What other implementations were published with, by name; no weight here is one under a mask."""


@pytest.mark.parametrize("failure", FAILURES)
def test_known_failures_are_seen(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("gated", (1, 4, 5), "bernoulli")
    check_causal(network)
    whole = network.features
    monkeypatch.setattr(
        network, "features", lambda x, _: FAILURES[failure](lambda x: whole(x, None), x)
    )
    with pytest.raises(AssertionError, match="sees what comes after"):
        check_causal(network)


def triangle(shape: Sequence[int], num_layers: int, first: int, reach: int) -> Tensor:
    """Which pixels those of an image see by Row LSTMs, `(pixels, pixels)`."""
    _, height, width = shape
    sees = cone(shape, [(first, 1, False)]).view(height, width, -1)
    for _ in range(num_layers):
        state = torch.zeros_like(sees)
        for i, j in itertools.product(range(height), range(width)):
            state[i, j] = sees[i, max(0, j - reach) : j + 1].any(0)
            if i:
                state[i, j] |= state[i - 1, max(0, j - reach) : j + reach + 1].any(0)
        sees = sees | state
    return sees.flatten(0, 1)


@every_output
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_row_lstm_sees_a_triangle(kernel_size: int, channels: int, output: str) -> None:
    shape = (channels, 5, 7)
    network = build("row_lstm", shape, output, first_kernel_size=3, kernel_size=kernel_size)
    sees = triangle(shape, 2, 1, kernel_size // 2)
    assert sees.sum() < torch.ones(35, 35).tril(-1).sum()
    check_causal(network, sees)


@every_output
@pytest.mark.parametrize("channels", [1, 3])
def test_a_diagonal_bilstm_sees_every_pixel_before_and_no_other(channels: int, output: str) -> None:
    check_causal(build("diagonal_bilstm", (channels, 4, 6), output, first_kernel_size=3))


def test_a_diagonal_bilstm_as_published_does_not_see_the_last_pixel_of_the_row_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build("diagonal_bilstm", (1, 4, 6), "bernoulli", first_kernel_size=3)
    monkeypatch.setattr(network.layers[0], "own", None)  # type: ignore[union-attr,index]
    with pytest.raises(AssertionError, match="does not see all"):
        check_causal(network)


def images(shape: Sequence[int], output: PixelOutput) -> Tensor:
    """All that there are."""
    levels = 2 if isinstance(output, Bernoulli) else output.levels  # type: ignore[attr-defined]
    low, high = output.data_range
    values = torch.linspace(low, high, levels, dtype=torch.float64)
    return torch.cartesian_prod(*[values] * math.prod(shape)).view(-1, *shape)


@every_network
@pytest.mark.parametrize(
    ("output", "channels"),
    [(Categorical((-1, 1), 4), 1), (Categorical((0, 1), 3), 2), (Bernoulli(), 3),
     (LogisticMixture((-1, 1), 4, 3), 1), (LogisticMixture((-1, 1), 3, 3), 2)],
)  # fmt: skip
def test_the_probabilities_of_all_images_add_up_to_1(
    kind: str, output: PixelOutput, channels: int
) -> None:
    network = build(kind, (channels, 2, 2), output)
    with torch.no_grad():
        log_prob = network().log_prob(images(network.shape, output))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.std() > 0.1


class Noting(Bernoulli):
    """Keeps the parameters of each draw."""

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []

    def draw(self, parameters: Tensor, noise: Tensor, out: Tensor) -> None:
        self.parameters.append(parameters.clone())
        super().draw(parameters, noise, out)


@every_network
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "context", [{}, {"num_classes": 3}, {"context_features": 2}, {"context_features": 2, "map": 1}]
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_cache_gives_the_logits_of_a_pass(
    kind: str, channels: int, context: dict[str, int], dtype: torch.dtype, most: float
) -> None:
    shape, output = (channels, 5, 4), Noting()
    maps = (5, 4) if "map" in context else ()
    context = {name: size for name, size in context.items() if name != "map"}
    network = build(kind, shape, output, dilations=[1, 2], **context).to(dtype)
    given = {"num_classes": torch.tensor([2, 0, 1]), "context_features": torch.randn(3, 2, *maps)}
    p = network(next((given[name] for name in context), None))
    x = p.sample(() if context else (3,))
    sets = network.head.sets
    drawn = torch.stack(output.parameters).view(20, sets, 3, -1).permute(2, 1, 3, 0)
    of_pass = network.parameters_of(x, p.context).flatten(3)
    assert drawn.shape == of_pass.shape
    assert (drawn - of_pass).abs().max() < most
    assert drawn.std() > 0.1


@every_output
@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_by_the_cache_are_those_of_whole_passes(
    kind: str, output: str, dtype: torch.dtype
) -> None:
    network = build(kind, (2, 5, 6), output).to(dtype)
    draws = []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(network().sample((2, 3), cached=cached))
    assert draws[0].shape == (2, 3, 2, 5, 6)
    assert torch.equal(*draws)
    assert draws[0].unique().numel() > 1
    torch.manual_seed(2)
    assert not torch.equal(network().sample((2, 3)), draws[0])


def frequencies(x: Tensor, all_images: Tensor) -> Tensor:
    """How often each image is among draws."""
    distance = torch.cdist(x.flatten(1), all_images.flatten(1))
    return distance.argmin(1).bincount(minlength=len(all_images)) / len(x)


@every_network
@pytest.mark.parametrize(
    "output",
    [Bernoulli(), Categorical((-1, 1), 3), LogisticMixture((0, 1), 3, 2)],
    ids=lambda output: type(output).__name__,
)
def test_images_are_drawn_as_often_as_they_are_likely(kind: str, output: PixelOutput) -> None:
    network = build(kind, (1, 2, 2), output)
    everything, n = images((1, 2, 2), output), 40_000
    with torch.no_grad():
        probability = network().log_prob(everything).exp()
    found = frequencies(network().sample((n,)), everything)
    error = (probability * (1 - probability) / n).sqrt()
    assert ((found - probability).abs() < 4.5 * error + 1e-4).all()


@every_network
def test_draws_are_of_what_is_left_given_a_prefix(kind: str) -> None:
    network = build(kind, (2, 2, 2), Bernoulli())
    everything, n = images((2, 2, 2), Bernoulli()), 20_000
    given = torch.tensor([[[1.0, 0.0], [0, 0]], [[1.0, 1.0], [1, 1]]]).double()
    x = network().sample((n,), given=given, known=2)
    assert (x[:, :, 0] == given[:, 0]).all()
    assert (x[:, :, 1] != given[:, 1]).any()
    with torch.no_grad():
        joint = network().log_prob(everything).exp()
    joint = joint * (everything[:, :, 0] == given[:, 0]).all(-1).all(-1)
    conditional = joint / joint.sum()
    error = (conditional * (1 - conditional) / n).sqrt()
    assert ((frequencies(x, everything) - conditional).abs() < 4.5 * error + 1e-4).all()


@every_output
@every_network
def test_known_pixels_are_kept(kind: str, output: str) -> None:
    network = build(kind, (2, 4, 5), output)
    own = network().sample((3,))
    for known in (0, 1, 7, 20):
        x = network().sample((3,), given=own, known=known)
        assert torch.equal(x.flatten(2)[..., :known], own.flatten(2)[..., :known])
    assert torch.equal(x, own)
    for known, given in ((21, own), (-1, own), (3, None)):
        with pytest.raises(ValueError, match=r"`known` must be .* from 0 to 20"):
            network().sample((3,), given=given, known=known)


@every_output
@every_network
@pytest.mark.parametrize("context", [None, "num_classes", "context_features"])
def test_every_parameter_gets_a_gradient(kind: str, output: str, context: str | None) -> None:
    network = build(kind, (2, 5, 6), output, **({context: 3} if context else {}))
    given = {"num_classes": torch.arange(3), "context_features": torch.randn(3, 3)}
    x = network(given.get(context or "")).sample(() if context else (3,))
    network(given.get(context or "")).log_prob(x).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


class LogProb(nn.Module):
    """log p of images of two classes."""

    def __init__(self, network: PixelNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.arange(2)).log_prob(x)


@every_output
@every_network
def test_gradients_are_those_of_finite_differences(kind: str, output: str) -> None:
    network = build(kind, (2, 3, 4), output, num_classes=2, dilations=[2, 1])
    x = network(torch.arange(2)).sample()
    names, weights = zip(*network.named_parameters(), strict=True)

    def log_prob(*values: Tensor) -> Tensor:
        given = dict(zip((f"network.{name}" for name in names), values, strict=True))
        return torch.func.functional_call(LogProb(network), given, (x,))

    torch.autograd.gradcheck(log_prob, weights, fast_mode=True)


def test_second_derivatives_are_right_or_refused() -> None:
    for kind in NETWORKS:
        network = build(kind, (1, 4, 4), "bernoulli")
        weight = network.head.first.weight
        log_prob = network().log_prob(torch.ones(1, 1, 4, 4).double()).sum()
        (grad,) = torch.autograd.grad(log_prob, weight, create_graph=True)
        other = next(p for name, p in network.named_parameters() if name.endswith("above.weight")
                     or name.endswith("vertical.weight") or name == "weight")  # fmt: skip
        if kind != "gated":
            assert torch.autograd.grad(grad.sum(), other)[0].any()
            continue
        (grad,) = torch.autograd.grad(log_prob, other, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives; take network=pixelcnn"):
            torch.autograd.grad(grad.sum(), other)
        incoming = torch.ones_like(log_prob, requires_grad=True)
        (grad,) = torch.autograd.grad(log_prob, other, incoming, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(grad.sum(), incoming)


@every_network
def test_a_class_changes_the_density(kind: str) -> None:
    network = build(kind, (1, 4, 4), "bernoulli", num_classes=3)
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64).round().expand(3, -1, -1, -1)
    p = network(torch.arange(3))
    assert p.batch_shape == (3,)
    log_prob = p.log_prob(x)
    assert log_prob.unique().numel() == 3
    assert p.log_prob(x.expand(2, -1, -1, -1, -1)).shape == (2, 3)
    torch.testing.assert_close(network(torch.tensor([1])).log_prob(x[:1]), log_prob[1:2])


@every_network
def test_shares_of_classes_are_labels_where_one_has_all(kind: str) -> None:
    network = build(kind, (1, 4, 4), "bernoulli", num_classes=3)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64).round()
    labels = torch.tensor([2, 0, 1])
    shares = functional.one_hot(labels, 3).double()
    assert torch.equal(network(shares).log_prob(x), network(labels).log_prob(x))
    mixed = network(shares.roll(1, 0) / 2 + shares / 2).log_prob(x)
    assert not torch.isclose(mixed, network(labels).log_prob(x)).any()
    with pytest.raises(ValueError, match=r"takes a context \(n, 3\).*got \(3, 2\)"):
        network(shares[:, :2]).log_prob(x)


@pytest.mark.parametrize("size", [(), (3, 4)])
@pytest.mark.parametrize("channels", [1, 2])
def test_without_layers_pixels_are_given_the_context_alone(
    size: tuple[int, ...], channels: int
) -> None:
    torch.manual_seed(0)
    shape = (channels, 3, 4)
    network = GatedPixelCNN(
        shape, Categorical((-1, 1), 4), channels=5, num_layers=0, context_features=2
    ).double()
    context = torch.randn(2, 2, *size).double()
    x = (torch.randint(4, (2, *shape)) / 1.5 - 1).double()
    other = x.clone()
    other[..., 1, 2] = other[..., 1, 2].flip(0)
    of_x, of_other = (network.parameters_of(each, context) for each in (x, other))
    apart = (of_x != of_other).flatten(0, 2).any(0)
    expected = torch.zeros(3, 4).bool()
    expected[1, 2] = channels > 1 and not torch.equal(x, other)  # the channels before, in the head
    assert torch.equal(apart, expected)
    assert (network.parameters_of(x, context + 1) != of_x).any(2).all()
    torch.manual_seed(1)
    cached = network(context).sample((3,))
    torch.manual_seed(1)
    assert torch.equal(cached, network(context).sample((3,), cached=False))


def test_neither_layers_nor_context_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_layers=1`, or `context_features`"):
        GatedPixelCNN((1, 4, 4), Bernoulli(), num_layers=0)
    with pytest.raises(ValueError, match="`num_layers=1`, or `position_bias=false`"):
        GatedPixelCNN((1, 4, 4), Bernoulli(), num_layers=0, context_features=2, position_bias=True)


def test_a_position_bias_tells_places_apart_whose_pixels_look_alike() -> None:
    """Far from the edges of a blank image all pixels see the same; not so with the bias."""
    torch.manual_seed(0)
    blank = torch.zeros(1, 1, 9, 9).double()
    network = GatedPixelCNN(
        (1, 9, 9), Bernoulli(), channels=4, num_layers=2, first_kernel_size=3, position_bias=True
    ).double()
    assert network.parameters_of(blank)[..., 3:, 3:6].unique().numel() == 1  # it starts at zero
    network.position_bias.data.normal_()
    assert network.parameters_of(blank)[..., 3:, 3:6].unique().numel() == 18


def test_a_context_that_does_not_fit_is_one_line() -> None:
    x = torch.zeros(2, 1, 4, 4).double()
    with pytest.raises(ValueError, match="takes no context"):
        build("gated", x.shape[1:], "bernoulli")(torch.arange(2)).log_prob(x)
    with pytest.raises(ValueError, match="3 classes must be given labels"):
        build("gated", x.shape[1:], "bernoulli", num_classes=3)().log_prob(x)
    p = build("gated", x.shape[1:], "bernoulli", context_features=2)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"takes a context \(n, 2\).*got \(2, 5\)"):
        p.log_prob(x)
    with pytest.raises(ValueError, match="leave one out"):
        build("gated", x.shape[1:], "bernoulli", num_classes=3, context_features=2)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"kernel_size": 4}, "must be odd, got 4; set 5"), ({"first_kernel_size": 1}, "at least 3"),
     ({"dilations": [0]}, "at least 1"), ({"head_features": -2}, "at least 1")],
)  # fmt: skip
def test_sizes_that_are_none_are_refused(kind: str, wrong: dict[str, Any], told: str) -> None:
    if wrong.keys() & ABSENT.get(kind, set()):
        pytest.skip("it has no such option")
    with pytest.raises(ValueError, match=told):
        build(kind, (1, 4, 4), "bernoulli", **wrong)


@every_network
def test_mode_and_companions_do_not_count(kind: str) -> None:
    network = build(kind, (1, 5, 5), "bernoulli")
    x = torch.rand(6, 1, 5, 5, dtype=torch.float64).round()
    trained = network.train()().log_prob(x)
    torch.testing.assert_close(network.eval()().log_prob(x), trained, rtol=0, atol=1e-12)
    torch.testing.assert_close(network().log_prob(x[:1]), trained[:1], rtol=0, atol=1e-12)


@every_network
def test_training_does_not_undo_causality(kind: str) -> None:
    network = build(kind, (2, 4, 4), "categorical", **{"first_kernel_size": 7})
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        x = torch.randint(4, (8, 2, 4, 4)) / 1.5 - 1
        (-network().log_prob(x.double()).mean()).backward()
        for parameter in network.parameters():  # as noise that an optimizer may add
            parameter.grad = parameter.grad + 0.1 * torch.randn_like(parameter)  # type: ignore[operator]
        optimizer.step()
    found = depends(network)
    after = torch.ones(16, 16).triu(1).bool()
    assert not found[after.nonzero(as_tuple=True)[0], :, after.nonzero(as_tuple=True)[1]].any()
    same = found[torch.arange(16), :, torch.arange(16)]
    assert not (same & torch.ones(2, 2).triu().bool()).any()


class Masked(PixelNetwork):
    """Two convolutions by mask × weight, as many write them, with a published failure or none."""

    def __init__(self, failure: str) -> None:
        super().__init__((1, 4, 3), Bernoulli(), 4, 4)
        self.failure = failure
        self.convs = nn.ModuleList([nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 4, 5, padding=2)])
        self.norm = nn.BatchNorm2d(4)
        for k, conv in enumerate(self.convs):
            conv.weight.data *= self.mask(k)
        self.double()

    def mask(self, layer: int) -> Tensor:
        mask = torch.zeros(5, 5)
        mask[:2] = 1
        mask[2, : 2 + layer] = 1
        if self.failure == "reversed":
            mask = mask.flip(0, 1)
        if self.failure == "first row":
            mask[2, 3:] = 1
        if self.failure == "blind spot":
            mask[:2, 3:] = 0
        return mask.double()

    def features(self, seen: Tensor, context: Tensor | None) -> Tensor:
        for k, conv in enumerate(self.convs):
            weight = conv.weight if self.failure == "gradients" else conv.weight * self.mask(k)
            seen = functional.conv2d(seen, weight, conv.bias, padding=2).tanh()
        return self.norm(seen) if self.failure == "statistics" else seen

    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        raise NotImplementedError


def test_a_masked_network_without_a_failure_passes() -> None:
    torch.manual_seed(0)
    check_causal(Masked("none"))


@pytest.mark.parametrize("failure", ["reversed", "first row", "blind spot", "gradients"])
def test_the_gradient_test_finds_published_failures(failure: str) -> None:
    torch.manual_seed(0)
    network = Masked(failure)
    if failure == "gradients":
        check_causal(network)  # at first
        network().log_prob(torch.ones(1, 1, 4, 3).double()).sum().backward()
        torch.optim.Adam(network.parameters()).step()
    with pytest.raises(AssertionError, match="a pixel"):
        check_causal(network)


def test_batch_statistics_in_train_mode_are_found() -> None:
    torch.manual_seed(0)
    network = Masked("statistics")
    with pytest.raises(AssertionError, match="sees what comes after"):
        check_causal(network)
    check_causal(network.eval())


def logistic_cdf(x: float, mean: float, scale: float) -> float:
    return 1 / (1 + math.exp(-(x - mean) / scale))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_mixture_is_what_its_formula_says(channels: int) -> None:
    torch.manual_seed(0)
    levels, m = 6, 3
    output = LogisticMixture((0, 1), levels, m)
    pairs = channels * (channels - 1) // 2
    parameters = torch.randn(1 + 2 * channels + pairs, m, dtype=torch.float64)
    logits, loc = parameters[0], parameters[1 : 1 + channels]
    log_scale = parameters[1 + channels : 1 + 2 * channels]
    for index in itertools.product((0, 2, levels - 1), repeat=channels):
        x = [2 * i / (levels - 1) - 1 for i in index]
        expected = 0.0
        for k in range(m):
            term = float(logits.softmax(0)[k])
            rows = iter(parameters[1 + 2 * channels :, k].tanh().tolist())
            for c in range(channels):
                mean = float(loc[c, k]) + sum(next(rows) * x[b] for b in range(c))
                scale, half = math.exp(float(log_scale[c, k])), 1 / (levels - 1)
                upper = 1.0 if index[c] == levels - 1 else logistic_cdf(x[c] + half, mean, scale)
                lower = 0.0 if index[c] == 0 else logistic_cdf(x[c] - half, mean, scale)
                term *= upper - lower
            expected += term
        datum = torch.tensor(index, dtype=torch.float64)[None] / (levels - 1)
        found = output.log_prob(parameters.flatten()[None], datum)
        assert found.item() == pytest.approx(math.log(expected), abs=1e-12)


def test_a_mixture_far_from_the_data_stays_finite() -> None:
    output = LogisticMixture((-1, 1), 256, 1)
    parameters = torch.tensor([[0.0, 40.0, -9.0]]).requires_grad_()
    for value in (-1.0, 2 * 100 / 255 - 1, 1.0):
        log_prob = output.log_prob(parameters, torch.tensor([[value]]))
        assert log_prob.isfinite().all()
        (grad,) = torch.autograd.grad(log_prob.sum(), parameters)
        assert grad.isfinite().all()


def test_data_of_8_bits_are_those_of_their_grid() -> None:
    network = build("gated", (1, 4, 4), "categorical")
    exact = torch.randint(4, (3, 1, 4, 4)).double() / 1.5 - 1
    stored = (((exact + 1) / 2 * 255).round() / 255) * 2 - 1
    assert not torch.equal(exact, stored + 0.001)
    torch.testing.assert_close(network().log_prob(stored + 0.001), network().log_prob(exact))


@pytest.mark.parametrize(
    ("output", "x", "told"),
    [(Bernoulli(), [0.0, 0.4], r"pixels that are 0 or 1, got 0.4; use .*output=categorical"),
     (Categorical((0, 1), 256), [0.0, 0.25, 0.5, 1.0], r"256 levels .* set output.levels=5"),
     (LogisticMixture((0, 1), 16), [0.0, 0.1234567, 1.0], "on their grid, got 3 values")],
)  # fmt: skip
def test_data_that_an_output_is_not_of_are_refused(
    output: PixelOutput, x: list[float], told: str
) -> None:
    network = GatedPixelCNN((1, 4, 4), output, channels=2, num_layers=1)
    with pytest.raises(ValueError, match=told):
        network.check_data(torch.tensor(x))


def made(**more: Any) -> MADE:
    torch.manual_seed(0)
    network = MADE((1, 3, 3), [40, 40], **more).double()
    return network.eval()


@pytest.mark.parametrize("order", [0, 2])
def test_a_made_logit_sees_all_that_is_before_it_in_its_order(order: int) -> None:
    network = made(num_orders=3)
    found = torch.zeros(9, 9).bool()
    for _ in range(20):
        x = torch.randn(9, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(
            lambda x: network.logits(x[None], order)[0], x
        )
        found |= jacobian != 0
    places = network.orders[order]
    assert torch.equal(found[places][:, places], torch.ones(9, 9).tril(-1).bool())


@pytest.mark.parametrize("num_orders", [1, 3])
def test_the_probabilities_of_a_made_add_up_to_1(num_orders: int) -> None:
    network = made(num_orders=num_orders, num_classes=2)
    x = images((1, 3, 3), Bernoulli())
    log_prob = network(torch.tensor([1])).log_prob(x[:, None])
    assert log_prob.shape == (512, 1)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.std() > 0.1


def test_a_made_in_train_mode_is_of_one_order_and_below_on_average() -> None:
    network, x = made(num_orders=3), images((1, 3, 3), Bernoulli())[:50]
    exact = network().log_prob(x)
    network.train()
    each = torch.stack([network().log_prob(x) for _ in range(60)])
    assert len(each.unique(dim=0)) == 3
    assert each.unique(dim=0).mean(0).sum() < exact.sum()
    torch.testing.assert_close(each.unique(dim=0).logsumexp(0) - math.log(3), exact)


@pytest.mark.parametrize("num_orders", [1, 3])
@pytest.mark.parametrize("num_classes", [None, 2])
def test_draws_of_a_made(num_orders: int, num_classes: int | None) -> None:
    network = made(num_orders=num_orders, num_classes=num_classes)
    p, draws = network(None if num_classes is None else torch.tensor([1])), []
    for cached in (True, False):
        torch.manual_seed(3)
        draws.append(p.sample((20_000,), cached=cached).view(-1, 1, 3, 3))
    assert torch.equal(*draws)
    everything = images((1, 3, 3), Bernoulli())
    with torch.no_grad():
        probability = p.log_prob(everything.view(512, *p.batch_shape, 1, 3, 3)).flatten().exp()
    error = (probability * (1 - probability) / 20_000).sqrt()
    assert ((frequencies(draws[0], everything) - probability).abs() < 5 * error + 1e-4).all()


def test_a_made_keeps_known_coordinates_where_they_come_first() -> None:
    x = made()().sample((4,))
    y = made()().sample((4,), given=x, known=5)
    assert torch.equal(y.flatten(1)[:, :5], x.flatten(1)[:, :5])
    with pytest.raises(ValueError, match="3 orders; build it with `num_orders=1`"):
        made(num_orders=3)().sample((4,), given=x, known=5)


def test_training_does_not_undo_a_mades_masks() -> None:
    network, x = made(), images((1, 3, 3), Bernoulli())
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(5):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert network().log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
