"""Codes that are lists and dicts, W, W+ and noise maps, each as one flat vector; pivotal tuning."""

import warnings

import pytest
import torch
from torch import nn

from flexgen.priors import Normal
from flexgen.reversal import NoiseMaps, Structured, WSpace, pivotal_tuning, posterior_codes, reverse

LAYERS, WIDTH = 3, 5


class Style(nn.Module):
    """A linear synthesis of three layers behind a linear map with a leaky ReLU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 36, bias=False) for _ in range(LAYERS))
        self.register_buffer("noise_const", torch.randn(6, 6))

    def mapping(self, z):
        return nn.functional.leaky_relu(self.map(z) + 0.3, 0.2)

    def synthesis(self, ws):
        x = sum(layer(w) for layer, w in zip(self.layers, ws.unbind(1), strict=True))
        return x.view(-1, 1, 6, 6) + 0.1 * self.noise_const

    def forward(self, z):
        return self.synthesis(self.mapping(z)[:, None].expand(-1, LAYERS, -1))


@pytest.fixture(scope="module")
def style():
    return Style().requires_grad_(False)


def space_of(style, **options):
    return WSpace(style.mapping, style.synthesis, 4, layers=LAYERS, num_draws=2000, **options)


def draws(n, size, seed=3):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_structured_codes_go_there_and_back():
    shapes = {"w": [2, 3], "noise": [[1, 2, 2], [4]]}
    space = Structured(lambda c: c["w"].flatten(1).sum(1, keepdim=True) * c["noise"][1], shapes)
    z = draws(5, 14)
    codes = space.unflatten(z)
    assert codes["w"].shape == (5, 2, 3)
    assert [part.shape for part in codes["noise"]] == [(5, 1, 2, 2), (5, 4)]
    assert torch.equal(space.flatten(dict(reversed(codes.items()))), z)
    x = space(z)
    found = reverse(space, x, latent_shape=space.latent_dim)
    assert found.loss.max() < 1e-3 * x.square().sum(1).mean()


@pytest.mark.parametrize("shapes", [[[3], ["a"]], {"a": 0.5}, {"a": []}])
def test_what_is_no_structure_is_refused(shapes):
    with pytest.raises(ValueError, match=r"`shapes` must be lists and dicts of shapes"):
        Structured(lambda c: c, shapes)


@pytest.mark.parametrize("slope", [1.0, 5.0])
def test_codes_of_w_are_whitened_and_invertible(style, slope):
    space = space_of(style, slope=slope)
    z = draws(4000, 4)
    u = space.of_z(z)
    torch.testing.assert_close(space(u), style(z), atol=1e-4, rtol=0)
    assert u.mean(0).abs().max() < 0.1
    # w has 5 dimensions of a 4-dimensional z: with slope 5 the fifth does not vary.
    assert u.T.cov().diagonal().max() < 1.2
    if slope == 1:
        middle = style.mapping(z).mean(0)
        torch.testing.assert_close(
            space.to_w(torch.zeros(1, WIDTH))[0, 0], middle, atol=0.05, rtol=0
        )


def test_w_gives_its_codes_back_and_w_plus_is_at_least_as_good(style):
    one, each = space_of(style), space_of(style, plus=True)
    assert (one.latent_dim, each.latent_dim) == (WIDTH, LAYERS * WIDTH)
    u = one.of_z(draws(4, 4))
    found = reverse(one, one(u), latent_shape=WIDTH, tolerance=1e-5)
    torch.testing.assert_close(one.to_w(found.z), one.to_w(u), atol=5e-3, rtol=0)
    x = draws(6, 36).view(6, 1, 6, 6)
    of_w = reverse(one, x, latent_shape=WIDTH)
    start = each.of_w(one.to_w(of_w.z))
    torch.testing.assert_close(each(start), of_w.x_hat, atol=1e-4, rtol=0)
    of_each = reverse(each, x, latent_shape=LAYERS * WIDTH, init=start)
    assert (of_each.loss < of_w.loss).all()


def test_the_mapped_prior_is_a_constraint_and_a_posterior(style):
    space = space_of(style, slope=5.0)
    x = 3 * draws(3, 36).view(3, 1, 6, 6)
    norms = {}
    for weight in (0.01, 30.0):
        found = reverse(space, x, latent_shape=WIDTH, constraint="map", constraint_weight=weight)
        norms[weight] = found.z.norm()
    assert norms[30.0] < 0.5 * norms[0.01]
    drawn = posterior_codes(space, x, prior=Normal(WIDTH), sigma=5.0, num_temperatures=5)
    assert drawn.z.shape == (3, WIDTH)


def test_noise_maps_are_variables(style):
    space = NoiseMaps(style, [4], "noise_const")
    assert space.latent_dim == 4 + 36
    z, kept = draws(2, 4), style.noise_const.clone()
    own = torch.cat([z, style.noise_const.flatten().expand(2, -1)], 1)
    torch.testing.assert_close(space(own), style(z))
    assert not torch.allclose(space(space.with_noise(z, 0)), style(z), atol=1e-2)
    x = draws(2, 36).view(2, 1, 6, 6)
    found = reverse(
        space, x, latent_shape=space.latent_dim, constraint="map", constraint_weight=1e-3
    )
    assert (found.loss < reverse(style, x, latent_shape=4).loss).all()
    assert torch.equal(style.noise_const, kept)


def test_what_has_no_noise_or_layers_is_refused(style):
    with pytest.raises(ValueError, match=r"`noise` must be the end .* it has noise_const"):
        NoiseMaps(style, [4], "weight")
    with pytest.raises(ValueError, match=r"`layers` must say how many"):
        WSpace(style.mapping, style.synthesis, 4, plus=True)
    with pytest.raises(ValueError, match=r"must give all layers the same w"):
        WSpace(lambda z: torch.stack([z, 2 * z], 1), style.synthesis, 4)


def test_pivotal_tuning_lowers_the_loss_in_a_copy(style):
    x = draws(3, 36).view(3, 1, 6, 6)
    z = reverse(style, x, latent_shape=4).z
    before = {name: value.clone() for name, value in style.state_dict().items()}
    near = pivotal_tuning(style, x, z, steps=60, lr=0.01)
    assert (near.loss < 0.7 * near.before).all()
    torch.testing.assert_close(near.before, (style(z) - x).square().flatten(1).sum(1) / 2)
    assert all(torch.equal(value, before[name]) for name, value in style.state_dict().items())
    assert not any(parameter.requires_grad for parameter in near.generator.parameters())
    free = pivotal_tuning(style, x, z, steps=60, lr=0.01, locality=0)
    held = pivotal_tuning(style, x, z, steps=60, lr=0.01, locality=3)
    assert held.drift < 0.8 * free.drift


def test_a_program_is_tuned_too(style):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out
        script = torch.jit.trace(style, draws(2, 4))
        found = pivotal_tuning(script, style(draws(3, 4)) + 0.1, draws(3, 4), steps=30, lr=0.01)
    assert (found.loss < found.before).all()
    torch.testing.assert_close(script(draws(3, 4)), style(draws(3, 4)))


def test_pivotal_tuning_needs_weights():
    with pytest.raises(ValueError, match=r"needs a torch.nn.Module with parameters"):
        pivotal_tuning(lambda z: z, torch.zeros(1, 4), torch.zeros(1, 4))
