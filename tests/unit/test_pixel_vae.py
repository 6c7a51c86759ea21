"""Pixel networks given a code, and the control that knows the position alone."""

import pytest
import torch
from torch import nn

from flexgen.likelihoods import AutoregressiveLikelihood
from flexgen.networks import GatedPixelCNN, MLPGenerator, Positioned
from flexgen.outputs import Bernoulli, Categorical

SHAPE = (1, 4, 5)


def pixels(**options):
    return GatedPixelCNN(SHAPE, Bernoulli(), channels=4, num_layers=2, **options)


@pytest.fixture
def likelihood():
    torch.manual_seed(0)
    decoder = MLPGenerator(3, (2, 4, 5), None, [8])
    return AutoregressiveLikelihood(decoder, pixels(context_features=2)).double()


def test_each_code_gives_the_network_its_own_maps(likelihood):
    z, x = torch.randn(7, 6, 3).double(), torch.rand(6, *SHAPE).round().double()
    found = likelihood(z).log_prob(x)
    assert found.shape == (7, 6)
    for draw, code in zip(found, z, strict=True):
        expected = likelihood.pixels(likelihood.decoder(code)).log_prob(x)
        torch.testing.assert_close(draw, expected)
    assert not torch.allclose(found[0], found[1])


def test_draws_have_a_shape_for_each_code_and_the_frequencies_of_their_density(likelihood):
    z = torch.randn(2, 3, 3).double()
    p = likelihood(z)
    assert p.batch_shape == (2, 3)
    assert p.sample().shape == (2, 3, *SHAPE)
    torch.manual_seed(1)
    drawn = p.sample((4000,))
    assert drawn.shape == (4000, 2, 3, *SHAPE)
    # Of a draw x of each code, how often its first pixel is 1, against the density of that pixel.
    first = torch.zeros(2, 3, *SHAPE).double()
    logits = likelihood.pixels.parameters_of(
        first.flatten(0, 1), likelihood.decode(z, None)[0].flatten(0, 1)
    )
    share = logits[..., 0, 0].flatten().sigmoid().view(2, 3)
    torch.testing.assert_close(drawn[..., 0, 0, 0].mean(0), share, rtol=0, atol=0.04)


def test_every_pixel_pulls_on_the_code(likelihood):
    z = torch.randn(1, 3).double().requires_grad_()
    x = torch.rand(1, *SHAPE).round().double()
    parameters = likelihood.pixels.parameters_of(x, likelihood.decode(z, None)[0])
    for pixel in parameters.flatten():
        (slope,) = torch.autograd.grad(pixel, z, retain_graph=True)
        assert slope.abs().sum() > 0


def test_a_position_alone_is_one_distribution():
    torch.manual_seed(0)
    density = Positioned(pixels(context_features=3)).double()
    x = torch.rand(5, *SHAPE).round().double()
    found = density().log_prob(x)
    expected = density.network(density.maps.expand(5, -1, -1, -1)).log_prob(x)
    torch.testing.assert_close(found, expected)
    assert density().event_shape == SHAPE
    assert density().sample((5,)).shape == (5, *SHAPE)
    # The maps matter, so that a pixel is told where it lies.
    with torch.no_grad():
        density.maps.mul_(-1)
    assert not torch.allclose(density().log_prob(x), found)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
def test_a_network_without_maps_to_learn_is_refused(options):
    with pytest.raises(ValueError, match="`context_features`, as many as maps"):
        Positioned(pixels(**options))


def test_all_images_together_have_a_probability_of_1_given_a_code():
    torch.manual_seed(0)
    network = GatedPixelCNN(
        (1, 2, 2), Categorical((0.0, 1.0), 3), channels=4, num_layers=2, context_features=2
    )
    likelihood = AutoregressiveLikelihood(nn.Unflatten(1, (2, 2, 2)), network).double()
    values = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0]).double()] * 4)
    log_prob = likelihood(torch.randn(8).double()).log_prob(
        values.view(-1, 1, 2, 2).unsqueeze(1)[:, 0]
    )
    assert log_prob.exp().sum().item() == pytest.approx(1)
