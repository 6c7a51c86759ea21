"""The contracts: foreign priors adapted once, needs bound once, densities that are not believed."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal
from torch.distributions import Normal as TorchNormal
from torch.utils.data import DataLoader

from flexgen.callbacks import LikelihoodScore, PriorRefit, ReversalScore
from flexgen.contracts import Batch, Cost, Likelihood, Prior
from flexgen.data import Ring, ToyData
from flexgen.distributions import GaussianPixels
from flexgen.likelihoods import Gaussian
from flexgen.models import VAE, Adversarial
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import GAN
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Masked, Mixture, Normal, Staged, Vamp, as_prior

D = 2
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def data() -> ToyData:
    return ToyData(
        name="ring", shape=[2], range=None, batch_size=50, seed=0, num_train=400,
        num_validation=100, num_test=100,
        distribution=Ring(num_modes=8, radius=0.8, std=0.02),
    )  # fmt: skip


def vae(prior: nn.Module, likelihood: Likelihood | None = None, **options: Any) -> VAE:
    torch.manual_seed(0)
    decoder = MLPGenerator(D, (2,), hidden_features=[16])
    posterior = DiagonalGaussian(MLPEncoder((2,), [16]), D)
    return VAE(posterior, likelihood or Gaussian(decoder), prior, optimizer=ADAM, **options)


def gan(prior: nn.Module) -> Adversarial:
    return Adversarial(
        MLPGenerator(D, (2,), hidden_features=[16]), MLPCritic((2,), hidden_features=[16]), prior,
        GAN(), generator_optimizer=ADAM, critic_optimizer=ADAM,
    )  # fmt: skip


def fit(model: pl.LightningModule, steps: int = 5) -> pl.LightningModule:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data())
    return model


class TenLines(nn.Module):
    """A user's own module, which knows no contract."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    def forward(self) -> Distribution:
        return Independent(TorchNormal(self.loc, 1.0), 1)


class DrawsAlone(nn.Module):
    class _Drawn(Distribution):
        arg_constraints = {}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__(event_shape=torch.Size((D,)), validate_args=False)

        def sample(self, sample_shape: Any = ()) -> Tensor:
            return torch.zeros(*sample_shape, D)

    def forward(self) -> Distribution:
        return self._Drawn()


