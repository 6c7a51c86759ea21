"""Mixtures of posteriors: their densities by hand, and whose the posterior is."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.distributions import DiagonalNormal
from flexgen.flows import Autoregressive, Planar
from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPGenerator
from flexgen.posteriors import DiagonalGaussian, FlowPosterior, FullGaussian
from flexgen.priors import MixtureOfPosteriors, Vamp
from tests.unit.linear_gaussian import ADAM, Encoder

D, SHAPE, K = 2, (3,), 4


def posterior(kind: str = "diagonal") -> Any:
    encoder = Encoder(*SHAPE)
    if kind == "diagonal":
        return DiagonalGaussian(encoder, D)
    if kind == "full":
        q = FullGaussian(encoder, D)
        nn.init.normal_(q.below.weight)
        return q
    flow = (
        Autoregressive(D, hidden_features=(8,), context_features=3) if kind == "iaf" else Planar(D)
    )
    return FlowPosterior(encoder, flow, D)


def prior(kind: type[Vamp] | type[MixtureOfPosteriors] = Vamp, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_components": K, **options}
    made = kind(D, SHAPE, (0.0, 1.0), **options) if kind is Vamp else kind(D, SHAPE, **options)
    made.start(torch.rand(K, *SHAPE))
    return made


def vae(**options: Any) -> VAE:
    likelihood = Bernoulli(MLPGenerator(D, SHAPE, None, [8]))
    return VAE(posterior(), likelihood, prior(weighted=True, **options), optimizer=ADAM)


def test_products_are_as_exact_as_differences() -> None:
    """Of narrow normals far from 0 the squares are 10⁷ times what is left of them."""
    torch.manual_seed(0)
    q = DiagonalNormal(5 * torch.randn(7, 3), 0.001 + 0.01 * torch.rand(7, 3))
    z = q.rsample((4,)).flatten(0, 1)
    exact = DiagonalNormal(q.loc.double(), q.scale.double()).log_prob(z.double()[:, None])
    torch.testing.assert_close(q.log_prob_of_each(z).double(), exact, rtol=1e-6, atol=1e-5)


KINDS = pytest.mark.parametrize("kind", [Vamp, MixtureOfPosteriors])


@KINDS
@pytest.mark.parametrize("of", ["diagonal", "full", "iaf"])
def test_the_density_integrates_to_one(kind: Any, of: str) -> None:
    p = prior(kind, weighted=True)
    with torch.no_grad():
        p.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
        p.bind(posterior=posterior(of))
        grid = torch.linspace(-8, 8, 161)
        z = torch.cartesian_prod(grid, grid)
        mass = p().log_prob(z).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=2e-3)


def test_the_density_is_the_mixture_by_hand() -> None:
    p, q = prior(weighted=True), posterior()
    with torch.no_grad():
        p.logits.copy_(torch.randn(K))
        p.bind(posterior=q)
        z = torch.randn(5, 6, D)
        weights = p.logits.softmax(0)
        each = [q(p.inputs[k : k + 1]).log_prob(z).exp() for k in range(K)]
        by_hand = sum(w * density for w, density in zip(weights, each, strict=True))
        assert isinstance(by_hand, Tensor)
        torch.testing.assert_close(p().log_prob(z), by_hand.log(), rtol=1e-4, atol=1e-5)


def test_a_density_in_blocks_is_the_same() -> None:
    p = prior()
    p.bind(posterior=posterior())
    z = torch.randn(600_000, D)  # more numbers than a block has
    alone = torch.cat([p().log_prob(part) for part in z.split(70_000)])
    torch.testing.assert_close(p().log_prob(z), alone)


def test_draws_have_the_mixtures_moments() -> None:
    p, q = prior(weighted=True), posterior()
    with torch.no_grad():
        p.logits.copy_(torch.tensor([0.0, 2.0, -1.0, 0.0]))
        p.bind(posterior=q)
        z, of_all, w = p().sample((40_000,)), q(p.inputs), p.logits.softmax(0)
        mean = w @ of_all.mean
        variance = w @ (of_all.variance + of_all.mean.square()) - mean.square()
    torch.testing.assert_close(z.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), variance, atol=0.05, rtol=0.03)


@pytest.mark.parametrize("through", ["log_prob", "rsample"])
def test_gradients_reach_pseudo_inputs_and_posterior(through: str) -> None:
    p, q = prior(), posterior()
    p.bind(posterior=q)
    out = p().rsample((50,)) if through == "rsample" else p().log_prob(torch.randn(50, D))
    out.sum().backward()
    for parameter in (p.free, q.head.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().amin() > 0


@KINDS
def test_a_training_step_of_a_subset_has_all_its_densities_on_average(kind: Any) -> None:
    p = prior(kind, subset=2, weighted=True)
    p.bind(posterior=posterior())
    with torch.no_grad():
        p.logits.copy_(torch.tensor([0.5, 0.0, -1.0, 0.3]))
    z = torch.randn(5, D)
    every = p.eval()().log_prob(z).detach()
    p.train()
    parts = torch.stack([p().log_prob(z).detach() for _ in range(3000)])
    assert len(p().inputs) == 2
    torch.testing.assert_close(parts.exp().mean(0), every.exp(), rtol=0.1, atol=0)
    assert (parts.mean(0) < every).all()
    with torch.no_grad():  # as a fit looks at held-out codes
        torch.testing.assert_close(p().log_prob(z), every)


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_pseudo_inputs_stay_in_the_range_of_data(data_range: tuple[float, float]) -> None:
    low, high = data_range
    p = Vamp(D, SHAPE, data_range, num_components=2)
    x = torch.tensor([[low, high, (low + high) / 2], [high, low, 0.9 * high + 0.1 * low]])
    p.start(x)
    torch.testing.assert_close(p.inputs.detach(), x, atol=0.05 * (high - low) + 1e-5, rtol=0)
    p.inputs.sum().backward()
    assert (p.free.grad > 0).all()  # those at the ends of the range can leave them
    with torch.no_grad():
        p.free.mul_(1e6)
    assert p.inputs.min() >= low
    assert p.inputs.max() <= high


def test_unbounded_data_start_where_they_are() -> None:
    p = Vamp(D, SHAPE, None, num_components=K)
    x = 10 * torch.randn(K, *SHAPE)
    p.start(x)
    torch.testing.assert_close(p.inputs.detach(), x)


def test_the_model_holds_its_posterior_once() -> None:
    model = vae()
    (optimizer,), _ = model.configure_optimizers()
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in model.parameters()}
    own = {key for key in model.state_dict() if key.startswith("prior.")}
    assert own == {"prior.stage", "prior.stages.0.free", "prior.stages.0.logits"}
    model.loss(torch.rand(6, *SHAPE).round()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_copy_of_a_model_has_a_prior_of_its_own_posterior() -> None:
    model = vae()
    copied, z = copy.deepcopy(model), torch.randn(3, D)
    before = model.prior().log_prob(z)
    torch.testing.assert_close(copied.prior().log_prob(z), before)
    with torch.no_grad():
        copied.posterior.head.bias += 1
    assert not torch.allclose(copied.prior().log_prob(z), before)
    torch.testing.assert_close(model.prior().log_prob(z), before)


@pytest.mark.parametrize("weighted", [False, True])
@KINDS
def test_a_fit_learns_under_a_posterior_that_it_leaves_alone(kind: Any, weighted: bool) -> None:
    p, q = prior(kind, weighted=weighted, steps=100, lr=0.05), posterior()
    p.bind(posterior=q)
    q.train()
    before = copy.deepcopy(q.state_dict())
    codes = q(torch.rand(300, *SHAPE).square()).sample() + torch.tensor([0.3, 0.0])
    state = torch.get_rng_state()
    start = -float(p().log_prob(codes).detach().mean())
    reported = p.fit(codes, seed=1)
    after = -float(p().log_prob(codes).detach().mean())
    assert torch.equal(torch.get_rng_state(), state)
    if kind is MixtureOfPosteriors and not weighted:
        assert reported == {"nll": pytest.approx(start)}
    else:
        assert reported["steps"] > 0
        assert after < start - 0.01
    assert not any(parameter.requires_grad for parameter in p.parameters())
    assert all(parameter.grad is None for parameter in q.parameters())
    assert all(parameter.requires_grad for parameter in q.parameters())
    assert q.training
    assert all(torch.equal(before[key], value) for key, value in q.state_dict().items())


@KINDS
def test_a_posterior_without_a_density_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} prior.*use posterior=diagonal"):
        prior(kind).bind(posterior=posterior("planar"))


@KINDS
def test_without_a_posterior_it_says_what_to_call(kind: Any) -> None:
    with pytest.raises(RuntimeError, match=r"prior\.bind\(posterior=posterior\)"):
        prior(kind)().sample((2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "`num_components`"),
        ({"subset": 0}, "`subset`"),
        ({"latent_dim": 0}, "`latent_dim`"),
        ({"data_range": (1.0, 1.0)}, "`data_range`"),
    ],
)
def test_sizes_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vamp(**{"latent_dim": D, "shape": SHAPE, **options})


def test_too_few_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"set `prior.num_components=3`"):
        Vamp(D, SHAPE, num_components=4).start(torch.rand(3, *SHAPE))


def test_the_aggregate_posterior_is_the_best_prior_of_its_codes() -> None:
    """Of codes drawn from it, no other mixture of the same posteriors is more likely."""
    p, q = prior(MixtureOfPosteriors, weighted=True), posterior()
    p.bind(posterior=q)
    with torch.no_grad():
        q.head.weight.mul_(8)
        codes = p().sample((20_000,))
        own = float(p().log_prob(codes).mean())
        for tilt in torch.eye(K):
            p.logits.copy_(tilt)
            assert float(p().log_prob(codes).mean()) < own
    assert math.isfinite(own)
