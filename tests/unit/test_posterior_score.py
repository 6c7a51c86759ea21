"""The prior's score by posterior draws, on a model whose every value is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from flexgen.callbacks import PosteriorScore
from flexgen.contracts import Draws
from flexgen.models import Latent
from flexgen.priors import Masked, Normal, Prior, RealNVP
from flexgen.priors.fitting import maximise_likelihood

D, FEATURES, SIGMA, N = 2, 5, 0.5, 800


class Data:
    """x = W ε + b + σ n, with ε from N(0, scale²)."""

    num_classes, range = 0, None

    def __init__(self, model: "Linear", scale: float) -> None:
        torch.manual_seed(1)
        x = model.map(scale * torch.randn(N, D)).detach()
        self.x = x + SIGMA * torch.randn_like(x)

    def size(self, split: str) -> int:
        return N

    def split(self, split: str, n: int | None = None, seed: int = 0) -> tuple[Tensor, None]:
        return self.x[:n], None

    def indices(self, split: str, n: int, seed: int) -> Tensor:
        return torch.arange(n)


class Linear(Latent):
    def __init__(self, prior: Prior) -> None:
        super().__init__(
            prior, optimizers=(), schedulers=(), gradient_clip=None, accumulate=1, log_every=1
        )
        torch.manual_seed(0)
        self.map = nn.Linear(D, FEATURES)
        with torch.no_grad():
            self.map.weight.normal_()

    @property
    def decoder(self) -> nn.Module:
        return self.map


def score(**options: Any) -> PosteriorScore:
    how = {"num_temperatures": 200, "progress": False, **options.pop("options", {})}
    return PosteriorScore(**{"n": N, "sigma": SIGMA, "num_resamples": 100} | options, options=how)


def test_of_a_right_prior_both_scores_are_0_and_the_likelihood_is_that_of_the_data(
    tmp_path: Path,
) -> None:
    model = Linear(Normal(D))
    data = Data(model, 1.0)
    values = score().run(model, data, tmp_path)
    for name in ("pag/posterior", "own/pag_posterior"):
        assert values[f"{name}_low"] < 0.01
        assert abs(values[name]) < 0.02
    w, bias = model.map.weight.detach(), model.map.bias.detach()
    cov = w @ w.T + SIGMA**2 * torch.eye(FEATURES)
    truth = -MultivariateNormal(bias, cov).log_prob(data.x)
    assert 0 < values["nll/ais_gap"] < 1
    # Mean log w lies below log p(x), by no more than the gap.
    assert -0.05 < values["nll/ais"] - float(truth.mean()) < values["nll/ais_gap"] + 0.05
    saved = load_file(tmp_path / "nll" / "step=00000000.safetensors")
    assert saved["nll"].mean() == pytest.approx(values["nll/ais"])
    assert saved["nll"].std() / N**0.5 == pytest.approx(values["nll/ais_standard_error"])
    assert torch.equal(saved["index"], torch.arange(N))
    assert saved["z"].shape == (N, D)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Path]:
    """Scores under N(0, I) of data whose codes are from N(0, 4 I), and the run's folder."""
    model, folder = Linear(Normal(D)), tmp_path_factory.mktemp("wrong")
    return score().run(model, Data(model, 2.0), folder), folder


def test_of_a_wrong_prior_the_score_is_above_its_interval_and_the_control_is_not(
    wrong: tuple[dict[str, float], Path],
) -> None:
    values, _ = wrong
    assert values["pag/posterior_low"] > 0.05
    assert values["own/pag_posterior_low"] < 0.02
    assert values["pag/posterior_energy"] > 0.02
    # Wider codes lie in no other direction, which is all that NSCD sees.
    for name in ("pag/posterior_nscd", "own/nscd_posterior"):
        assert abs(values[name]) < 5 * 8**0.5 / (N * D**0.5), name


