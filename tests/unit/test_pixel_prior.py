"""Priors over codes that are maps or names: probabilities that add up, exact draws, fits."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import MixtureSameFamily, Normal

from flexgen.contracts import Draws
from flexgen.networks import GatedPixelCNN, PixelCNN
from flexgen.networks.pixels import PixelNetwork
from flexgen.outputs import Indices, NormalMixture
from flexgen.priors import Categorical, PixelPrior

NETWORKS = {
    "gated": lambda shape, output: GatedPixelCNN(shape, output, channels=6, num_layers=3),
    "pixelcnn": lambda shape, output: PixelCNN(shape, output, channels=6, num_blocks=2),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


def trained(network: PixelNetwork) -> PixelNetwork:
    """As far from its start as trained ones are."""
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    network.head.last.weight.data *= 5
    return network.double()


def of_names(kind: str, shape: tuple[int, int, int] = (1, 2, 2), num_values: int = 3) -> PixelPrior:
    torch.manual_seed(0)
    return PixelPrior(trained(NETWORKS[kind](shape, Indices(num_values)))).double()


def every_code(dim: int, num_values: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(num_values), repeat=dim))).double()


@every_network
def test_the_probabilities_of_all_maps_of_names_add_up_to_1(kind: str) -> None:
    with torch.no_grad():
        log_prob = of_names(kind)().log_prob(every_code(4, 3))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_prob.std() > 0.1


@every_network
def test_names_are_drawn_as_often_as_they_are_likely(kind: str) -> None:
    prior, n = of_names(kind), 30_000
    codes = every_code(4, 3)
    with torch.no_grad():
        probability = prior().log_prob(codes).exp()
    drawn = prior.draw(n)
    assert drawn.shape == (n, 4)
    place = (drawn * 3.0 ** torch.arange(3, -1, -1)).sum(1).long()
    found = place.bincount(minlength=81) / n
    error = (probability * (1 - probability) / n).sqrt()
    assert ((found - probability).abs() < 4.5 * error + 1e-4).all()


@every_network
def test_draws_of_names_by_the_cache_are_those_of_whole_passes(kind: str) -> None:
    p = of_names(kind, (1, 5, 4), 7).network()
    draws = []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(p.sample((6,), cached=cached))
    assert torch.equal(*draws)
    assert set(draws[0].unique().tolist()) <= set(map(float, range(7)))
    kept = p.sample((6,), given=draws[0], known=9)
    assert torch.equal(kept.flatten(1)[:, :9], draws[0].flatten(1)[:, :9])


def test_names_are_seen_as_far_from_each_other_as_any_two() -> None:
    output = Indices(5)
    seen = output.seen(torch.arange(5.0).view(1, 1, 1, 5))
    assert seen.shape == (1, 5, 1, 5)
    assert output.data(seen).flatten().tolist() == [0, 1, 2, 3, 4]
    apart = torch.cdist(seen[0, :, 0].mT, seen[0, :, 0].mT)
    torch.testing.assert_close(apart, math.sqrt(10) * (1 - torch.eye(5)))


def test_names_need_one_channel() -> None:
    with pytest.raises(ValueError, match="maps of one channel, got shape"):
        GatedPixelCNN((2, 3, 3), Indices(4))


@pytest.mark.parametrize("bad", [0.5, -1.0, 3.0])
def test_codes_that_are_no_names_are_refused(bad: float) -> None:
    codes = torch.zeros(20, 4).double()
    codes[3, 1] = bad
    with pytest.raises(ValueError, match="whole numbers from 0 to 2, got"):
        of_names("gated").fit(codes)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2, got"):
        Categorical(4, 3).fit(codes.float())


def test_a_mixture_of_normals_is_what_torch_makes_of_it() -> None:
    torch.manual_seed(0)
    output, (logits, loc, log_scale) = NormalMixture(3), torch.randn(3, 5, 3, 4).double()
    x = 3 * torch.randn(5, 1, 4).double()
    parameters = torch.cat([logits, loc, log_scale], 1)
    mixture = MixtureSameFamily(
        TorchCategorical(logits=logits.mT), Normal(loc.mT, log_scale.mT.exp())
    )
    torch.testing.assert_close(output.log_prob(parameters, x), mixture.log_prob(x.squeeze(1)))
    uniform = torch.rand(40_000, 2).double()
    out = torch.empty(40_000, 1).double()
    output.draw(parameters[0, :, 0].expand(40_000, -1), output.noise(uniform), out)
    mean, std = mixture.mean[0, 0].item(), mixture.stddev[0, 0].item()
    assert out.mean().item() == pytest.approx(mean, abs=4 * std / 200)
    assert out.std().item() == pytest.approx(std, rel=0.05)


@every_network
def test_draws_of_real_maps_by_the_cache_are_those_of_whole_passes(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]((2, 4, 3), NormalMixture(2)).double()
    draws = []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(network().sample((6,), cached=cached))
    torch.testing.assert_close(*draws, rtol=1e-10, atol=1e-10)
    assert draws[0].std() > 0.5
    assert not network.has_mass
    network().log_prob(draws[0]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def real(shape: tuple[int, int, int] = (2, 3, 2), **how: float) -> PixelPrior:
    torch.manual_seed(0)
    network = NETWORKS["gated"](shape, NormalMixture(2))
    return PixelPrior(network, **how)


def test_a_density_of_maps_of_real_numbers_is_that_of_its_units() -> None:
    prior = real((1, 2, 2)).double()
    trained(prior.network)
    prior.loc.copy_(torch.tensor([3.0, -1, 0, 2]))
    prior.scale.copy_(torch.tensor([0.5, 2, 1, 3]))
    z = torch.randn(7, 4).double()
    u = ((z - prior.loc) / prior.scale).view(7, 1, 2, 2)
    expected = prior.network().log_prob(u) - math.log(0.5 * 2 * 1 * 3)
    torch.testing.assert_close(prior().log_prob(z), expected)
    # The mass of the last number, given the others.
    grid = z[:1].repeat(4001, 1)
    grid[:, -1] = torch.linspace(-120, 120, 4001)
    first = prior().log_prob(grid).exp()
    rest = torch.trapezoid(first, grid[:, -1])
    parameters = prior.network.parameters_of(u[:1])[..., :2, :2].flatten(3)
    without = prior.network.output.log_prob(
        parameters[0, 0, :, :3].unsqueeze(0), u[:1].flatten(2)[..., :3]
    ).sum() - math.log(0.5 * 2 * 1)  # fmt: skip
    assert float(rest.log().detach()) == pytest.approx(float(without.detach()), abs=1e-3)


def test_a_fit_to_maps_of_real_numbers_is_closer_than_their_normal() -> None:
    torch.manual_seed(1)
    sign = torch.randint(2, (3000, 1)).float() * 2 - 1
    codes = 10 + 4 * sign + 0.5 * torch.randn(3000, 12)
    prior = real(steps=300, lr=5e-3)
    report = prior.fit(codes[:2500])
    held_out = codes[2500:]
    alone = Normal(codes[:2500].mean(0), codes[:2500].std(0)).log_prob(held_out).sum(1).mean()
    found = prior().log_prob(held_out).mean()
    assert found > alone + 10  # twelve numbers share one sign
    assert report["nll"] == pytest.approx(-float(found), abs=1)
    drawn = prior.draw(500)
    one_sign = ((drawn > 10) == (drawn[:, :1] > 10)).double().mean(1) > 0.9
    assert one_sign.double().mean() > 0.9
    assert not any(p.requires_grad for p in prior.parameters())


def test_a_prior_of_real_maps_starts_near_the_normal_of_the_moments() -> None:
    torch.manual_seed(1)
    codes = 3 + 2 * torch.randn(500, 12)
    prior = real(steps=1, lr=1e-9)
    prior.fit(codes)
    normal = Normal(codes.mean(0), codes.std(0)).log_prob(codes).sum(1)
    assert (prior().log_prob(codes) - normal).abs().mean() < 1
    assert prior.draw(4000).mean(0).sub(codes.mean(0)).abs().max() < 0.3


def test_a_fit_of_names_learns_what_position_cannot_say() -> None:
    torch.manual_seed(0)
    first = torch.randint(4, (2000, 1))
    codes = (first + torch.arange(9)) % 4  # uniform at each position, known after the first
    codes = codes.float()
    alone = Categorical(9, 4)
    alone.fit(codes[:1500])
    pixels = PixelPrior(NETWORKS["gated"]((1, 3, 3), Indices(4)), steps=200, lr=1e-2)
    pixels.fit(codes[:1500])
    assert -alone().log_prob(codes[1500:]).mean() == pytest.approx(9 * math.log(4), abs=0.1)
    assert -pixels().log_prob(codes[1500:]).mean() == pytest.approx(math.log(4), abs=0.2)


def test_a_categorical_prior_is_uniform_and_then_the_shares_of_each_datum() -> None:
    prior = Categorical(2, 3, smoothing=0.5)
    codes = every_code(2, 3).float()
    torch.testing.assert_close(prior().log_prob(codes), torch.full((9,), -2 * math.log(3)))
    z = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [1.0, 2.0]])
    report = prior.fit(z, draws=Draws(torch.tensor([0, 0, 0, 1])))
    shares = torch.tensor([[1.5, 1.5, 0.5], [0.5, 0.5, 2.5]]) / 3.5
    expected = shares[0].log()[:, None] + shares[1].log()
    torch.testing.assert_close(prior().log_prob(codes).view(3, 3), expected)
    assert report["nll_train"] == pytest.approx(-float(prior().log_prob(z).mean()))
    torch.manual_seed(0)
    found = prior.draw(30_000)
    for coordinate, share in enumerate(shares):
        frequency = found[:, coordinate].long().bincount(minlength=3) / 30_000
        assert ((frequency - share).abs() < 0.015).all()
    prior.fit(z)
    assert prior().log_prob(codes).view(3, 3)[0, 2] > expected[0, 2]  # three of four codes


def test_a_network_with_a_context_is_no_prior() -> None:
    network = GatedPixelCNN((1, 2, 2), Indices(3), channels=4, num_layers=2, num_classes=2)
    with pytest.raises(ValueError, match="a prior has no context"):
        PixelPrior(network)