class Energy(Prior):
    """exp(−E(z)) with E a network's: its `log_prob` is wrong by log Z, here by much."""

    normalised = False

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = D
        self.energy = nn.Linear(D, 1)

    def forward(self, context: Tensor | None = None) -> Distribution:
        return MultivariateNormal(torch.zeros(D), torch.eye(D))

    def cross_entropy(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        drawn = torch.randn_like(z)
        tilt = self.energy(z) - self.energy(drawn)
        return 0.5 * z.square().sum(-1) + tilt.squeeze(-1) - 100.0


def test_a_users_ten_lines_are_a_prior_with_the_contracts_defaults() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    prior = as_prior(TenLines())
    assert torch.equal(torch.rand(1), wanted), "to look at a prior must draw nothing"
    assert prior.latent_dim == D
    assert prior.has_log_prob
    assert prior.normalised
    assert prior.learns
    assert prior.support is None
    assert prior.base_space().prior is prior
    codes = torch.randn(500, D) + 1
    prior.fit(codes, seed=0)
    assert (prior().sample((2000,)).mean(0) - 1).abs().max() < 0.2
    assert as_prior(prior) is prior


def test_a_users_own_fit_is_asked_for_what_it_takes() -> None:
    class Fitted(TenLines):
        def fit(self, codes: Tensor, seed: int, progress: bool) -> dict[str, float]:
            self.loc.data = codes.mean(0)
            return {"seed": float(seed)}

    prior = as_prior(Fitted())
    told = prior.fit(torch.ones(9, D), context=None, seed=3, progress=False)
    assert told == {"seed": 3.0}
    assert torch.equal(prior().mean, torch.ones(D))


def test_a_module_that_only_draws_has_no_density() -> None:
    prior = as_prior(DrawsAlone())
    assert prior.log_prob_cost is Cost.ABSENT
    assert not prior.learns
    with pytest.raises(ValueError, match="nothing to learn"):
        prior.fit(torch.zeros(5, D))


def test_what_is_no_prior_is_told() -> None:
    with pytest.raises(ValueError, match="must return a distribution over codes"):
        as_prior(nn.Linear(2, 2))

    class Wrong(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.batch = TorchNormal(torch.zeros(shape), 1.0)

        def forward(self) -> Distribution:
            return self.batch

    for shape in ((3, 2), (2,)):
        with pytest.raises(ValueError, match=r"event shape must be \(latent_dim,\).*Independent"):
            as_prior(Wrong(*shape))


def test_a_foreign_prior_trains_with_a_gan_and_a_vae() -> None:
    for make in (gan, vae):
        prior = TenLines()
        fit(make(prior))
        assert prior.loc.abs().sum() > 0, "its parameters learn with the model"


def test_needs_are_bound_once_through_every_layer() -> None:
    model = gan(Masked(Normal(D)))
    assert model.prior.draw(4).shape == (4, D)
    prior = Staged([Masked(Mixture(D))])
    assert prior.needs == {"score"}
    with pytest.raises(RuntimeError, match=r"prior\.bind\(score=…\)"):
        prior.draw(3)
    prior.bind(score=lambda z: z.sum(1))
    assert prior.draw(3).shape == (3, D)
    with pytest.raises(ValueError, match=r"Vamp prior is made of a VAE's posteriors"):
        gan(Vamp(D, (2,), num_components=3))
    model = vae(Vamp(D, (2,), num_components=3))
    x = torch.arange(6.0).view(3, 2)
    model.prior.bind(data=lambda n: x[:n])
    inputs = model.prior[0].inputs  # type: ignore[operator,attr-defined]
    torch.testing.assert_close(inputs, x)


def test_a_density_that_is_not_normalised_trains_and_is_never_believed(tmp_path: Path) -> None:
    model = vae(Energy(), log_every=1)
    before = model.prior[0].energy.weight.clone()  # type: ignore[union-attr]
    fit(model)
    assert not torch.equal(before, model.prior[0].energy.weight), "it learns by cross-entropy"  # type: ignore[union-attr,arg-type]
    assert "loss/kl" not in model.last_losses
    assert "loss/kl_unnormalised" in model.last_losses
    assert "log_likelihood" not in model.capabilities
    with pytest.raises(ValueError, match="needs a normalised density"):
        model.log_likelihood(torch.zeros(3, 2), 4)
    values = LikelihoodScore(n=20, num_samples=4).run(model, data(), tmp_path)
    assert "posterior/active_units" in values
    assert "elbo/reconstruction" in values
    assert not {"nll/samples", "elbo/bound", "elbo/kl", "elbo/marginal_kl"} & values.keys()
    (note,) = map(json.loads, (tmp_path / "notes.jsonl").read_text().splitlines())
    assert not note["failed"]
    assert "not normalised" in note["why"]
    with pytest.raises(ValueError, match="importance samples weigh draws"):
        vae(Energy(), importance_samples=3)


def test_a_refit_into_it_leaves_no_old_likelihood_as_the_last(tmp_path: Path) -> None:
    model = vae(Normal(D))
    score = LikelihoodScore(n=20, num_samples=4)
    assert math.isfinite(score.run(model, data(), tmp_path)["nll/samples"])
    model.prior.use(model.prior.append(model.bind(Energy())))
    assert math.isnan(score.run(model, data(), tmp_path)["nll/samples"])


class Draws(Likelihood):
    """Data known by draws and densities alone, as a pixel network's."""

    has_mean = False

    def __init__(self) -> None:
        super().__init__()
        self.decoder = MLPGenerator(D, (2,), hidden_features=[16])

    def forward(self, z: Tensor, context: Tensor | None = None) -> GaussianPixels:
        loc = self.decoder(z.reshape(-1, D)).view(*z.shape[:-1], 2)
        return GaussianPixels(loc, torch.tensor(0.5), 1)


def test_a_likelihood_without_a_mean_trains_samples_and_is_not_reversed(tmp_path: Path) -> None:
    model = vae(Normal(D), Draws())
    fit(model)
    assert model.decoder is None
    z = torch.zeros(2000, D)
    x = model.decode(z)
    assert x.std(0).mean() == pytest.approx(0.5, rel=0.1), "a picture of a code is a draw"
    assert model.sample(7).shape == (7, 2)
    assert math.isfinite(LikelihoodScore(n=20).run(model, data(), tmp_path)["nll/samples"])
    with pytest.raises(ValueError, match=r"has no mean; or leave it out of `callbacks`"):
        ReversalScore().check(model, data())
    refit = PriorRefit(Mixture(D, 2), at=[5], source="reversal")
    with pytest.raises(ValueError, match=r"refit.source=posterior"):
        refit.check(model, data())
    PriorRefit(Mixture(D, 2), at=[5]).check(model, data())


def test_batches_of_any_loader() -> None:
    x, y = torch.zeros(3, 2), torch.arange(3)
    for given in (x, (x, y), [x, y], {"x": x, "y": y}, Batch(x, y)):
        assert Batch.of(given, False) == Batch(x)
    assert Batch.of((x, y), True).context is y
    with pytest.raises(ValueError, match="got data alone"):
        Batch.of(x, True)
    with pytest.raises(ValueError, match="must be a tensor x"):
        Batch.of(3, False)
    assert isinstance(next(iter(DataLoader(x, 2))), Tensor)
