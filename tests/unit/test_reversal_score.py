"""What each number of a reversal score is of, where the codes are known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.callbacks import ReversalScore
from flexgen.priors import Normal
from tests.unit.test_base_space import D, Data, Generator, pag

N = 1000


@pytest.fixture
def model() -> Generator:
    torch.manual_seed(0)
    return Generator(Normal(D))


def score(model: Generator, z: Tensor, folder: Path, **options: Any) -> dict[str, float]:
    """The score of data whose codes are z."""
    measurement = ReversalScore(n=len(z), num_resamples=40, options={"bank": 64, **options})
    with torch.no_grad():
        x = model.decoder(z)
    return measurement.run(model, Data(x), folder)


def test_true_codes_are_scored_whatever_became_of_their_reversal(
    model: Generator, tmp_path: Path
) -> None:
    # One step leaves codes where a descent starts, near 0, and far too narrow for the prior.
    values = score(model, torch.randn(N, D), tmp_path, method="adam", steps=1)
    assert values["own/pag_reversed"] > 1
    assert values["own/pag_true"] == pytest.approx(0, abs=0.02)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖ over distinct pairs."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def test_codes_are_held_against_draws_of_the_prior(model: Generator, tmp_path: Path) -> None:
    z = 2 + torch.randn(N, D)
    values = score(model, z, tmp_path, method="lbfgs", steps=60)
    assert values["reversal/error"] < 1e-3
    assert values["pag/unit"] == pytest.approx(pag(z), abs=0.01)
    assert values["pag/fit"] == pytest.approx(D * 2**2 / 2, abs=0.5)
    expected = energy_distance(z, torch.randn(N, D))
    assert expected > 1
    assert values["pag/nscd"] > 0.2
    assert abs(values["own/nscd"]) < 5 * 8**0.5 / (N * D**0.5)
    assert values["pag/samples"] == pytest.approx(expected, rel=0.1)


def test_codes_of_the_priors_own_draws_are_no_distance_from_it(
    model: Generator, tmp_path: Path
) -> None:
    values = score(model, torch.randn(N, D), tmp_path, method="lbfgs", steps=60)
    for name in ("pag/unit", "pag/fit", "pag/samples"):
        assert values[name] == pytest.approx(0, abs=0.02), name
