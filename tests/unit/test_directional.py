"""Distributions on the sphere: against quadrature and scipy, and a VAE's closed-form KL."""

import math

import pytest
import torch
from scipy.stats import vonmises_fisher
from torch import Tensor
from torch.nn.functional import normalize

from flexgen.directional import (
    DirectionMixture,
    Directions,
    PowerSpherical,
    UniformSphere,
    VonMisesFisher,
    log_area,
)
from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPGenerator
from flexgen.posteriors import DiagonalGaussian, PowerSphericalPosterior, VonMisesFisherPosterior
from flexgen.priors import Hyperspherical, Normal, SphericalMixture, Vamp
from tests.unit.linear_gaussian import ADAM, Encoder

KINDS = [PowerSpherical, VonMisesFisher]


def sphere() -> tuple[Tensor, float]:
    """Directions in three dimensions, by height and angle, and the area of each."""
    height, angle = torch.linspace(-1, 1, 401).double(), torch.linspace(0, 2 * math.pi, 400)
    height, angle = (height[1:] + height[:-1]) / 2, angle[:-1].double()
    h, a = torch.cartesian_prod(height, angle).unbind(1)
    flat = (1 - h.square()).sqrt()
    return torch.stack([flat * a.cos(), flat * a.sin(), h], 1), 4 * math.pi / len(h)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one_over_the_sphere(kind: type[Directions]) -> None:
    z, area = sphere()
    assert log_area(3) == pytest.approx(math.log(4 * math.pi))
    loc = normalize(torch.tensor([1.0, 2.0, -0.5]).double(), dim=0)
    p = kind(loc, torch.tensor(7.5).double())
    several = kind(normalize(torch.randn(2, 3).double(), dim=1), torch.tensor([3.0, 9.0]).double())
    mixed = DirectionMixture(torch.tensor([0.3, 0.7]).double(), several)
    for q in (p, mixed, UniformSphere(loc)):
        density = q.log_prob(z).exp() * area
        assert float(density.sum()) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close((density[:, None] * z).sum(0), q.mean, atol=1e-4, rtol=0)
    density = p.log_prob(z).exp() * area
    assert float(p.entropy()) == pytest.approx(-float((density * p.log_prob(z)).sum()), abs=1e-3)
    assert float(p.kl_to_uniform()) == pytest.approx(
        math.log(4 * math.pi) - float(p.entropy()), abs=1e-5
    )


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_von_mises_fisher_is_scipys(dim: int) -> None:
    z = normalize(torch.randn(5, dim).double(), dim=1)
    for concentration in (0.01, 3.0, 2000.0):
        p = VonMisesFisher(z[0], torch.tensor(concentration).double())
        exact = vonmises_fisher(z[0].numpy(), concentration)
        torch.testing.assert_close(p.log_prob(z), torch.from_numpy(exact.logpdf(z.numpy())))
        assert float(p.entropy()) == pytest.approx(float(exact.entropy()))


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_its_mean_and_length_one_and_pass_gradients(
    kind: type[Directions], dim: int
) -> None:
    torch.manual_seed(0)
    loc = normalize(torch.randn(2, dim), dim=1).requires_grad_()
    concentration = torch.tensor([0.5, 20.0], requires_grad=True)
    p = kind(loc, concentration)
    z = p.rsample((20_000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(20_000, 2))
    torch.testing.assert_close(z.mean(0), p.mean, atol=0.03, rtol=0)
    # Of μᵀ E z: by the draws, and of what the distribution states.
    (grad,) = torch.autograd.grad((z.mean(0) * loc.detach()).sum(), concentration)
    (exact,) = torch.autograd.grad(p.mean_height.sum(), concentration)
    torch.testing.assert_close(grad, exact, atol=0.02, rtol=0.1)
    assert kind(torch.eye(dim)[0], torch.tensor(9.0)).sample((50,))[:, 0].mean() > 0.5


def test_a_mixture_finds_the_parts_of_its_codes() -> None:
    torch.manual_seed(0)
    loc = normalize(torch.tensor([[1.0, 1, 0, 0], [0, -1, 1, 0]]), dim=1)
    true = DirectionMixture(torch.tensor([0.3, 0.7]), VonMisesFisher(loc, torch.tensor([9.0, 60])))
    codes = true.sample((4000,))
    prior = SphericalMixture(4, 2)
    assert float(prior().log_prob(codes[0])) == pytest.approx(-log_area(4))
    report = prior.fit(codes)
    order = prior.weights.argsort()
    torch.testing.assert_close(prior.weights[order], true.weights, atol=0.02, rtol=0)
    torch.testing.assert_close(prior.loc[order], loc, atol=0.02, rtol=0)
    concentration = prior.concentration[order]
    torch.testing.assert_close(concentration, true.components.concentration, atol=0, rtol=0.1)
    assert report["nll_train"] == pytest.approx(-float(prior().log_prob(codes).mean()), abs=1e-4)
    assert report["nll_train"] <= -float(true.log_prob(codes).mean()) + 1e-3
    torch.testing.assert_close(prior().sample((4000,)).mean(0), codes.mean(0), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match=r"length 1, got lengths up to 1 away.*use prior=mixture"):
        prior.fit(2 * codes)


def vae(posterior: type, prior: object) -> VAE:
    torch.manual_seed(0)
    likelihood = Bernoulli(MLPGenerator(2, (3,), None, [8]))
    return VAE(posterior(Encoder(3), 2), likelihood, prior, optimizer=ADAM)  # type: ignore[arg-type]


@pytest.mark.parametrize("posterior", [PowerSphericalPosterior, VonMisesFisherPosterior])
def test_the_kl_of_a_vae_is_that_of_its_draws(posterior: type) -> None:
    model, x = vae(posterior, Hyperspherical(2)), torch.rand(4, 3)
    with torch.no_grad():
        drawn = -float(model.log_weights(x, 5000).mean())
        assert float(model.loss(x.repeat(5000, 1))) == pytest.approx(drawn, abs=0.01)


def test_a_sphere_on_one_side_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use posterior=power_spherical or"):
        vae(DiagonalGaussian, Hyperspherical(2))
    with pytest.raises(ValueError, match=r"use posterior=power_spherical or"):
        vae(PowerSphericalPosterior, Normal(2))
    vamp = Vamp(2, (3,), num_components=3)
    assert vae(PowerSphericalPosterior, vamp).prior.spherical