def test_two_models_on_the_same_data_are_told_apart_by_pairs(
    wrong: tuple[dict[str, float], Path], tmp_path: Path
) -> None:
    model = Linear(Normal(D, 2.0))
    score().run(model, Data(model, 2.0), tmp_path)
    one, two = (
        load_file(folder / "nll" / "step=00000000.safetensors")["nll"]
        for folder in (wrong[1], tmp_path)
    )
    difference = two - one
    assert difference.mean() < -3 * difference.std() / N**0.5
    assert difference.std() < one.std()


def test_the_noise_that_reconstructions_support_is_found_once(tmp_path: Path) -> None:
    model = Linear(Normal(D))
    callback = score(sigma=None)
    values = callback.run(model, Data(model, 1.0), tmp_path)
    # Of FEATURES dimensions reversal explains D.
    expected = SIGMA * ((FEATURES - D) / FEATURES) ** 0.5
    assert values["ais/sigma"] == pytest.approx(expected, rel=0.1)
    resumed = score(sigma=None)
    resumed.load_state_dict(callback.state_dict())
    assert resumed.sigma == values["ais/sigma"]


def test_what_cannot_be_scored_is_refused_before_training() -> None:
    masked = Masked(Normal(D), rate=0.5)
    with pytest.raises(ValueError, match=r"no normalised density.*refit.source=reversal"):
        score().check(Linear(masked), Data(Linear(Normal(D)), 1.0))
    with pytest.raises(ValueError, match=r"n=6 or more.*callbacks\.posterior_score\.n"):
        score(n=5).check(Linear(Normal(D)), Data(Linear(Normal(D)), 1.0))
    with pytest.raises(TypeError, match="temperatures"):
        score(options={"temperatures": 5}).check(Linear(Normal(D)), Data(Linear(Normal(D)), 1.0))


def test_what_a_fit_holds_out_shares_no_datum_with_what_it_learns_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Codes that name their datum: which were looked at together in one call."""
    prior = RealNVP(D, num_layers=2)
    codes = torch.randn(200, D)
    codes[:, 0] = torch.arange(200).float() / 200
    datum = torch.arange(200) % 50
    seen: list[set[int]] = []
    own = type(prior).cross_entropy

    def looked(self: Any, z: Tensor, context: Tensor | None = None) -> Tensor:
        seen.append(set(datum[(z[:, 0] * 200).round().long()].tolist()))
        return own(self, z, context)

    monkeypatch.setattr(type(prior), "cross_entropy", looked)
    maximise_likelihood(prior, codes, draws=Draws(datum), steps=80, batch_size=100)
    held_out = seen[0]
    assert len(held_out) == 5
    assert held_out.isdisjoint(seen[1] | seen[2])
    assert seen[1] | seen[2] | seen[4] | seen[5] | held_out == set(range(50))


def test_the_gain_of_another_prior_is_that_of_log_p_x() -> None:
    """x = ε + σ n in one dimension: p(x), p(ε|x) and their change with the prior are Gaussians."""
    torch.manual_seed(0)
    old, new, sigma = 1.0, 1.5, 0.5
    x = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    variance = 1 / (1 / old**2 + 1 / sigma**2)
    datum = torch.arange(4).repeat(20_000)
    noise = torch.randn(len(datum), dtype=torch.float64)
    z = x[datum] * variance / sigma**2 + variance**0.5 * noise

    def log_prob(value: Tensor, variance: float) -> Tensor:
        return torch.distributions.Normal(0.0, variance**0.5).log_prob(value)

    found = Draws(datum, log_prob(z, old**2)).gain(log_prob(z, new**2))
    truth = log_prob(x, new**2 + sigma**2) - log_prob(x, old**2 + sigma**2)
    torch.testing.assert_close(found, truth, atol=0.02, rtol=0)
    # Of one draw each it is the difference of the densities.
    one = Draws(torch.arange(4), log_prob(z[:4], 1.0)).gain(log_prob(z[:4], 2.0))
    torch.testing.assert_close(one, log_prob(z[:4], 2.0) - log_prob(z[:4], 1.0))
