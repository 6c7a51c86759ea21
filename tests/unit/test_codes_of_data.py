"""The codes that a model gives data: a VAE's are draws of its posterior."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from flexgen.callbacks import AggregatePosterior, PriorRefit, Reconstructions, SampleGrid
from flexgen.codes import Codes, codes_of_data, reverse_split
from flexgen.likelihoods import Bernoulli
from flexgen.metrics import EnergyDistance
from flexgen.models import VAE, Latent
from flexgen.networks import MLPEncoder, MLPGenerator
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Gaussian, Normal, RealNVP, Vamp
from tests.unit.linear_gaussian import ADAM

D = 3


class Data:
    """Binary images in two splits, the same ones in both."""

    shape, range, num_classes = (1, 4, 4), (0.0, 1.0), 10

    def __init__(self, n: int) -> None:
        images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.x = images.round()

    def size(self, split: str) -> int:
        return len(self.x)

    def split(self, split: str, n: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
        return self.x[:n], torch.arange(len(self.x[:n])) % 10


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    encoder = MLPEncoder((1, 4, 4), hidden_features=[8])
    decoder = MLPGenerator(D, (1, 4, 4), hidden_features=[8], output_range=None)
    likelihood = Bernoulli(decoder)
    return VAE(DiagonalGaussian(encoder, D), likelihood, Normal(D), optimizer=ADAM)


def test_codes_are_draws_of_each_posterior_in_turn(vae: VAE) -> None:
    data, state = Data(4), torch.get_rng_state()
    codes = codes_of_data(vae, data, "train", 8002).z
    assert codes.shape == (8002, D)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        q = vae.posterior(data.x)
    of_each = codes[:8000].view(2000, 4, D)
    error = 5 * q.scale / math.sqrt(2000)
    assert ((of_each.mean(0) - q.loc).abs() < error).all()
    assert ((of_each.std(0) - q.scale).abs() < error).all()


def test_two_splits_have_noise_of_their_own(vae: VAE) -> None:
    data = Data(500)
    first, again, other = (
        codes_of_data(vae, data, split, None).z for split in ("train", "train", "validation")
    )
    assert torch.equal(first, again)
    with torch.no_grad():
        q = vae.posterior(data.x)
    noise = [((z - q.loc) / q.scale).flatten() for z in (first, other)]
    assert torch.corrcoef(torch.stack(noise))[0, 1].abs() < 0.1


class Reversed(Latent):
    """A model without a posterior: its codes are found by reversal."""

    def __init__(self) -> None:
        super().__init__(
            Normal(D), optimizers=(), schedulers=(), gradient_clip=None, accumulate=1, log_every=1
        )
        self.map = nn.Linear(D, 16)

    @property
    def decoder(self) -> nn.Module:
        return nn.Sequential(self.map, nn.Unflatten(1, (1, 4, 4)))


def test_codes_of_a_model_without_a_posterior_are_drawn_by_annealing() -> None:
    torch.manual_seed(0)
    model, data = Reversed(), Data(5)
    truth = torch.randn(5, D)
    data.x = model.decoder(truth).detach()
    found = codes_of_data(model, data, "train", 10, sigma=0.01)
    torch.testing.assert_close(found.z, truth.repeat(2, 1), atol=0.1, rtol=0)
    assert not torch.equal(found.z[:5], found.z[5:])
    assert found.draws is not None
    assert torch.equal(found.draws.datum, torch.arange(5).repeat(2))
    log_prior = torch.distributions.Normal(0, 1).log_prob(found.z).sum(1)
    torch.testing.assert_close(found.draws.log_prior, log_prior)
    reversed_codes = reverse_split(model, data, "train", 10).z
    torch.testing.assert_close(reversed_codes, truth, atol=0.02, rtol=0)


def test_codes_lie_in_z_under_a_prior_that_is_a_map() -> None:
    torch.manual_seed(0)
    model, data = Reversed(), Data(5)
    truth = torch.randn(5, D)
    data.x = model.decoder(truth).detach()
    prior = Gaussian(D)
    prior.fit(3 * torch.randn(100, D) + 1)
    model.prior.use(model.prior.append(prior))
    found = codes_of_data(model, data, "train", 5, sigma=0.01)
    torch.testing.assert_close(found.z, truth, atol=0.1, rtol=0)


def refit(model: VAE, prior: nn.Module, **options: Any) -> dict[str, float]:
    callback = PriorRefit(prior, at=[1], n=1000, progress=False, **options)
    callback.add_stages(model)
    return callback.refit(model, Data(100), 1)


def test_a_vaes_refit_is_kept_by_the_nats_of_held_out_codes(
    vae: VAE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    # By energy distance this refit would be dropped, whatever it is worth to the bound.
    far = iter([0.0, 1.0, 0.0])
    monkeypatch.setattr(EnergyDistance, "compute", lambda self: torch.tensor(next(far)))
    with torch.no_grad():
        vae.posterior.head.bias[:D] += 2.0
    values = refit(vae, RealNVP(D, num_layers=2, hidden_features=[8], steps=40))
    assert values["refit/nll_after"] < values["refit/nll_before"] - 1
    assert values["refit/kept"] == vae.prior.in_use == 1
    # What decided stands last before the verdict.
    measure, verdict = caplog.messages[-2:]
    assert "log p(z)" in measure
    assert verdict.endswith("closer and is in use")


class Far(Normal):
    """A prior that a fit moves away from the codes."""

    learns = True

    def fit(self, codes: Tensor, **options: Any) -> dict[str, float]:
        self.loc.fill_(9.0)
        return {}


def test_a_vaes_refit_that_costs_nats_is_dropped(vae: VAE) -> None:
    values = refit(vae, Far(D))
    assert values["refit/nll_after"] > values["refit/nll_before"]
    assert values["refit/kept"] == vae.prior.in_use == 0


def test_a_refit_moves_no_batch_norm_of_the_encoder(vae: VAE) -> None:
    norm = nn.BatchNorm1d(vae.posterior.encoder.out_features)
    encoder = nn.Sequential(vae.posterior.encoder, norm)
    encoder.out_features = norm.num_features  # type: ignore[assignment]
    vae.posterior.encoder = encoder
    values = refit(vae, Vamp(D, (1, 4, 4), num_components=5, steps=2))
    assert norm.training
    assert norm.num_batches_tracked == 0
    assert math.isfinite(values["refit/nll_after"])


def test_reversal_stays_available_to_a_vae(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "flexgen.callbacks.refit.reverse_split",
        lambda model, data, split, n, **options: (
            asked.append(split) or Codes(torch.randn(50, D), None)
        ),
    )
    refit(vae, Far(D), source="reversal")
    assert asked == ["train", "validation"]


def test_grids_of_a_vae(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "flexgen.callbacks.figures.draw_samples",
        lambda x, _, path, columns: drawn.update({path: x}),
    )
    monkeypatch.setattr(
        "flexgen.callbacks.posterior.draw_pairs",
        lambda x, x_hat, _, path: drawn.update({path: (x, x_hat)}),
    )
    SampleGrid(n=16, draws=True).run(vae, Data(20), tmp_path)
    Reconstructions(n=7).run(vae, Data(20), tmp_path)
    at = {path.parent.name: value for path, value in drawn.items()}
    assert set(at) == {"samples", "draws", "reconstructions"}
    assert set(at["draws"].unique().tolist()) == {0.0, 1.0}
    assert at["samples"].unique().numel() > 2
    x, x_hat = at["reconstructions"]
    assert torch.equal(x, Data(7).x)
    assert x_hat.shape == x.shape


def panels(model: VAE, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of a picture of the aggregate posterior that hold something."""
    figure = Figure()
    monkeypatch.setattr(
        "flexgen.callbacks.posterior.draw_figure", lambda draw, path, size: draw(figure)
    )
    AggregatePosterior().run(model, Data(50), Path("nowhere"))
    return [axes for axes in figure.axes if axes.collections]


