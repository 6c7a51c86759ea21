"""Any prior by name, made ready for a trained run, which stays as it was."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexgen.analysis.priors import codes_of, prior_for
from flexgen.cli import main
from flexgen.codes import Codes
from flexgen.runs import resolvers
from flexgen.runs.run import Run, open_run
from tests.conftest import CONF, SMALL


def config(*words: str) -> dict:
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*words, "latent_dim=2", "paths.run_dir=nowhere"])
        return OmegaConf.to_container(cfg.prior, resolve=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("run") / "run"
    main(["train", *SMALL, "report=false", f"paths.run_dir={where}"])
    return where


@pytest.fixture
def run(folder: Path) -> Run:
    return open_run(folder)


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
def test_what_can_learn_is_fitted_to_the_codes(run: Run, words: list[str]) -> None:
    prior = prior_for(run, config(*words), far, progress=False)
    drawn = prior().sample((500,))
    assert (drawn.mean(0) - 5).abs().max() < 0.3
    assert not any(p.requires_grad for p in prior.parameters())


def test_what_has_weights_and_a_density_learns_by_likelihood(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    monkeypatch.setattr(
        "flexgen.priors.mixture.maximise_likelihood", lambda prior, *_, **__: fitted.append(prior)
    )
    prior = prior_for(run, config("prior=learnable_mixture"), far)
    assert fitted == [prior]


@pytest.mark.parametrize(
    "name", ["normal", "uniform", "masked", "weighted", "rejection", "langevin"]
)
def test_what_cannot_learn_asks_for_no_codes(run: Run, name: str) -> None:
    prior = prior_for(run, config(f"prior={name}"), never)
    assert prior().sample((7,)).shape == (7, 2)


def test_a_score_is_the_runs_critic_for_its_average(run: Run) -> None:
    model = run.model
    prior = prior_for(run, config("prior=masked", "prior.rate=0.1"), never)
    drawn = prior().sample((300,))
    by_critic = model.critic(model.decoder(drawn)).mean()
    of_base = model.critic(model.decoder(prior.base().sample((3000,)))).mean()
    assert by_critic > of_base


def test_the_run_stays_as_it_was(run: Run) -> None:
    before = copy.deepcopy(run.model.state_dict())
    state, training = torch.get_rng_state(), run.model.training
    codes = codes_of(run, n=50, progress=False)
    assert codes.z.shape == (50, 2)
    prior_for(run, config("prior=gaussian"), lambda: codes)
    prior_for(run, config("prior=langevin"), never)
    assert torch.equal(torch.get_rng_state(), state)
    assert run.model.training is training
    after = run.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_another_dimension_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match=r"event shape must be \(2,\).*got \(3,\)"):
        prior_for(run, {"_target_": "flexgen.priors.Normal", "latent_dim": 3}, never)


def test_a_prior_of_ones_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert prior_for(run, asked, never)().sample((4,)).shape == (4, 2)
