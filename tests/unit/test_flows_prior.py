"""Flows as priors, and their fit to codes."""

import copy
from collections.abc import Callable

import pytest
import torch

from flexgen.flows import Coupling, Planar
from flexgen.priors import (
    MAF,
    NSF,
    AutoregressiveMixture,
    FlowMatching,
    FlowPrior,
    Gaussian,
    MixtureMADE,
    Prior,
    RealNVP,
    Staged,
    maximise_likelihood,
)


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    """A bent and shifted cloud far from N(0, I), which no Gaussian fits."""
    torch.manual_seed(0)
    z = torch.randn(1500, 2)
    z[:, 1] = 0.3 * z[:, 1] + z[:, 0].square()
    return 20 + 5 * z


BUILDS: dict[str, Callable[..., FlowPrior]] = {
    "realnvp": lambda **fit: RealNVP(2, num_layers=4, hidden_features=[32], steps=300, **fit),
    "maf": lambda **fit: MAF(2, num_layers=2, hidden_features=[32], steps=300, anneal=False, **fit),
    "nsf": lambda **fit: NSF(2, num_layers=3, hidden_features=[16], steps=200, **fit),
    "mixtures": lambda **fit: AutoregressiveMixture(
        2, num_layers=1, hidden_features=[16], num_components=3, steps=200, **fit
    ),
    "flow_matching": lambda **fit: FlowMatching(2, hidden_features=32, steps=600, **fit),
    "optimal": lambda **fit: FlowMatching(
        2, hidden_features=32, coupling="optimal", steps=400, **fit | {"batch_size": 100}
    ),
}


@pytest.mark.parametrize("kind", BUILDS)
def test_a_fit_learns_what_a_gaussian_cannot(kind: str, codes: torch.Tensor) -> None:
    torch.manual_seed(0)
    prior = BUILDS[kind](lr=5e-3, batch_size=200, weight_decay=0)
    train, test = codes[:1000], codes[1000:]
    gaussian = Gaussian(2)
    gaussian.fit(train)
    drawn = torch.get_rng_state()
    report = prior.fit(train, seed=1)
    assert torch.equal(drawn, torch.get_rng_state())
    with torch.no_grad():
        gain = (prior().log_prob(test) - gaussian().log_prob(test)).mean()
        draws = prior().sample((4000,))
    assert gain > 0.5
    assert report["nll"] == pytest.approx(-float(prior().log_prob(test).mean()), abs=0.3)
    assert not any(p.requires_grad for p in prior.parameters())
    torch.testing.assert_close(draws.mean(0), train.mean(0), atol=0.7, rtol=0)
    torch.testing.assert_close(draws.std(0), train.std(0), atol=0, rtol=0.15)


def test_decay_leaves_coordinates_alone_that_there_is_nothing_to_learn_of(
    codes: torch.Tensor,
) -> None:
    torch.manual_seed(0)
    wide = torch.cat([codes, torch.randn(1500, 18)], 1)
    train, test = wide[:1000], wide[1000:]
    gaussian = Gaussian(20)
    gaussian.fit(train)
    gains = []
    for decay in (0.0, 15.0):
        torch.manual_seed(0)
        prior = RealNVP(20, steps=250, batch_size=200, weight_decay=decay)
        prior.fit(train)
        gains.append(float((prior().log_prob(test) - gaussian().log_prob(test)).mean()))
    assert gains[1] > gains[0] + 0.15


def test_a_fit_is_never_worse_than_its_gaussian(codes: torch.Tensor) -> None:
    """Steps that only harm are not kept, and the fit ends long before the last of them."""
    torch.manual_seed(0)
    prior = RealNVP(2, num_layers=2, hidden_features=[4], lr=3.0, patience=2, weight_decay=0)
    report = prior.fit(torch.randn(400, 2), seed=0)
    assert report["steps"] == 0
    gaussian = Gaussian(2)
    gaussian.fit(codes)
    assert RealNVP(2, steps=1, lr=1e-9).fit(codes)["nll"] == pytest.approx(
        -float(gaussian().log_prob(codes).mean()), abs=0.3
    )


