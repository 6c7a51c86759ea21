"""experiments/prior_table/table.py: differences are paired image by image."""

import csv
import runpy
from pathlib import Path

import pytest
import torch

from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE
from flexgen.networks import MLPEncoder, MLPGenerator
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal

SCRIPT = Path(__file__).parents[2] / "experiments" / "prior_table" / "table.py"


def test_the_difference_of_two_priors_is_that_of_each_image(tmp_path: Path) -> None:
    write = runpy.run_path(str(SCRIPT))["write"]
    levels = torch.tensor([100.0, 50.0, 75.0])
    gain = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -3.0, -4.0]])
    about = {"kl": 1.0, "units": 3.0, "seconds": 2.0}
    found = {
        "normal": {seed: {"nll": levels + seed, **about} for seed in (0, 1)},
        "other": {seed: {"nll": levels + seed + gain[seed], **about} for seed in (1, 0)},
    }
    write(found, tmp_path)
    with open(tmp_path / "paired.csv") as file:
        _, row = csv.DictReader(file)
    # Over images −1.5, −2.5, −3.5: mean −2.5, s.e. 1/√3.
    assert row == {
        "prior": "other", "less normal": "-2.500", "standard error": "0.577",
        "of each seed": "-2.000 -3.000",
    }  # fmt: skip
    with open(tmp_path / "table.csv") as file:
        levels = [float(row["nll/samples mean"]) for row in csv.DictReader(file)]
    assert levels == [75.5, 73.0]
    assert (tmp_path / "table.tex").is_file()


def test_priors_are_scored_by_one_set_of_draws() -> None:
    script = runpy.run_path(str(SCRIPT))
    torch.manual_seed(0)
    posterior = DiagonalGaussian(MLPEncoder((1, 2, 2), hidden_features=[4]), 2)
    model = VAE(
        posterior, Bernoulli(MLPGenerator(2, (1, 2, 2))), Normal(2), optimizer=torch.optim.Adam
    )

    class Opened:
        def __init__(self) -> None:
            self.model = model

    x = torch.rand(7, 1, 2, 2).round()
    scored = script["scored"](Opened(), {"a": Normal(2), "b": Normal(2)}, x, 4000)
    torch.testing.assert_close(scored["a"][0], scored["b"][0])
    expected = -model.log_likelihood(x, 4000)
    torch.testing.assert_close(scored["a"][0], expected, rtol=0, atol=0.05)
    q = posterior(x)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.stddev), torch.distributions.Normal(0, 1)
    )
    assert scored["a"][1] == pytest.approx(float(kl.detach().sum(1).mean()), abs=0.05)
