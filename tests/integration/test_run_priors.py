"""Any prior by name, made ready for a trained run, which stays as it was."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexgen._conf import conf_dir
from flexgen.analysis.priors import codes_of, prior_for
from flexgen.cli import main
from flexgen.codes import Codes
from flexgen.priors import Langevin
from flexgen.runs import resolvers
from flexgen.runs.build import Parts, load_trained
from flexgen.runs.compose import load_config
from tests.conftest import SMALL


def config(*words: str) -> dict:
    resolvers.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*words, "latent_dim=2", "paths.run_dir=nowhere"])
        return OmegaConf.to_container(cfg.prior, resolve=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("run") / "run"
    main(["train", *SMALL, "report=false", f"paths.run_dir={where}"])
    return where


@pytest.fixture
def parts(run: Path) -> Parts:
    return load_trained(load_config(run), run)


def never() -> Codes:
    raise AssertionError("this prior has nothing to learn from codes")


def far(n: int = 400) -> Codes:
    """Codes far from where any prior is before it has learned."""
    return Codes(5 + 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), None)


@pytest.mark.parametrize(
    "words",
    [
        ["prior=gaussian"],
        ["prior=mixture", "prior.num_components=2"],
        ["prior=kernel_density"],
        ["prior=empirical"],
        ["prior=pushforward", "prior.steps=50"],
        ["prior=rejection", "prior@prior.base=gaussian"],
        ["prior=masked", "prior@prior.base=mixture", "prior.base.num_components=2"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_can_learn_is_fitted_to_the_codes(parts: Parts, words: list[str]) -> None:
    prior = prior_for(parts, config(*words), far, progress=False)
    drawn = prior().sample((500,))
    assert (drawn.mean(0) - 5).abs().max() < 0.3
    assert not any(p.requires_grad for p in prior.parameters())


def test_what_has_weights_and_a_density_learns_by_likelihood(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    monkeypatch.setattr(
        "flexgen.priors.mixture.maximise_likelihood", lambda prior, *_, **__: fitted.append(prior)
    )
    prior = prior_for(parts, config("prior=learnable_mixture"), far)
    assert fitted == [prior]


@pytest.mark.parametrize(
    "name", ["normal", "uniform", "masked", "weighted", "rejection", "langevin"]
)
def test_what_cannot_learn_asks_for_no_codes(parts: Parts, name: str) -> None:
    prior = prior_for(parts, config(f"prior={name}"), never)
    assert prior().sample((7,)).shape == (7, 2)


def test_a_score_is_the_runs_critic_for_its_average(parts: Parts) -> None:
    model = parts.model
    prior = prior_for(parts, config("prior=masked", "prior.rate=0.1"), never)
    drawn = prior().sample((300,))
    by_critic = model.critic(model.decoder(drawn)).mean()
    of_base = model.critic(model.decoder(prior.base().sample((3000,)))).mean()
    assert by_critic > of_base


def test_the_run_stays_as_it_was(parts: Parts) -> None:
    before = copy.deepcopy(parts.model.state_dict())
    attached = [m._score for m in parts.model.modules() if isinstance(m, Langevin)]
    state, training = torch.get_rng_state(), parts.model.training
    codes = codes_of(parts, n=50, progress=False)
    assert codes.z.shape == (50, 2)
    prior_for(parts, config("prior=gaussian"), lambda: codes)
    prior_for(parts, config("prior=langevin"), never)
    assert torch.equal(torch.get_rng_state(), state)
    assert parts.model.training is training
    assert attached == [m._score for m in parts.model.modules() if isinstance(m, Langevin)]
    after = parts.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_another_dimension_is_refused(parts: Parts) -> None:
    with pytest.raises(ValueError, match=r"event shape must be \(2,\).*got \(3,\)"):
        prior_for(parts, {"_target_": "flexgen.priors.Normal", "latent_dim": 3}, never)


def test_a_prior_of_ones_own(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_priors.py").write_text(
        "import torch\n"
        "class StudentT(torch.nn.Module):\n"
        "    def __init__(self, latent_dim, df=5.0):\n"
        "        super().__init__()\n"
        "        self.register_buffer('df', torch.full((latent_dim,), float(df)))\n"
        "    def forward(self):\n"
        "        student = torch.distributions.StudentT(self.df)\n"
        "        return torch.distributions.Independent(student, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"_target_": "my_priors.StudentT", "latent_dim": 2, "df": 3}
    assert prior_for(parts, asked, never)().sample((4,)).shape == (4, 2)
