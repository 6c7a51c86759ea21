"""Posterior draws and log p(x) against closed forms."""

import math
from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from flexgen import posterior_codes
from flexgen.metrics import PriorAgreement
from flexgen.priors import MAF, Gaussian, Mixture, Normal, RealNVP, Uniform
from flexgen.reversal import TensorSource, reverse_stream

SIGMA = 0.4
OPTIONS: dict[str, Any] = {"prior": Normal(4), "sigma": 0.5, "num_temperatures": 12}


class LinearGaussian:
    """x = W ε + b + σ n: p(x) and p(ε|x) are Gaussians that are known."""

    def __init__(self, n: int, d: int = 3, features: int = 6) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(d, features)
        with torch.no_grad():
            self.net.weight.normal_(std=0.7)
        w, self.bias = self.net.weight.detach(), self.net.bias.detach()
        self.codes = torch.randn(n, d)
        self.x = self.codes @ w.T + self.bias + SIGMA * torch.randn(n, features)
        cov = w @ w.T + SIGMA**2 * torch.eye(features)
        self.log_prob = MultivariateNormal(self.bias, cov).log_prob(self.x)
        precision = torch.eye(d) + w.T @ w / SIGMA**2
        self.mean = torch.linalg.solve(precision, w.T @ (self.x - self.bias).T).T / SIGMA**2
        self.root = torch.linalg.cholesky(precision)

    def standardised(self, z: Tensor) -> Tensor:
        """N(0, I) of exact draws of the posterior."""
        return (z - self.mean) @ self.root


def test_draws_and_both_bounds_of_a_linear_gaussian_generator() -> None:
    known = LinearGaussian(1500)
    options: dict[str, Any] = {"prior": Normal(3), "sigma": SIGMA, "num_temperatures": 100}
    found = posterior_codes(known.net, known.x, **options)
    error = len(known.x) ** -0.5
    u = known.standardised(found.z)
    assert (u.mean(0).abs() < 4 * error).all()
    assert (u.square().mean(0) - 1).abs().max() < 5 * error * math.sqrt(2)
    above = posterior_codes(known.net, known.x, known=known.codes, **options)
    low, high = found.log_prob - known.log_prob, above.log_prob - known.log_prob
    for gap, sign in ((low, -1), (high, 1)):
        assert sign * gap.mean() > -3 * gap.std() * error
        assert sign * gap.mean() < 1.0
    # What is unbiased: E w = p(x), E 1/w = 1/p(x).
    for ratio in (low.exp(), (-high).exp()):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() * error


def test_more_temperatures_bring_the_bounds_together() -> None:
    known = LinearGaussian(200)
    gaps = []
    for num in (10, 200):
        options: dict[str, Any] = {"prior": Normal(3), "sigma": SIGMA, "num_temperatures": num}
        low = posterior_codes(known.net, known.x, **options).log_prob
        high = posterior_codes(known.net, known.x, known=known.codes, **options).log_prob
        gaps.append(float((high - low).mean()))
    assert 0 < gaps[1] < 0.3 * gaps[0]


def test_several_chains_tighten_the_bound_and_say_how_far_to_trust_them() -> None:
    known = LinearGaussian(100)
    found = posterior_codes(
        known.net, known.x, prior=Normal(3), sigma=SIGMA, num_temperatures=20, chains=8
    )
    w = found.log_weights
    assert w.shape == (100, 8)
    torch.testing.assert_close(found.log_prob, w.exp().mean(1).log())
    torch.testing.assert_close(
        found.effective_sample_size, w.exp().sum(1).square() / w.exp().square().sum(1)
    )
    assert found.log_prob.mean() > w.mean()
    assert found.log_prob.mean() < known.log_prob.mean() + 0.5
    is_end = (found.states[:, :, -1] == found.z[:, None]).all(2)
    assert is_end.any(1).all()
    x_hat = known.net(found.z).detach()
    torch.testing.assert_close(found.loss, 0.5 * (x_hat - known.x).square().sum(1), rtol=1e-3,
                               atol=1e-3)  # fmt: skip


def test_both_modes_of_a_posterior_are_drawn() -> None:
    # x = ε² has the codes ±√x.
    x = torch.full((400, 1), 2.0)
    found = posterior_codes(torch.square, x, prior=Normal(1), sigma=0.1)
    assert ((found.z.abs() - 2**0.5).abs() < 0.2).all()
    assert abs(float((found.z > 0).float().mean()) - 0.5) < 4 * 0.5 / 20


@pytest.mark.parametrize("kind", ["gaussian", "flow", "mixture"])
def test_codes_lie_in_the_base_space_of_a_prior(kind: str) -> None:
    """z = L u + μ: under any prior that is this Gaussian, p(x) is the same."""
    known, d = LinearGaussian(300), 3
    torch.manual_seed(1)
    codes = torch.randn(4000, d) @ torch.tensor([[0.5, 0, 0], [0.3, 1.2, 0], [0, 0.2, 0.8]]).T + 0.3
    prior: Any = Gaussian(d) if kind != "flow" else RealNVP(d, num_layers=2, steps=0)
    if kind == "mixture":
        prior = Mixture(d, 1)
    if kind == "flow":
        prior = RealNVP(d, num_layers=2, hidden_features=[8], steps=1)
    prior.fit(codes)
    mean, cov = codes.mean(0), codes.T.cov()
    w = known.net.weight.detach()
    truth = MultivariateNormal(known.net(mean).detach(), w @ cov @ w.T + SIGMA**2 * torch.eye(6))
    found = posterior_codes(known.net, known.x, prior=prior, sigma=SIGMA, num_temperatures=200)
    gap = found.log_prob - truth.log_prob(known.x)
    assert -0.6 < gap.mean() < 0.15
    assert found.z.shape == (300, prior.base_space().prior.latent_dim)


