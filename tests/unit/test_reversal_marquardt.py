"""Levenberg-Marquardt for small dense networks: exact where least squares are, each row its own."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from flexgen.networks import MLPGenerator
from flexgen.reversal import reverse
from flexgen.reversal.dense import dense_residual
from flexgen.reversal.losses import half_squared_error


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(latent_dim=17, shape=(1, 8, 8), hidden=(32, 48)):
    torch.manual_seed(0)
    return MLPGenerator(latent_dim, shape, (-1, 1), list(hidden)).eval()


@pytest.mark.parametrize("hidden", [(), (32,), (32, 48)])
def test_equations_are_of_the_jacobian(hidden):
    torch.manual_seed(0)
    sizes = (17, *hidden, 20)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    generator = nn.Sequential(*layers[:-1], nn.Sigmoid()).double()
    z, x = drawn(5, 17, dtype=torch.float64), drawn(5, 20, seed=1, dtype=torch.float64)
    loss, squares, downhill = dense_residual(generator).equations(z, x)
    r = (x - generator(z)).detach()
    jacobian = torch.stack([torch.autograd.functional.jacobian(generator, one) for one in z])
    torch.testing.assert_close(loss, r.square().sum(1) / 2)
    torch.testing.assert_close(squares[:, :17, :17], jacobian.mT @ jacobian)
    torch.testing.assert_close(downhill[:, :17], (jacobian.mT @ r[:, :, None])[:, :, 0])
    assert not any(rest.any() for rest in (squares[:, 17:], squares[:, :, 17:], downhill[:, 17:]))


def test_misfit_gives_the_least_squares_code():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(16, 24)).double()
    x = torch.rand(5, 24, dtype=torch.float64)
    found = reverse(generator, x, latent_shape=16, tolerance=1e-9)
    assert found.how.startswith("levenberg-marquardt, up to 2 starts")
    least = torch.linalg.lstsq(generator[0].weight.detach(), (x - generator[0].bias.detach()).T)
    torch.testing.assert_close(found.z, least.solution.T, atol=1e-4, rtol=0)
    assert found.converged.all()


def test_it_ends_lower_than_the_descent_that_others_take():
    generator, x = network(), drawn(20, 1, 8, 8).tanh()
    found = reverse(generator, x, latent_shape=17, method="lbfgs")
    slow = reverse(generator, x, latent_shape=17, method="lbfgs", precision="plain")
    assert slow.how.startswith("lbfgs")
    assert found.loss.mean() < 1.02 * slow.loss.mean()
    torch.testing.assert_close(found.x_hat, generator(found.z).detach())


@pytest.mark.parametrize(
    ("latent_dim", "shape", "hidden"),
    [(17, (1, 8, 8), (32, 48)), (18, (19,), (33, 21)), (20, (1, 9, 9), (64, 64)), (31, (77,), ())],
)
def test_a_code_does_not_depend_on_its_companions(latent_dim, shape, hidden):
    generator, x = network(latent_dim, shape, hidden), drawn(37, *shape).tanh()
    options = {"latent_shape": latent_dim, "steps": 25, "bank": 256, "starts": 3}
    whole = reverse(generator, x, **options)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(3))
    shuffled = reverse(generator, x[order], index=order, batch_size=7, **options)
    alone = reverse(generator, x[5:6], index=torch.tensor([5]), **options)
    for field in ("z", "x_hat", "loss", "steps", "converged"):
        assert torch.equal(getattr(shuffled, field), getattr(whole, field)[order])
        assert torch.equal(getattr(alone, field), getattr(whole, field)[5:6])


def test_a_start_that_is_not_finite_spoils_no_other_and_no_code_is_worse_than_its_start():
    generator, x = network(), drawn(4, 1, 8, 8).tanh()
    start = drawn(4, 2, 17, seed=2)
    start[1, 0] = 3e38  # its data are not a number
    seen = []
    found = reverse(generator, x, latent_shape=17, init=start, watch=seen.append)
    before = half_squared_error(generator(start[:, 1]).detach(), x)
    assert (found.loss < before).all()
    losses = torch.stack([half_squared_error(generator(z).detach(), x) for z in seen])
    assert (losses[:, [0, 2, 3]].diff(dim=0) <= 1e-4).all()
