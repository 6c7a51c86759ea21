"""What is logged of samples, by the prior that draws them."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.callbacks import SampleQuality
from flexgen.models import Adversarial
from flexgen.networks import MLPCritic, MLPGenerator
from flexgen.objectives import GAN
from flexgen.priors import Langevin, Masked, Normal, Pushforward, Rejection, Weighted

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Normals:
    """Data from N(0, I) in the plane, and how often training data were asked for."""

    num_classes, centres = None, None

    def __init__(self) -> None:
        self.asked = 0

    def size(self, name: str) -> int:
        return 300

    def split(self, name: str, n: int, seed: int) -> tuple[Tensor, None]:
        self.asked += name == "train"
        generator = torch.Generator().manual_seed(seed + 100 * (name == "train"))
        return torch.randn(n, 2, generator=generator), None


class FirstCoordinate(nn.Module):
    """Stands in for a critic: data further right look more real."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def measured(prior: nn.Module, data: Any, quality: SampleQuality) -> dict[str, float]:
    model = Adversarial(
        nn.Identity(), FirstCoordinate(), prior, GAN(),
        generator_optimizer=SGD, critic_optimizer=SGD,
    )  # fmt: skip
    return quality.run(model, data, Path("nowhere"))


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        (Masked(Normal(2), rate=0.2), {"critic_std", "effective_sample_size", "acceptance"}),
        (Masked(Normal(2), where="generation"), {"critic_std", "effective_sample_size",
                                                 "acceptance"}),
        (Weighted(Normal(2)), {"critic_std", "effective_sample_size", "acceptance"}),
        (Rejection(Normal(2)), {"critic_std", "acceptance"}),
        (Langevin(Normal(2), steps=20), {"critic_std", "acceptance"}),
    ],
)  # fmt: skip
def test_a_prior_that_draws_by_score_is_set_beside_its_base(prior: nn.Module, told: set) -> None:
    values = measured(prior, Normals(), SampleQuality(n=200, draws=3))
    # The base is what the data are from; the score leads away from them.
    assert values["emd/unmasked"] == pytest.approx(values["emd/floor"], rel=0.3)
    assert values["emd/samples"] > 1.2 * values["emd/unmasked"]
    assert {k for k in values if k.startswith("samples/")} == {f"samples/{k}" for k in told}
    assert 0 < values["samples/acceptance"] <= 1
    assert values["samples/critic_std"] == pytest.approx(1, rel=0.15)
    # Training logs these under its own names, over its own steps.
    assert {k for k in values if k.startswith("prior/")} == {"prior/stage"}


@pytest.mark.parametrize("kind", ["normal", "pushforward"])
def test_other_priors_have_no_base_that_draws_apart(kind: str) -> None:
    pgan = Pushforward(
        MLPGenerator(2, (2,), hidden_features=[4]), Normal(2), MLPCritic((2,), hidden_features=[4])
    )
    prior = {"normal": Normal(2), "pushforward": pgan}[kind]
    values = measured(prior, Normals(), SampleQuality(n=50, draws=2))
    assert values.keys() == {"emd/samples", "emd/floor", "prior/stage"}


def test_the_means_are_those_of_all_draws() -> None:
    """A mask of rate r accepts the share r of each draw, whatever was drawn."""
    values = measured(Masked(Normal(2), rate=0.25), Normals(), SampleQuality(n=100, draws=3))
    assert values["samples/acceptance"] == pytest.approx(0.25)


def test_the_floor_of_a_data_set_is_measured_once() -> None:
    quality, data, other = SampleQuality(n=50, draws=3), Normals(), Normals()
    first = measured(Normal(2), data, quality)
    assert data.asked == 3
    assert measured(Normal(2), data, quality) == first
    assert data.asked == 3
    measured(Normal(2), other, quality)
    assert other.asked == 3
