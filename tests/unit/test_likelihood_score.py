"""NLL and the parts of the ELBO, against what a linear-Gaussian model says exactly."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flexgen.callbacks import LikelihoodScore
from flexgen.contracts import Prior
from flexgen.distributions import DiagonalNormal
from flexgen.flows import Coupling
from flexgen.likelihoods import Gaussian
from flexgen.metrics import active_units, bits_per_dimension, marginal_log_prob
from flexgen.models import VAE, Adversarial
from flexgen.objectives import GAN
from flexgen.posteriors import DiagonalGaussian, FlowPosterior, FullGaussian
from flexgen.priors import LearnableMixture, Normal, RealNVP
from tests.unit.linear_gaussian import ADAM, Encoder, Linear


class Data:
    """A split in memory."""

    num_classes = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def split(self, split: str, n: int, seed: int) -> tuple[Tensor, None]:
        return self.x[:n], None

    def indices(self, split: str, n: int, seed: int) -> Tensor:
        return torch.arange(n)


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_scores_of_a_linear_gaussian_model(tmp_path: Path) -> None:
    linear = Linear(off=0.2, n=400)
    score = LikelihoodScore(n=400, num_samples=200, num_posteriors=400, progress=False)
    values = score.run(linear.model, Data(linear.x), tmp_path)
    nll = -linear.evidence.log_prob(linear.x)
    assert values["nll/samples"] == pytest.approx(nll.mean().item(), abs=0.01)
    assert values["nll/standard_error"] == pytest.approx(nll.std().item() / 20, abs=0.01)
    saved = load_file(tmp_path / "nll" / "step=00000000.safetensors")
    torch.testing.assert_close(saved["nll"], nll, rtol=0, atol=0.3)
    assert torch.equal(saved["index"], torch.arange(400))
    expected = -nll.mean().item() - linear.gap
    assert values["elbo/bound"] == pytest.approx(expected, abs=0.1)
    assert values["elbo/bound"] == pytest.approx(
        -values["elbo/reconstruction"] - values["elbo/kl"], abs=1e-9
    )
    assert 0 < values["elbo/mutual_information"] < math.log(400)
    assert values["posterior/active_units"] == 2
    # A shift by 0.2 moves the second moments that PAG sees by 0.04, 0.0004 nats a dimension.
    assert values["posterior/pag"] == pytest.approx(0, abs=0.03)


@pytest.mark.usefixtures("double")
def test_codes_of_own_samples_tell_whether_the_posterior_is_exact(tmp_path: Path) -> None:
    options = {"n": 1000, "num_samples": 2, "num_posteriors": 0, "progress": False}
    found = []
    for off in (0.0, 0.5):
        linear = Linear(off=off, n=1000)
        found.append(LikelihoodScore(**options).run(linear.model, Data(linear.x), tmp_path))
    exact, shifted = found
    assert exact["own/posterior_pag_low"] <= 0 <= exact["own/posterior_pag_high"]
    assert shifted["own/posterior_pag_low"] > 0
    assert shifted["posterior/pag_low"] > 0


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("posterior", [DiagonalGaussian, FullGaussian])
def test_the_parts_of_the_kl_of_codes_that_depend_on_each_other(
    posterior: Any, tmp_path: Path
) -> None:
    linear, n = Linear(posterior, n=1000), 1000
    q, slope = linear.model.posterior, torch.tensor([[1.5, 0.0, 0.3], [1.4, 0.3, 0.3]])
    shift, scale, lower = torch.tensor([0.5, -0.2]), torch.tensor([0.6, 0.7]), torch.eye(2)
    with torch.no_grad():
        q.head.weight[:2] = slope
        q.head.bias.copy_(torch.cat([shift, scale.log()]))
        if posterior is FullGaussian:
            lower[1, 0] = 0.8
            q.below.bias.fill_(0.8)
    within = (lower * scale) @ (lower * scale).T
    total = slope @ linear.x.T.cov() @ slope.T + within
    mean = slope @ linear.x.mean(0) + shift
    score = LikelihoodScore(n=n, num_samples=1, num_posteriors=n, progress=False)
    values = score.run(linear.model, Data(linear.x), tmp_path)
    # Of a Gaussian q(z), which that of many data all but is.
    expected = {
        "mutual_information": (total.logdet() - within.logdet()) / 2,
        "total_correlation": (total.diagonal().log().sum() - total.logdet()) / 2,
        "dimensionwise_kl": 0.5
        * (total.diagonal() + mean.square() - 1 - total.diagonal().log()).sum(),
    }
    assert expected["total_correlation"] > 0.2
    for name, value in expected.items():
        assert values[f"elbo/{name}"] == pytest.approx(float(value), abs=0.1), name
    parts = values["elbo/total_correlation"] + values["elbo/dimensionwise_kl"]
    assert parts == pytest.approx(values["elbo/marginal_kl"], abs=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("n", [200, 201, 350])
def test_the_parts_of_the_kl_add_up_to_it_in_blocks(n: int, tmp_path: Path) -> None:
    linear = Linear(n=n)
    score = LikelihoodScore(n=n, num_samples=1, num_posteriors=100, progress=False)
    values = score.run(linear.model, Data(linear.x), tmp_path)
    parts = values["elbo/mutual_information"] + values["elbo/marginal_kl"]
    assert parts == pytest.approx(values["elbo/kl"], abs=1e-12)
    # q(z) of all data is the prior all but exactly, so the KL is information.
    assert values["elbo/mutual_information"] == pytest.approx(values["elbo/kl"], abs=0.15)
    assert values["elbo/kl"] > 1
    # A posterior that is the same for all data holds none, and all of the KL is marginal.
    with torch.no_grad():
        linear.model.posterior.head.weight[:2].zero_()
    values = score.run(linear.model, Data(linear.x), tmp_path)
    assert values["elbo/mutual_information"] == pytest.approx(0, abs=0.2)
    assert values["elbo/marginal_kl"] > 0.3


@pytest.mark.parametrize("kind", ["flow posterior", "dependent prior"])
def test_without_densities_of_dimensions_their_parts_are_left_out(
    kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    flow, encoder = Coupling(4, num_layers=2), Encoder(3)
    by_flow = kind == "flow posterior"
    q = FlowPosterior(encoder, flow, 4) if by_flow else DiagonalGaussian(encoder, 4)
    prior = Normal(4) if by_flow else RealNVP(4, num_layers=2)
    model = VAE(q, Gaussian(nn.Linear(4, 3)), prior, optimizer=ADAM)
    score = LikelihoodScore(n=20, num_samples=2, progress=False)
    values = score.run(model, Data(torch.randn(20, 3)), tmp_path)
    assert "elbo/marginal_kl" in values
    assert not {"elbo/total_correlation", "elbo/dimensionwise_kl"} & values.keys()


def test_what_only_the_prior_before_a_refit_had_is_no_number_after_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VAE(
        DiagonalGaussian(Encoder(3), 2), Gaussian(nn.Linear(2, 3)), Normal(2), optimizer=ADAM
    )
    score, data = LikelihoodScore(num_samples=2, progress=False), Data(torch.randn(20, 3))
    before = score.run(model, data, tmp_path)
    model.prior.use(model.prior.append(LearnableMixture(2, num_components=3)))
    after = score.run(model, data, tmp_path)
    assert all(map(math.isfinite, before.values()))
    assert {name for name in before if not math.isfinite(after[name])} == {
        "elbo/total_correlation", "elbo/dimensionwise_kl",
        *(f"{name}{end}" for name in ("posterior/pag", "own/posterior_pag")
          for end in ("", "_low", "_high")),
    }  # fmt: skip


@pytest.mark.usefixtures("double")
def test_the_estimate_rises_with_the_draws_as_the_variance_of_the_weights_says() -> None:
    off = 0.15
    linear = Linear(off=off, n=4)
    x, exact = linear.x.repeat(5000, 1), linear.evidence.log_prob(linear.x).mean()
    torch.manual_seed(1)
    missing = {k: float(exact - linear.model.log_likelihood(x, k).mean()) for k in (1, 5, 50)}
    # The weights of a shifted Gaussian are lognormal: K = 1 loses the KL, half the shift squared
    # in standard deviations, and a larger K Var(w) / 2K, with Var(w) = exp(shift²) - 1.
    shift = 2 * linear.gap
    assert missing[1] == pytest.approx(shift / 2, abs=0.02)
    assert missing[5] == pytest.approx(math.expm1(shift) / 10, abs=0.01)
    assert missing[50] == pytest.approx(0, abs=0.005)
    assert missing[1] > missing[5] > missing[50]


class Flat(Prior):
    """Prior, posterior and likelihood in one: every code is alike, and log p(x|z) is x."""

    latent_dim, is_point, has_mean = 1, False, False

    def forward(self, _: Tensor | None = None) -> "Flat":
        return self

    def bind(self, **_: Any) -> None: ...

    def rsample_and_log_prob(self, sample_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return torch.zeros(*sample_shape, 2, 1), torch.zeros(*sample_shape, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        return value[..., 0]


def test_many_draws_lose_nothing_to_single_precision() -> None:
    x = torch.tensor([[-123.456], [-7.3]])
    model = VAE(Flat(), Flat(), Flat(), optimizer=ADAM)
    found = model.log_likelihood(x, 5000, at_once=4)
    torch.testing.assert_close(found, x[:, 0].double(), rtol=0, atol=1e-9)


def test_one_datum_has_no_standard_error() -> None:
    linear = Linear(n=1)
    with pytest.raises(ValueError, match=r"at least 2 data.*test part holds 1.*data\.num_test"):
        LikelihoodScore().check(linear.model, Data(linear.x))


@pytest.mark.usefixtures("double")
def test_the_sum_over_draws_streams() -> None:
    linear = Linear(off=0.2, n=20)
    found = []
    for at_once in (20, 100, 10_000):
        torch.manual_seed(0)
        found.append(linear.model.log_likelihood(linear.x, 1000, at_once=at_once))
    exact = linear.evidence.log_prob(linear.x)
    for log_likelihood in found:
        torch.testing.assert_close(log_likelihood, exact, atol=0.05, rtol=0)
        assert log_likelihood.dtype == torch.float64


def test_a_critic_has_no_likelihood() -> None:
    model = Adversarial(
        nn.Linear(2, 1), nn.Linear(1, 1), Normal(2), GAN(),
        generator_optimizer=ADAM, critic_optimizer=ADAM,
    )  # fmt: skip
    lacked = "LikelihoodScore needs a posterior, which this model does not have; .* or leave it"
    with pytest.raises(ValueError, match=lacked):
        LikelihoodScore().check(model, Data(torch.zeros(2, 1)))


def test_the_aggregate_of_equal_posteriors_is_one_of_them() -> None:
    q = DiagonalNormal(torch.zeros(5, 2), torch.ones(5, 2))
    z = torch.randn(7, 2)
    found = marginal_log_prob(z, q.log_prob, 5)
    expected = q.log_prob(z[:, None])[:, 0].double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_far_posteriors_tell_their_index() -> None:
    q = DiagonalNormal(100 * torch.arange(8.0)[:, None].expand(8, 2), torch.ones(8, 2))
    z, log_q = q.rsample_and_log_prob()
    information = (log_q - marginal_log_prob(z, q.log_prob, 8)).mean()
    assert information.item() == pytest.approx(math.log(8), abs=1e-4)


def test_active_units_are_those_that_data_move() -> None:
    means = torch.zeros(100, 3)
    means[:, 1] = torch.linspace(-1, 1, 100)
    means[:, 2] = 0.05 * torch.linspace(-1, 1, 100)
    assert active_units(means) == 1
    assert active_units(means, threshold=1e-4) == 2


def test_bits_per_dimension() -> None:
    assert bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1)


@pytest.mark.parametrize("options", [{"n": 1}, {"num_samples": 0}, {"num_posteriors": -1}])
def test_sizes_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        LikelihoodScore(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["diagonal", "flow"])
def test_a_collapsed_posterior_has_no_active_unit(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    flow = Coupling(4, num_layers=2)
    encoder = Encoder(3)
    q = DiagonalGaussian(encoder, 4) if kind == "diagonal" else FlowPosterior(encoder, flow, 4)
    with torch.no_grad():
        q.head.weight.zero_()
        q.head.bias.zero_()
    likelihood = Gaussian(nn.Linear(4, 3))
    model = VAE(q, likelihood, Normal(4), optimizer=ADAM)
    score = LikelihoodScore(n=1000, num_samples=2, num_posteriors=0, progress=False)
    values = score.run(model, Data(torch.randn(1000, 3)), tmp_path)
    assert values["posterior/active_units"] == 0
    assert "nll/bits_per_dimension" not in values  # of a density there are none