def test_a_flow_prior_is_pictured_in_its_base_space_too(
    vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(panels(vae, monkeypatch)) == 1
    stage = vae.prior.append(RealNVP(D, num_layers=2, hidden_features=[8]))
    vae.prior.stages[stage].transform.transforms[-1].factor.mul_(4)
    vae.prior.use(stage)
    spread = [
        [np.asarray(points.get_offsets()).std() for points in axes.collections]
        for axes in panels(vae, monkeypatch)
    ]
    (prior_in_z, codes_in_z), (prior_in_base, codes_in_base) = spread
    assert prior_in_z == pytest.approx(4, rel=0.1)
    assert prior_in_base == pytest.approx(1, rel=0.1)
    assert codes_in_z == pytest.approx(4 * codes_in_base, rel=0.02)


@pytest.mark.parametrize(
    ("callback", "lacked"),
    [
        (SampleGrid(draws=True), r"SampleGrid needs a likelihood p\(x\|z\)"),
        (Reconstructions(), "Reconstructions needs an encoder to codes"),
    ],
)
def test_pictures_of_a_posterior_are_refused_without_one(callback: Any, lacked: str) -> None:
    with pytest.raises(ValueError, match=rf"{lacked}, which this model does not have; "):
        callback.check(Reversed(), Data(20))


@pytest.mark.parametrize("callback", [Reconstructions, AggregatePosterior])
def test_pictures_of_hardly_any_data_are_refused_before_training(callback: Any) -> None:
    with pytest.raises(ValueError, match=r"`n` must be a whole number of at least 2, got 1"):
        callback(n=1)
