"""Autoencoders without a bound, and what keeps their codes in order."""

import pytest
import torch
from torch import nn

import flexgen
from flexgen.likelihoods import Bernoulli, Gaussian
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import GAN, WGAN
from flexgen.posteriors import Deterministic
from flexgen.priors import Normal
from flexgen.regularisers import MMD, AdversarialCodes, DecoderGradient, SpectralNorm, WeightNorm

D = 3


def linear_decoder() -> Gaussian:
    return Gaussian(MLPGenerator(D, (5,), hidden_features=[]), learn_scale=False)


def kernel(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    distance = float((a - b).square().sum())
    scales = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    return sum(s * scale / (s * scale + distance) for s in scales)


def test_mmd_is_the_sum_over_pairs_and_0_on_average_for_the_same_distribution() -> None:
    torch.manual_seed(0)
    z, drawn = torch.randn(2, 5, D, dtype=torch.float64)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    scale = sum(float((drawn[i] - drawn[j]).square().sum()) for i, j in pairs) / 20
    within = sum(kernel(a[i], a[j], scale) for a in (z, drawn) for i, j in pairs) / 20
    across = sum(kernel(a, b, scale) for a in z for b in drawn) / 25
    found = MMD(2.0)(z, drawn, linear_decoder(), None)
    assert float(found) == pytest.approx(2 * (within - 2 * across))
    same = torch.stack(
        [MMD(1.0)(*torch.randn(2, 50, D), linear_decoder(), None) for _ in range(200)]
    )
    assert abs(float(same.mean())) < 4 * float(same.std()) / 200**0.5
    shifted = MMD(1.0)(torch.randn(50, D) + 1, torch.randn(50, D), linear_decoder(), None)
    assert float(shifted) > 10 * float(same.std())


def test_the_gradient_of_a_linear_decoder_is_its_matrix() -> None:
    torch.manual_seed(0)
    likelihood = linear_decoder()
    z = torch.randn(20_000, D)
    found = DecoderGradient(0.5)(z, z, likelihood, None)
    weight = likelihood.decoder.output.weight
    torch.testing.assert_close(found, 0.5 * weight.square().sum(), rtol=0.05, atol=0)


def test_weights_of_the_decoder_are_counted_without_biases() -> None:
    likelihood = linear_decoder()
    z = torch.zeros(2, D)
    expected = 0.1 * likelihood.decoder.output.weight.square().sum()
    torch.testing.assert_close(WeightNorm(0.1)(z, z, likelihood, None), expected)


def test_a_spectral_norm_bounds_each_layer() -> None:
    torch.manual_seed(0)
    likelihood = Gaussian(MLPGenerator(D, (5,), hidden_features=[8]))
    for layer in likelihood.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(10)
    SpectralNorm().prepare(likelihood)
    for _ in range(20):
        likelihood(torch.randn(2, D))
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
        for layer in likelihood.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert norms == pytest.approx([1.0, 1.0], abs=0.01)


def test_each_player_gets_the_gradient_of_its_own_game() -> None:
    torch.manual_seed(0)
    critic, game, drawn = MLPCritic((D,), hidden_features=[8]), GAN(), torch.randn(6, D)
    z = torch.randn(6, D, requires_grad=True)
    AdversarialCodes(critic, game, weight=3.0)(z, drawn, linear_decoder(), None).backward()
    (of_codes,) = torch.autograd.grad(3 * game.generator(critic(z)), z)
    of_critic = torch.autograd.grad(
        game.critic(critic(drawn), critic(z.detach())), list(critic.parameters())
    )
    torch.testing.assert_close(z.grad, of_codes)
    for p, expected in zip(critic.parameters(), of_critic, strict=True):
        torch.testing.assert_close(p.grad, expected)
    with pytest.raises(ValueError, match=r"not clipped; use .*=gan"):
        AdversarialCodes(critic, WGAN())


def test_a_loss_is_reconstruction_length_and_regulariser() -> None:
    torch.manual_seed(0)
    likelihood = linear_decoder()
    posterior = Deterministic(MLPEncoder((5,), hidden_features=[4]), D)
    model = flexgen.models.Autoencoder(
        posterior, likelihood, Normal(D), WeightNorm(0.1), code_norm=0.2, optimizer=torch.optim.Adam
    )
    x = torch.randn(7, 5)
    z = posterior(x).mean
    expected = (
        -likelihood(z).log_prob(x).mean()
        + 0.1 * z.square().sum(1).mean()
        + 0.1 * likelihood.decoder.output.weight.square().sum()
    )
    torch.testing.assert_close(model.loss(x), expected)
    torch.testing.assert_close(model.encode(x), z.detach())
    # No bound, no draws of p(z|x): nothing may be taken for a likelihood.
    assert not {"posterior", "likelihood", "log_likelihood"} & model.capabilities


def test_a_decoder_without_a_mean_has_no_gradient() -> None:
    likelihood = Bernoulli(MLPGenerator(D, (5,)))
    likelihood.has_mean = False
    with pytest.raises(ValueError, match=r"needs the mean.*use likelihood=gaussian"):
        DecoderGradient().prepare(likelihood)
