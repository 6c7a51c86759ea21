"""A prior of levels: its density, its noise, its KL level by level, the evidence under it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.distributions import Normal as Univariate

from flexgen.callbacks import LikelihoodScore
from flexgen.distributions import DiagonalNormal
from flexgen.likelihoods import Gaussian
from flexgen.models import VAE
from flexgen.networks import GatedPixelCNN, MLPFirstLevel
from flexgen.outputs import NormalMixture
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Hierarchical, Normal, PixelLevels
from tests.unit.linear_gaussian import ADAM, Encoder

LEVELS = (3, 2, 1)
D = sum(LEVELS)


def linear() -> tuple[Hierarchical, MultivariateNormal]:
    """Means that are affine, scales that are constants; and what the prior then is."""
    torch.manual_seed(0)
    prior = Hierarchical(D, LEVELS, hidden_features=()).double()
    ends = torch.tensor(LEVELS).cumsum(0).tolist()
    mean, covariance = torch.zeros(D).double(), torch.eye(D).double()
    for level in reversed(range(len(LEVELS) - 1)):
        output = prior.networks[level].output
        own = LEVELS[level]
        with torch.no_grad():
            output.weight.normal_()
            output.bias.normal_(0, 0.3)
            output.weight[own:] = 0
        a, b, scale = output.weight[:own], output.bias[:own], output.bias[own:].exp()
        rows, above = slice(ends[level] - own, ends[level]), slice(ends[level], ends[level + 1])
        mean[rows] = a @ mean[above] + b
        covariance[rows, ends[level] :] = a @ covariance[above, ends[level] :]
        covariance[ends[level] :, rows] = covariance[rows, ends[level] :].mT
        covariance[rows, rows] = a @ covariance[above, above] @ a.mT + torch.diag(scale**2)
    return prior, MultivariateNormal(mean.detach(), covariance.detach())


def curved(levels: tuple[int, ...] = LEVELS) -> Hierarchical:
    torch.manual_seed(0)
    prior = Hierarchical(sum(levels), levels, hidden_features=[8]).double()
    with torch.no_grad():
        for network in prior.networks:
            network.output.weight.mul_(100)
            network.output.bias.normal_(0, 0.3)
    return prior


def test_of_affine_levels_the_density_is_a_known_normal() -> None:
    prior, expected = linear()
    z = 2 * torch.randn(4, 50, D).double()
    torch.testing.assert_close(prior().log_prob(z), expected.log_prob(z))


def test_draws_have_the_moments_of_that_normal() -> None:
    prior, expected = linear()
    z = prior.draw(100_000)
    torch.testing.assert_close(z.mean(0), expected.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(z.mT.cov(), expected.covariance_matrix, rtol=0.05, atol=0.1)


def test_the_density_integrates_to_1() -> None:
    prior = curved((1, 1))
    line = torch.linspace(-12, 12, 1201).double()
    log_prob = prior().log_prob(torch.cartesian_prod(line, line)).detach()
    assert float(log_prob.exp().sum() * 0.02**2) == pytest.approx(1, abs=1e-4)


def test_noise_is_the_base_space() -> None:
    prior = curved()
    base, to_code, from_code, _ = prior.base_space()
    eps = torch.randn(7, D).double()
    z = to_code(eps)
    assert base.normal_scale == 1
    assert from_code is not None
    torch.testing.assert_close(from_code(z), eps)
    volume = torch.stack([
        torch.autograd.functional.jacobian(to_code, e).slogdet()[1] for e in eps
    ])  # fmt: skip
    torch.testing.assert_close(prior().log_prob(z), base().log_prob(eps) - volume)


def test_the_noise_of_a_level_moves_it_and_what_is_below() -> None:
    to_code = curved().base_space().to_code
    eps = torch.randn(D).double()
    for level in range(3):
        other = eps.clone()
        other[sum(LEVELS[:level]) : sum(LEVELS[: level + 1])] += 1
        moved = (to_code(other) != to_code(eps)).split(LEVELS)
        assert [bool(part.any()) for part in moved] == [k <= level for k in range(3)]


def test_it_starts_near_a_standard_normal_and_learns_from_codes() -> None:
    torch.manual_seed(0)
    prior = Hierarchical(4)
    assert prior.levels == (2, 2)
    z = torch.randn(100, 4)
    torch.testing.assert_close(
        prior().log_prob(z), Univariate(0, 1).log_prob(z).sum(1), rtol=0, atol=0.2
    )
    codes = torch.randn(500, 2).repeat(1, 2)  # the lower level is the upper one
    codes[:, :2] = codes[:, :2] ** 2 + 0.1 * torch.randn(500, 2)
    before = -float(prior().log_prob(codes).mean().detach())
    assert prior.fit(codes)["nll"] < before - 2


@pytest.mark.parametrize("levels", [[3], [3, 2], [3, 0, 1], []])
def test_levels_that_are_none_are_refused(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="`levels"):
        Hierarchical(4, levels)


def model(prior: nn.Module, decoder: nn.Module | None = None, **options: Any) -> VAE:
    """x = W z₁ + noise, three numbers, with posteriors of levels apart."""
    torch.manual_seed(1)
    decoder = MLPFirstLevel(LEVELS[0], (3,), None, []) if decoder is None else decoder
    posterior = DiagonalGaussian(Encoder(), D)
    likelihood = Gaussian(decoder, 0.7, learn_scale=False)
    return VAE(posterior, likelihood, prior, optimizer=ADAM, **options).double()


def test_the_evidence_is_that_of_the_linear_model() -> None:
    prior, known = linear()
    vae = model(prior)
    decoder = vae.likelihood.decoder
    w, b = decoder.output.weight, decoder.output.bias
    of_first = known.covariance_matrix[:3, :3]
    evidence = MultivariateNormal(
        w @ known.mean[:3] + b, w @ of_first @ w.mT + 0.49 * torch.eye(3).double()
    )
    x = evidence.sample((5,))
    with torch.no_grad():  # a wide posterior, whose weights are bounded
        vae.posterior.head.weight.zero_()
        wide = 1.3 * known.variance.sqrt()
        vae.posterior.head.bias.copy_(torch.cat([known.mean, wide.log()]))
        found = vae.log_likelihood(x, 400_000)
        torch.testing.assert_close(found, evidence.log_prob(x), rtol=0, atol=0.05)


class Data:
    """What a measurement asks of data."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def split(self, split: str, n: int, seed: int) -> tuple[Tensor, None]:
        return self.x[:n], None

    def indices(self, split: str, n: int, seed: int) -> Tensor:
        return torch.arange(n)


