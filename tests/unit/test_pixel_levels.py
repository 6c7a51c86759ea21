"""A prior whose lower level is a map, number by number given the level above."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal as Univariate

from flexgen.networks import GatedPixelCNN
from flexgen.outputs import Bernoulli, NormalMixture
from flexgen.priors import Normal, PixelLevels

MAP, ABOVE = (2, 2, 3), 3
OWN = math.prod(MAP)


def network(num_components: int = 1, context_features: int = 3) -> GatedPixelCNN:
    output = NormalMixture(num_components)
    return GatedPixelCNN(
        MAP, output, channels=4, num_layers=2, head_features=16, context_features=context_features
    )


@pytest.fixture(scope="module")
def prior() -> PixelLevels:
    """As far from its start as trained ones are."""
    torch.manual_seed(0)
    found = PixelLevels(OWN + ABOVE, network(), [6]).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def test_a_density_is_that_of_the_levels(prior: PixelLevels) -> None:
    z = torch.randn(4, 5, OWN + ABOVE, dtype=torch.float64)
    lower, above = z.split([OWN, ABOVE], -1)
    maps = prior.decoder(above.view(20, ABOVE)).detach()
    given = prior.network(maps).log_prob(lower.reshape(20, *MAP)).view(4, 5)
    levels = prior().log_prob_of_levels(z)
    torch.testing.assert_close(levels[..., 0], given)
    torch.testing.assert_close(levels[..., 1], Univariate(0, 1).log_prob(above).sum(-1).double())
    torch.testing.assert_close(prior().log_prob(z), levels.sum(-1))


def test_a_number_of_the_map_depends_on_those_before_it_and_on_the_level_above(
    prior: PixelLevels,
) -> None:
    def parameters(z: Tensor) -> Tensor:
        lower, above = z.split([OWN, ABOVE])
        maps = prior.decoder(above[None])
        return prior.network.parameters_of(lower.view(1, *MAP), maps)[0].sum(1).flatten(1)

    of_z = torch.zeros(OWN, OWN + ABOVE).bool()
    for _ in range(8):  # a rectifier may be off at one code
        z = torch.randn(OWN + ABOVE, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(parameters, z)
        of_z |= jacobian.permute(1, 0, 2).reshape(OWN, -1) != 0
    # Of each position its channels in order, as they are drawn.
    order = torch.arange(OWN).view(MAP[0], -1).T.flatten()
    assert torch.equal(of_z[:, order], torch.ones(OWN, OWN).tril(-1).bool())
    assert of_z[:, OWN:].all()


def test_draws_are_from_the_density(prior: PixelLevels) -> None:
    torch.manual_seed(1)
    z = prior().sample((20_000,))
    assert z.shape == (20_000, OWN + ABOVE)
    assert not prior().has_rsample
    # E of p'(z) / p(z), of another normalised density p', is 1.
    near = torch.distributions.Normal(z.mean(0), 0.5 * z.std(0))
    with torch.no_grad():
        weights = (near.log_prob(z).sum(-1) - prior().log_prob(z)).exp()
    assert weights.mean().item() == pytest.approx(1, abs=4 * (weights.std() / 20_000**0.5).item())


def test_it_starts_near_a_normal() -> None:
    torch.manual_seed(0)
    prior = PixelLevels(OWN + ABOVE, network(), [6])
    z = torch.randn(400, OWN + ABOVE)
    with torch.no_grad():
        near = prior().log_prob(z) - Normal(OWN + ABOVE)().log_prob(z)
    assert 0 < near.abs().mean() < 1.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"above the 12 numbers .* got 12; set `latent_dim=20`"):
        PixelLevels(OWN, network())
    with pytest.raises(ValueError, match=r"have `context_features`.* got a NormalMixture output"):
        PixelLevels(20, network(context_features=0))
    with pytest.raises(ValueError, match=r"of real numbers.* got a Bernoulli"):
        PixelLevels(20, GatedPixelCNN(MAP, Bernoulli(), channels=2, context_features=3))
    with pytest.raises(ValueError, match=r"`top` must be .* over the 8 numbers"):
        PixelLevels(20, network(), top=Normal(2))
