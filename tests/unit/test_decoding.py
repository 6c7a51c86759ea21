"""Data of codes: by every network in eval mode, which are left as they were."""

import functools

import pytest
import torch
from torch import nn

from flexgen.distributions import DiagonalNormal
from flexgen.likelihoods import Gaussian
from flexgen.models import VAE, Adversarial, Latent
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import GAN
from flexgen.posteriors import DiagonalGaussian

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class Dropped(nn.Module):
    """A normal whose mean is dropped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self) -> DiagonalNormal:
        return DiagonalNormal(self.dropout(torch.full((2,), 3.0)), torch.ones(2))


def network() -> nn.Module:
    """Codes to data by what tells a batch from its data: batch norm and dropout."""
    return nn.Sequential(
        MLPGenerator(2, (3,), hidden_features=[8], norm="batch"), nn.Dropout(0.5), nn.BatchNorm1d(3)
    )


def adversarial(**options: float) -> Adversarial:
    return Adversarial(
        network(), MLPCritic((3,), hidden_features=[8]), Dropped(), GAN(),
        generator_optimizer=ADAM, critic_optimizer=ADAM, **options,
    )  # fmt: skip


def vae() -> VAE:
    posterior = DiagonalGaussian(MLPEncoder((3,), hidden_features=[8]), 2)
    return VAE(posterior, Gaussian(network()), Dropped(), optimizer=ADAM)


MODELS = {"adversarial": adversarial, "average": lambda: adversarial(ema_decay=0.9), "vae": vae}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Latent:
    torch.manual_seed(0)
    return MODELS[request.param]().train()


def test_a_datum_is_that_of_its_code_alone(model: Latent) -> None:
    z = torch.randn(6, 2)
    alone = torch.cat([model.decode(code) for code in z.split(1)])
    torch.testing.assert_close(model.decode(z), alone)
    torch.testing.assert_close(model.decode(z, batch_size=4), alone)


def test_samples_are_the_data_of_the_priors_draws(model: Latent) -> None:
    torch.manual_seed(1)
    x = model.sample(5)
    torch.manual_seed(1)
    with model.evaluating():
        z = model.prior().sample((5,))
    torch.testing.assert_close(x, model.decode(z))


def test_modes_and_running_statistics_stay_as_they_were(model: Latent) -> None:
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert not model.sample(5).requires_grad
    assert not model.decode(torch.randn(5, 2)).requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