def kl_of_levels(vae: VAE, prior: Hierarchical, x: Tensor) -> list[Tensor]:
    """E KL(q(z_l|x) ‖ p(z_l|z_{l+1})) of each dimension, means over data and over z_{l+1}."""
    q = vae.posterior(x)
    loc, scale = q.loc.split(LEVELS, 1), q.scale.split(LEVELS, 1)
    found = []
    for level, (m, s) in enumerate(zip(loc, scale, strict=True)):
        if level == len(LEVELS) - 1:
            at, variance, spread = torch.zeros_like(m), torch.zeros_like(m), torch.ones_like(m)
        else:
            output = prior.networks[level].output
            a, b = output.weight[: LEVELS[level]], output.bias[: LEVELS[level]]
            at, variance = loc[level + 1] @ a.mT + b, scale[level + 1] ** 2 @ a.mT**2
            spread = output.bias[LEVELS[level] :].exp().expand_as(m)
        terms = (s**2 + (m - at) ** 2 + variance) / spread**2 - 1
        found.append((terms / 2 - (s / spread).log()).mean(0).detach())
    return found


def test_the_kl_of_each_level_is_the_linear_models(tmp_path: Path) -> None:
    prior, _ = linear()
    vae = model(prior)
    x = torch.randn(400, 3).double()
    expected = [float(each.sum()) for each in kl_of_levels(vae, prior, x)]
    score = LikelihoodScore(n=400, num_samples=2, num_posteriors=0, progress=False)
    torch.manual_seed(0)
    values = score.measure(vae, Data(x), tmp_path)
    found = [values[f"elbo/kl_level{level}"] for level in (1, 2, 3)]
    assert found == pytest.approx(expected, rel=0.03)
    assert values["elbo/kl"] == pytest.approx(sum(expected), rel=0.03)
    assert values["posterior/active_units"] == sum(
        values[f"posterior/active_units_level{level}"] for level in (1, 2, 3)
    )
    # Under a refit's prior without levels those must not stay the last ones.
    vae.prior.append(Normal(D).double())
    vae.prior.use(1)
    values = score.measure(vae, Data(x), tmp_path)
    assert all(math.isnan(values[f"elbo/kl_level{level}"]) for level in (1, 2, 3))
    assert "posterior/active_units_level3" in values


def test_in_training_the_kl_is_of_each_dimension_as_free_bits_are() -> None:
    prior, _ = linear()
    vae = model(prior, draws=2000)
    x = torch.randn(20, 3).double()
    kl = torch.cat(kl_of_levels(vae, prior, x))

    def loss(free_bits: float) -> float:
        vae.free_bits = free_bits
        torch.manual_seed(0)
        return float(vae.loss(x).detach())

    free = float(kl.median())
    assert 0.1 < free < kl.max() - 0.5
    assert loss(100.0) - loss(0.0) == pytest.approx(100.0 * D - float(kl.sum()), rel=1e-3)
    floored = float((kl.clamp(min=free) - kl).sum())
    assert loss(free) - loss(0.0) == pytest.approx(floored, rel=0.03)


def test_of_a_level_that_is_no_normal_free_bits_are_the_levels() -> None:
    network = GatedPixelCNN(
        (1, 2, 2), NormalMixture(2), channels=4, num_layers=1, context_features=2
    )
    prior = PixelLevels(D, network).double()
    vae, x = model(prior, draws=5), torch.randn(20, 3).double()
    vae.posterior.head.bias.data[4:D] += 2.0  # the level above is far from its prior

    def loss(free_bits: float) -> float:
        vae.free_bits = free_bits
        torch.manual_seed(0)
        return float(vae.loss(x).detach())

    with torch.no_grad():
        q = vae.posterior(x)
        torch.manual_seed(0)
        z = q.rsample((5,))
        log_p = prior().log_prob_of_levels(z)
        parts = slice(0, 4), slice(4, D)
        log_q = [DiagonalNormal(q.loc[:, i], q.scale[:, i]).log_prob(z[..., i]) for i in parts]
        lower, above = (torch.stack(log_q, -1) - log_p).mean((0, 1)).tolist()
    free = (lower / 4 + above / 2) / 2
    assert 0 < lower < 4 * free
    assert above > 2 * free
    assert loss(free) - loss(0.0) == pytest.approx(4 * free - lower, rel=1e-6)


def test_every_parameter_gets_a_gradient() -> None:
    vae = model(curved())
    vae.loss(torch.randn(20, 3).double()).backward()
    for name, parameter in vae.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_first_level_decoder_sees_no_other_level() -> None:
    decoder = MLPFirstLevel(3, (2, 2), None, [4])
    z = torch.randn(5, D)
    other = torch.cat([z[:, :3], torch.randn(5, 3)], 1)
    assert torch.equal(decoder(z), decoder(other))
    assert decoder(z).shape == (5, 2, 2)