def test_codes_of_a_map_that_goes_coordinate_by_coordinate_lie_in_its_base_space() -> None:
    torch.manual_seed(0)
    prior, net = MAF(3, num_layers=2, hidden_features=[8], steps=200), LinearGaussian(1).net
    codes = torch.randn(2000, 3)
    codes[:, 1] += codes[:, 0].square()
    prior.fit(codes)
    eps, to_code = torch.randn(200, 3), prior.base_space().to_code
    with torch.no_grad():
        clean, many = net(to_code(eps)), net(prior.draw(100_000))
        x = clean + SIGMA * torch.randn_like(clean)
        near = -torch.cdist(x, many).square() / (2 * SIGMA**2)
    truth = near.logsumexp(1) - math.log(len(many)) - 3 * math.log(2 * math.pi * SIGMA**2)
    options: dict[str, Any] = {"prior": prior, "sigma": SIGMA, "num_temperatures": 100}
    found = posterior_codes(net, x, **options)
    above = posterior_codes(net, x, known=eps, **options)
    assert -0.8 < (found.log_prob - truth).mean() < 0
    assert 0 < (above.log_prob - truth).mean() < 0.8
    with torch.no_grad():
        left = x - net(to_code(found.z))
    torch.testing.assert_close(found.loss, 0.5 * left.square().sum(1), rtol=1e-3, atol=1e-4)
    agreement = PriorAgreement(sigma=1.0)  # of the model's own samples: 0
    agreement.update(found.z)
    assert agreement.compute() < 0.08  # of 200 draws of N(0, I) it is 0.03 ± 0.01


def test_a_uniform_prior_keeps_codes_in_its_box() -> None:
    x = torch.tensor([[0.95, 0.0]]).repeat(300, 1)
    found = posterior_codes(lambda z: z * 1.0, x, prior=Uniform(2), sigma=0.3)
    assert (found.z.abs() <= 1).all()
    normal = torch.distributions.Normal(0.95, 0.3)
    share = normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0))
    other = torch.distributions.Normal(0.0, 0.3)
    share = share * (other.cdf(torch.tensor(1.0)) - other.cdf(torch.tensor(-1.0)))
    assert abs(found.log_prob.exp().mean() / (share / 4) - 1) < 0.1


def test_own_samples_score_zero() -> None:
    """Codes of a generator's own noisy samples are draws of the prior: PAG is 0."""
    net = generators.small()
    z = torch.randn(600, 4)
    with torch.no_grad():
        x = net(z)
    x = x + 0.3 * torch.randn_like(x)
    found = posterior_codes(net, x, prior=Normal(4), sigma=0.3)
    agreement = PriorAgreement(sigma=1.0)
    agreement.update(found.z)
    # The score of 600 draws has a standard deviation of about √(d(d+1))/(2n) = 0.0037.
    assert abs(float(agreement.compute())) < 0.02


def test_draws_do_not_depend_on_the_samples_beside_them() -> None:
    net, x = generators.small(), generators.images(40)
    whole = posterior_codes(net, x, chains=2, draws=2, **OPTIONS)
    rows = torch.tensor([31, 4, 17])
    few = posterior_codes(net, x[rows], chains=2, draws=2, index=rows, batch_size=4, **OPTIONS)
    for name, value in few.tensors().items():
        assert torch.equal(value, whole.tensors()[name][rows]), name


def test_a_stream_is_resumed_to_the_bit(tmp_path: Path) -> None:
    net, x = generators.small(), generators.images(40)

    class Stops(TensorSource):
        def read(self, index: Tensor) -> Tensor:
            if 30 in index:
                raise KeyboardInterrupt
            return super().read(index)

    options: dict[str, Any] = {"find": posterior_codes, "chunk": 16, **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        reverse_stream(net, Stops(x), tmp_path, **options)
    done = reverse_stream(net, TensorSource(x), tmp_path, **options)
    assert done.before == 16
    whole = posterior_codes(net, x, **OPTIONS).tensors()
    stored = load_file(done.codes)
    assert stored.keys() == whole.keys() | {"index"}
    for name, value in whole.items():
        assert torch.equal(stored[name], value), name


def test_the_generator_and_the_global_generators_are_left_as_they_were() -> None:
    net = generators.small().train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    posterior_codes(net, generators.images(4), **OPTIONS)
    assert torch.equal(torch.rand(2), expected)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_proposal_that_is_not_finite_is_not_taken() -> None:
    def broken(z: Tensor) -> Tensor:
        return torch.where(z > 0.5, z / 0, z)

    found = posterior_codes(broken, torch.zeros(50, 1), prior=Normal(1), sigma=0.5)
    started_well = found.log_weights.isfinite().all(1)
    assert (found.z[started_well] <= 0.5).all()


class NoDensity(Normal):
    normalised = False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"num_temperatures": 0}, "num_temperatures"),
        ({"prior": NoDensity(4)}, "no normalised density"),
        ({"known": torch.zeros(3, 4)}, "known"),
        ({"index": torch.arange(2)}, "index"),
        ({"context": torch.zeros(2)}, "context"),
        ({"prior": Normal(5)}, "."),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=words):
        posterior_codes(generators.small(), generators.images(4), **OPTIONS | options)
