"""Likelihoods and posteriors as distributions."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Independent, MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

from flexgen.distributions import DiagonalNormal
from flexgen.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian
from flexgen.networks import MLPGenerator
from flexgen.posteriors import DiagonalGaussian, FullGaussian

SHAPE = (1, 3, 2)


@pytest.fixture
def decoder() -> MLPGenerator:
    torch.manual_seed(0)
    return MLPGenerator(2, SHAPE, None, [8])


@pytest.mark.parametrize("batch", [(5,), (4, 5)])
def test_bernoulli_and_gaussian_equal_torchs(decoder: nn.Module, batch: tuple[int, ...]) -> None:
    z, x = torch.randn(*batch, 2), torch.rand(5, *SHAPE).round()
    bernoulli, gaussian = Bernoulli(decoder)(z), Gaussian(decoder, 0.5)(z)
    assert bernoulli.batch_shape == batch
    assert bernoulli.event_shape == SHAPE
    logits = decoder(z.reshape(-1, 2)).view(*batch, *SHAPE)
    theirs = Independent(TorchBernoulli(logits=logits), 3)
    torch.testing.assert_close(bernoulli.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(bernoulli.mean, theirs.mean)
    normal = Independent(TorchNormal(logits, 0.5), 3)
    torch.testing.assert_close(gaussian.log_prob(x), normal.log_prob(x))


@pytest.mark.parametrize("scale", [0.003, 0.1, 5.0])
@pytest.mark.parametrize("loc", [-1.3, 0.0, 0.21])
def test_the_masses_of_all_values_add_up_to_1(scale: float, loc: float) -> None:
    def decoder(z: Tensor) -> Tensor:
        return torch.full((len(z), 1), loc, dtype=torch.float64)

    likelihood = DiscretisedLogistic(decoder, (-1, 1), levels=16, scale=scale)  # type: ignore[arg-type]
    p = likelihood(torch.zeros(16, 2))
    log_prob = p.log_prob(torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None])
    assert log_prob.isfinite().all()
    assert log_prob.exp().sum().item() == pytest.approx(1, rel=1e-6)


def test_a_logistic_far_from_the_data_stays_finite(decoder: nn.Module) -> None:
    likelihood = DiscretisedLogistic(decoder, scale=1e-3)
    z = torch.zeros(1, 2, requires_grad=True)
    log_prob = likelihood(z).log_prob(torch.full((1, *SHAPE), 0.5))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", [Bernoulli, Gaussian, DiscretisedLogistic])
def test_samples_have_the_mean(decoder: nn.Module, kind: type) -> None:
    torch.manual_seed(0)
    p = kind(decoder, **({"scale": 0.01} if kind is DiscretisedLogistic else {}))(torch.zeros(1, 2))
    x = p.sample((4000,))
    assert x.shape == (4000, 1, *SHAPE)
    assert not x.requires_grad
    torch.testing.assert_close(x.mean(0), p.mean.detach(), rtol=0, atol=0.06)


def pixels(levels: int, low: float, high: float, of_8_bits: bool = False) -> Tensor:
    """Four images of all values of a grid."""
    u = torch.linspace(0, 1, levels, dtype=torch.float64)[torch.randperm(4 * levels) % levels]
    u = (u * 255).round() / 255 if of_8_bits else u
    return (low + (high - low) * u).float().view(4, levels)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_data_of_as_many_values_as_levels_are_taken(
    decoder: nn.Module, bounds: tuple[float, float]
) -> None:
    for levels, of_8_bits in ((2, True), (17, True), (64, True), (256, True), (1000, False)):
        x = pixels(levels, *bounds, of_8_bits)
        DiscretisedLogistic(decoder, bounds, levels).check_data(x)
    # Few of 256 values, as in a small batch of dark images, lie on no coarser grid by chance.
    dark = torch.tensor([0, 1, 2, 3, 5, 8, 13, 21, 34]) / 255
    x = bounds[0] + (bounds[1] - bounds[0]) * dark
    DiscretisedLogistic(decoder, bounds, 256).check_data(x)
    DiscretisedLogistic(decoder, bounds, 256).check_data(torch.full((3, 4), bounds[0]))


@pytest.mark.parametrize(
    ("levels", "values", "remedy"),
    [
        (256, 17, r"got data of 17; set likelihood\.levels=17"),
        (16, 17, r"got data of 17; set likelihood\.levels=17"),
        (17, 256, r"got data of 256; set likelihood\.levels=256"),
        (17, 9, r"got data of 9; set likelihood\.levels=9"),
        (256, 2, r"likelihood\.levels=2, or likelihood=bernoulli with data\.range=\[0,1\]"),
    ],
)
def test_data_of_another_number_of_values_are_refused(
    decoder: nn.Module, levels: int, values: int, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        DiscretisedLogistic(decoder, levels=levels).check_data(pixels(values, -1, 1, True))


def test_data_off_the_grid_are_refused(decoder: nn.Module) -> None:
    x = torch.linspace(-1, 1, 5000) ** 3
    for off in (x, x[:500]):
        with pytest.raises(ValueError, match=r"on their grid.*are not; set likelihood=gaussian"):
            DiscretisedLogistic(decoder).check_data(off)


class Encoder(nn.Module):
    out_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_full_gaussian_is_torchs_and_starts_diagonal() -> None:
    torch.manual_seed(0)
    q, x = FullGaussian(Encoder(), 4), torch.randn(5, 3)
    assert torch.equal(q(x).lower, torch.eye(4).expand(5, 4, 4))
    nn.init.normal_(q.below.weight)
    p = q(x)
    z, log_prob = p.rsample_and_log_prob((7,))
    lower = p.lower * p.scale[:, None, :]
    theirs = MultivariateNormal(p.loc, scale_tril=lower)
    torch.testing.assert_close(log_prob, theirs.log_prob(z), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(p.log_prob(z), log_prob, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(p.variance, theirs.variance)


def test_a_diagonal_gaussian_draws_with_their_density() -> None:
    torch.manual_seed(0)
    p = DiagonalGaussian(Encoder(), 4)(torch.randn(5, 3))
    z, log_prob = p.rsample_and_log_prob((7,))
    assert z.shape == (7, 5, 4)
    assert log_prob.shape == (7, 5)
    torch.testing.assert_close(p.log_prob(z), log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_a_draw_and_its_kl_equal_torchs_with_all_their_gradients(sample_shape: tuple[int]) -> None:
    torch.manual_seed(0)
    shapes = (5, 4), (5, 4), (4,), (4,)
    values = [torch.randn(s, dtype=torch.float64).abs() + 0.1 for s in shapes]
    loc, scale, other_loc, other_scale = [v.requires_grad_() for v in values]

    def ours(*values: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        loc, scale, *other = values
        return DiagonalNormal(loc, scale).rsample_and_kl(DiagonalNormal(*other), sample_shape)

    z, kl = ours(loc, scale, other_loc, other_scale)
    theirs = kl_divergence(TorchNormal(loc, scale), TorchNormal(other_loc, other_scale))
    torch.testing.assert_close(kl, theirs)
    torch.manual_seed(1)
    assert torch.equal(z, DiagonalNormal(loc, scale).rsample(sample_shape))
    assert torch.autograd.gradcheck(ours, (loc, scale, other_loc, other_scale))
    assert torch.autograd.gradgradcheck(ours, (loc, scale, other_loc, other_scale))


def test_an_encoder_must_tell_its_features() -> None:
    with pytest.raises(ValueError, match="out_features"):
        DiagonalGaussian(nn.Identity(), 4)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_must_be_above_0(decoder: nn.Module, scale: float) -> None:
    for kind in (Gaussian, DiscretisedLogistic):
        with pytest.raises(ValueError, match="`scale`"):
            kind(decoder, scale=scale)
