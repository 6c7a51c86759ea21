"""The simple space under a prior, where PAG scores codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.callbacks import ReversalScore
from flexgen.codes import base_space
from flexgen.metrics import PriorAgreement
from flexgen.models import Latent
from flexgen.priors import (
    MAF,
    Gaussian,
    Mixture,
    Normal,
    Pushforward,
    RealNVP,
    Staged,
    Uniform,
    base_codes,
)

D = 3


def bent(n: int) -> Tensor:
    """Codes that are far from N(0, I), and from any Gaussian."""
    z = torch.randn(n, D)
    return torch.stack([4 * z[:, 0], z[:, 1] + z[:, 0].square(), 0.2 * z[:, 2]], 1)


def pag(z: Tensor) -> float:
    score = PriorAgreement()
    score.update(z)
    return float(score.compute())


def fitted() -> RealNVP:
    torch.manual_seed(0)
    prior = RealNVP(D, num_layers=2, hidden_features=(16,), steps=100, lr=5e-3)
    prior.fit(bent(1000))
    return prior


@pytest.mark.parametrize("kind", [RealNVP, MAF, Gaussian])
def test_a_map_and_its_inverse(kind: Any) -> None:
    torch.manual_seed(0)
    prior = Gaussian(D) if kind is Gaussian else kind(D, hidden_features=(16,), steps=50, lr=5e-3)
    prior.fit(bent(500))
    space, eps = prior.base_space(), torch.randn(500, D)
    assert isinstance(space.prior, Normal)
    with torch.no_grad():
        z = space.to_code(eps)
        assert not torch.allclose(z, eps, atol=0.1)
        torch.testing.assert_close(base_codes(prior, z), eps, atol=1e-3, rtol=1e-3)
        # The map carries the base's density to the prior's.
        torch.manual_seed(1)
        drawn = prior().sample((5,))
        torch.manual_seed(1)
        torch.testing.assert_close(space.to_code(space.prior().sample((5,))), drawn)


def test_codes_are_in_units_of_the_normal() -> None:
    z = torch.randn(7, D)
    torch.testing.assert_close(base_codes(Normal(D, scale=2.0), z), z / 2)


def test_where_no_normal_stands_there_are_no_codes() -> None:
    for prior in (Mixture(D), Uniform(D), pushforward(Normal(D))):
        assert base_codes(prior, torch.zeros(2, D)) is None


def pushforward(base: nn.Module) -> Pushforward:
    return Pushforward(nn.Linear(D, D), base, nn.Linear(D, 1))


def test_own_draws_of_a_fitted_flow_agree_in_its_base_and_not_in_code() -> None:
    prior = fitted()
    with torch.no_grad():
        z = prior().sample((2000,))
        assert pag(z) > 1
        for found in (base_codes(prior, z), base_codes(Staged([prior]), z)):
            assert found is not None
            assert pag(found) == pytest.approx(0, abs=0.02)


class Data:
    """Codes made data by a generator, in memory."""

    range, num_classes = None, None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def split(self, split: str, n: int, seed: int) -> tuple[Tensor, None]:
        return self.x[:n], None

    def indices(self, split: str, n: int, seed: int) -> Tensor:
        return torch.arange(n)


class Generator(Latent):
    """A generator that reversal inverts exactly: a rotation."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__(
            prior, optimizers=(), schedulers=(), gradient_clip=None, accumulate=1, log_every=1
        )
        self.net = nn.Linear(D, D, bias=False)
        nn.init.orthogonal_(self.net.weight)

    @property
    def decoder(self) -> nn.Module:
        return self.net


@pytest.mark.parametrize("kind", ["flow", "box"])
def test_reversal_scores_the_codes_of_a_perfect_prior_as_perfect(kind: str, tmp_path: Path) -> None:
    prior = fitted() if kind == "flow" else pushforward(Uniform(D, -0.5, 0.5))
    prior.zero_grad()
    torch.manual_seed(0)
    model = Generator(Staged([Normal(D), prior]))
    model.prior.use(1)
    generate, under = base_space(model)
    assert generate is not model.decoder
    assert under is prior.base_space().prior
    with torch.no_grad():
        x = model.decode(prior().sample((300,)))
    score = ReversalScore(
        n=300, num_resamples=40, options={"method": "lbfgs", "bank": 64, "steps": 60}
    )
    values = score.run(model, Data(x), tmp_path)
    assert values["reversal/error"] < 1e-3
    # The standard deviation of the score of 300 perfect codes is about 0.01.
    assert values["pag/unit"] == pytest.approx(0, abs=0.05)
    assert values["own/pag_reversed"] == pytest.approx(values["own/pag_true"], abs=0.02)
    assert all(p.grad is None for p in model.parameters())
