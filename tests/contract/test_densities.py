"""Every prior of conf/prior has a density that integrates to 1, or says that it has none."""

import math
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn.functional import normalize

from flexgen.networks import MLPEncoder
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import as_prior
from tests.contract.test_configs import config, for_prior, names

EDGE = 7.0
WORDS = {
    "categorical": ("prior.num_values=5",),
    "pixelcnn": ("prior.network.output.num_values=5",),
    "vamp": ("prior.num_components=10",),
    "mixture_of_posteriors": ("prior.num_components=10",),
}


def built(name: str) -> Any:
    """The prior of a plane, or of the smallest map, away from where it starts."""
    size = ("latent_dim=4", "code_shape=[1,2,2]") if "pixelcnn" in name else ("latent_dim=2",)
    torch.manual_seed(0)
    words = (*for_prior(name), "data=digits", *size, *WORDS.get(name, ()))
    prior = as_prior(instantiate(config(*words)["prior"]))
    prior.bind(
        posterior=DiagonalGaussian(MLPEncoder((1, 8, 8), [8]), 2),
        data=lambda n: torch.rand(n, 1, 8, 8),
    )
    parameters = list(prior.parameters())
    with torch.no_grad():
        for parameter in parameters:
            # A weight of 0 may be one that a mask takes away.
            parameter.add_(0.03 * torch.randn_like(parameter) * (parameter != 0))
    if prior.learns and not parameters:
        z = torch.randn(600, 2) * torch.tensor([0.4, 0.8]) + torch.randint(2, (600, 1))
        z = z if prior.num_values is None else torch.randint(prior.num_values, (600, 2))
        labels = torch.arange(600) % 10 if prior.takes_context else None
        prior.fit(normalize(z, dim=1) if prior.spherical else z, context=labels)
    return prior


def grid(dim: int, support: tuple[float, float] | None) -> tuple[Tensor, float]:
    """The middles of cells, and the volume of one."""
    low, high = support or (-EDGE, EDGE)
    ends = torch.linspace(low, high, 141 if dim == 2 else 21)
    middles = (ends[1:] + ends[:-1]) / 2
    return torch.cartesian_prod(*[middles] * dim), float(ends[1] - ends[0]) ** dim


# Of 16 and of 5 numbers at least, too many for a grid.
@pytest.mark.parametrize("name", sorted({*names("prior")} - {"top_down", "pixelcnn_levels"}))
def test_a_prior_integrates_to_one_or_says_that_it_has_no_density(name: str) -> None:
    prior = built(name)
    if not prior.has_log_prob or not prior.normalised:
        return
    if prior.num_values is not None:
        z, cell = torch.cartesian_prod(*[torch.arange(5)] * prior.latent_dim), 1.0
    elif prior.spherical:
        angle = torch.linspace(0, 2 * math.pi, 2001)[1:]
        z, cell = torch.stack([angle.cos(), angle.sin()], 1), 2 * math.pi / 2000
    else:
        z, cell = grid(prior.latent_dim, prior.support)
    with torch.no_grad():
        p = prior(torch.tensor([3]) if prior.takes_context else None)
        assert float(p.log_prob(z).exp().sum()) * cell == pytest.approx(1, abs=0.01)
