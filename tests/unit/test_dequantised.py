"""A density of vectors as a density of data of levels."""

import math

import pytest
import torch
from torch.distributions import Normal as Gauss

from flexgen.priors import MAF, Dequantised, Gaussian, Masked, Normal, PerClass, RealNVP


def test_probabilities_are_those_of_the_cells_of_a_known_density() -> None:
    """Of one coordinate from N(0, 1), in which P(k) is a difference of two Φ."""
    levels, alpha = 4, 0.05
    density = Dequantised((1, 1, 1), Normal(1), levels=levels, alpha=alpha, num_draws=4000).eval()
    grid = torch.linspace(-1, 1, levels).view(-1, 1, 1, 1)
    edges = (alpha + (1 - 2 * alpha) * torch.arange(levels + 1) / levels).logit()
    exact = Gauss(0.0, 1.0).cdf(edges).diff()
    torch.manual_seed(0)
    torch.testing.assert_close(density().log_prob(grid).exp(), exact, rtol=0.03, atol=0)


def test_one_draw_bounds_the_probability_on_average_and_more_are_tighter() -> None:
    torch.manual_seed(0)
    prior = RealNVP(4, num_layers=4, hidden_features=[8])
    for parameter in prior.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    x = torch.randint(5, (3, 1, 2, 2)) / 2 - 1

    def level(num_draws: int, repeats: int) -> torch.Tensor:
        density = Dequantised((1, 2, 2), prior, levels=5, num_draws=num_draws).eval()
        return torch.stack([density().log_prob(x) for _ in range(repeats)]).mean(0)

    with torch.no_grad():
        one, ten, all_of_them = level(1, 2000), level(10, 200), level(20_000, 1)
    assert (one < ten).all()
    assert (ten < all_of_them).all()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_draws_are_data_of_the_grid_and_of_the_density(levels: int) -> None:
    torch.manual_seed(0)
    density = Dequantised((1, 1, 2), Normal(2), range=(0, 1), levels=levels).eval()
    x = density().sample((4000,))
    assert x.shape == (4000, 1, 1, 2)
    density.check_data(x)
    index = x * (levels - 1)
    assert (index - index.round()).abs().max() < 1e-4
    # A coordinate is above the middle with probability ½.
    middle = (levels - 1) / 2
    upper = (index > middle).float().mean() + 0.5 * (index == middle).float().mean()
    assert upper == pytest.approx(0.5, abs=4 / math.sqrt(4 * 8000))


def test_draws_of_a_map_that_samples_one_coordinate_after_the_other() -> None:
    density = Dequantised((1, 2, 2), MAF(4, num_layers=2, hidden_features=[8]), levels=17)
    assert density().sample((3, 2)).shape == (3, 2, 1, 2, 2)


def test_a_density_of_each_class() -> None:
    prior = PerClass(Gaussian(4), 3)
    codes = torch.randn(60, 4) + 10 * torch.arange(3).repeat_interleave(20)[:, None]
    prior.fit(codes, context=torch.arange(3).repeat_interleave(20))
    density = Dequantised((1, 2, 2), prior, levels=17)
    labels = torch.tensor([0, 1, 2, 2])
    x = density(labels).sample()
    assert x.shape == (4, 1, 2, 2)
    assert x[0].mean() < x[2].mean()
    assert density(labels).log_prob(x).shape == (4,)
    with pytest.raises(ValueError, match="a Normal prior takes no labels; set conditional=false"):
        Dequantised((1, 2, 2), Normal(4))(labels)


def test_what_is_no_density_of_such_data_is_refused() -> None:
    with pytest.raises(ValueError, match="set latent_dim=4"):
        Dequantised((1, 2, 2), Normal(3))
    with pytest.raises(ValueError, match=r"no normalised density; use prior@network.pixels.prior"):
        Dequantised((1, 2, 2), Masked(Normal(4)))
    with pytest.raises(ValueError, match=r"`alpha` must lie between 0 and 0.5"):
        Dequantised((1, 2, 2), Normal(4), alpha=0.5)
    density = Dequantised((1, 2, 2), Normal(4))
    with pytest.raises(ValueError, match=r"set network.pixels.levels=17"):
        density.check_data(torch.arange(17).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 8 - 1)
