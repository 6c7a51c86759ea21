"""Distributions on the sphere: against quadrature and von Mises, and a VAE's closed-form KL."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from flexgen.directional import PowerSpherical, UniformSphere, log_area
from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPGenerator
from flexgen.posteriors import DiagonalGaussian, PowerSphericalPosterior
from flexgen.priors import Hyperspherical, Normal, Vamp
from tests.unit.linear_gaussian import ADAM, Encoder


def test_densities_integrate_to_one_over_the_sphere() -> None:
    """In three dimensions, by the height along an axis that is not the mean's and the angle."""
    height, angle = torch.linspace(-1, 1, 401).double(), torch.linspace(0, 2 * math.pi, 400)
    height, angle = (height[1:] + height[:-1]) / 2, angle[:-1].double()
    h, a = torch.cartesian_prod(height, angle).unbind(1)
    flat = (1 - h.square()).sqrt()
    z = torch.stack([flat * a.cos(), flat * a.sin(), h], 1)
    area = 4 * math.pi / len(z)
    loc = normalize(torch.tensor([1.0, 2.0, -0.5]).double(), dim=0)
    p = PowerSpherical(loc, torch.tensor(7.5).double())
    for q in (p, UniformSphere(loc)):
        assert float(q.log_prob(z).exp().sum() * area) == pytest.approx(1, abs=1e-4)
    assert log_area(3) == pytest.approx(math.log(4 * math.pi))
    density = p.log_prob(z).exp() * area
    torch.testing.assert_close((density[:, None] * z).sum(0), p.mean, atol=1e-4, rtol=0)
    assert float(p.entropy()) == pytest.approx(-float((density * p.log_prob(z)).sum()), abs=1e-3)
    assert float(p.kl_to_uniform()) == pytest.approx(
        math.log(4 * math.pi) - float(p.entropy()), abs=1e-5
    )


@pytest.mark.parametrize("dim", [2, 5])
def test_draws_have_its_mean_and_length_one_and_pass_gradients(dim: int) -> None:
    torch.manual_seed(0)
    loc = normalize(torch.randn(2, dim), dim=1).requires_grad_()
    concentration = torch.tensor([0.5, 20.0], requires_grad=True)
    p = PowerSpherical(loc, concentration)
    z = p.rsample((20_000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(20_000, 2))
    torch.testing.assert_close(z.mean(0), p.mean, atol=0.03, rtol=0)
    (grad,) = torch.autograd.grad((z.mean(0) * loc.detach()).sum(), concentration)
    # Of μᵀ E z = κ / (κ + d − 1).
    exact = (dim - 1) / (concentration.detach() + dim - 1).square()
    torch.testing.assert_close(grad, exact, atol=0.02, rtol=0.1)
    assert PowerSpherical(torch.eye(dim)[0], torch.tensor(9.0)).sample((50,))[:, 0].mean() > 0.5


def vae(posterior: type, prior: object) -> VAE:
    torch.manual_seed(0)
    likelihood = Bernoulli(MLPGenerator(2, (3,), None, [8]))
    return VAE(posterior(Encoder(3), 2), likelihood, prior, optimizer=ADAM)  # type: ignore[arg-type]


def test_the_kl_of_a_vae_is_that_of_its_draws() -> None:
    model, x = vae(PowerSphericalPosterior, Hyperspherical(2)), torch.rand(4, 3)
    with torch.no_grad():
        drawn = -float(model.log_weights(x, 5000).mean())
        assert float(model.loss(x.repeat(5000, 1))) == pytest.approx(drawn, abs=0.01)


def test_a_sphere_on_one_side_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="use posterior=power_spherical with"):
        vae(DiagonalGaussian, Hyperspherical(2))
    with pytest.raises(ValueError, match="use posterior=power_spherical with"):
        vae(PowerSphericalPosterior, Normal(2))
    vamp = Vamp(2, (3,), num_components=3)
    assert vae(PowerSphericalPosterior, vamp).prior.spherical