class Slope(Prior):
    """What it minimises falls evenly in its weight."""

    latent_dim, normalised = 2, False

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def cross_entropy(self, z: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.weight.expand(len(z))


@pytest.mark.parametrize(("anneal", "way"), [(False, 0.4), (True, 0.2)])
def test_the_steps_of_an_annealed_fit_fall_to_0(
    anneal: bool, way: float, codes: torch.Tensor
) -> None:
    prior = Slope()
    report = maximise_likelihood(prior, codes, steps=40, lr=0.01, anneal=anneal)
    assert report["cross_entropy"] == pytest.approx(-way, abs=0.006)


def test_decay_pulls_weights_to_0(codes: torch.Tensor) -> None:
    report = maximise_likelihood(Slope(), codes, steps=40, lr=0.01, weight_decay=5.0)
    assert report["cross_entropy"] == pytest.approx(-0.2 * (1 - 0.95**40), abs=1e-3)


def test_a_fitted_prior_survives_a_state_dict_and_a_copy(codes: torch.Tensor) -> None:
    prior = Staged([RealNVP(2, num_layers=2, steps=3)])
    prior.stages[0].fit(codes)
    other = Staged([RealNVP(2, num_layers=2)])
    other.load_state_dict(prior.state_dict())
    copied = copy.deepcopy(prior)
    for loaded in (other, copied):
        assert torch.equal(loaded().log_prob(codes), prior().log_prob(codes))
    assert len(prior.state_dict()) == len(set(map(id, prior.state_dict().values())))


def test_no_couplings_are_a_standard_normal(codes: torch.Tensor) -> None:
    prior = RealNVP(2, num_layers=0)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    torch.testing.assert_close(prior().log_prob(codes), normal.log_prob(codes))
    with pytest.raises(ValueError, match="prior=gaussian"):
        prior.fit(codes)


def test_a_deep_flow_starts_from_the_codes(codes: torch.Tensor) -> None:
    """However far its first weights take them, each coordinate has mean 0 and deviation 1."""
    torch.manual_seed(0)
    flow = RealNVP(2, num_layers=6, hidden_features=[8], mixing=True).transform
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow.start(codes)
    eps = flow.inverse(codes)[0]
    rotation = flow.transforms[0].transforms[0]
    normal = rotation(eps)[0]
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.mean(0), torch.zeros(2), atol=1e-3, rtol=0)


def test_mixtures_are_exact_and_autoregressive() -> None:
    """The density integrates to 1, has the moments of its draws, and none of them sees ahead."""
    torch.manual_seed(0)
    prior = MixtureMADE(2, num_components=3, hidden_features=[8])
    near = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    z = torch.randn(500, 2)
    assert (prior().log_prob(z) - near.log_prob(z)).mean().abs() < 0.3
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter) * (parameter != 0))
        side = torch.linspace(-15, 15, 501)
        grid = torch.cartesian_prod(side, side)
        mass = prior().log_prob(grid).exp() * (side[1] - side[0]) ** 2
        draws = prior().sample((20_000,))
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    for moment in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z.prod(1)):
        error = float(moment(draws).std()) / 20_000**0.5
        assert float(moment(draws).mean()) == pytest.approx(
            float((mass * moment(grid)).sum()), abs=4 * error
        )
    given = prior.parameters_given(z.mT)
    assert torch.equal(prior.parameters_given((z + torch.tensor([0.0, 1.0])).mT), given)


def test_what_a_flow_prior_cannot_do(codes: torch.Tensor) -> None:
    planar = FlowPrior(Planar(2))
    assert not planar.has_log_prob
    assert planar().sample((3,)).shape == (3, 2)
    with pytest.raises(ValueError, match="prior=realnvp"):
        planar.fit(codes)
    with pytest.raises(ValueError, match="context_features=0"):
        FlowPrior(Coupling(2, context_features=1))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        RealNVP(2).fit(torch.zeros(9, 3))
    with pytest.raises(ValueError, match=r"set `prior\.num_layers=4`"):
        RealNVP(2, num_layers=3, mixing=True)
    with pytest.raises(FloatingPointError, match=r"lower `prior\.lr`"):
        RealNVP(2, num_layers=2, lr=1e30, steps=40).fit(codes)
