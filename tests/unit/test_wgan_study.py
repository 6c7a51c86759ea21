"""The measurements of experiments/wgan, on cases whose values are known."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from flexgen.metrics import earth_mover_distance
from flexgen.networks import MLPCritic

STUDY = Path(__file__).parents[2] / "experiments" / "wgan"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lines, surfaces, deep = map(script, ("parallel_lines", "value_surfaces", "deep_critics"))


@pytest.mark.parametrize("theta", [-1.0, -0.1, 0.0, 0.25])
def test_wasserstein_between_parallel_lines_is_their_distance(theta: float) -> None:
    torch.manual_seed(0)
    here, there = lines.line(0.0, 500), lines.line(theta, 500)
    there[:, 1] = here[:, 1]
    exact, _ = lines.closed_form(theta)
    assert float(earth_mover_distance(here, there)) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("theta", [-1.0, -0.1, 0.0, 0.25])
def test_jensen_shannon_of_parallel_lines_only_knows_whether_they_are_one(theta: float) -> None:
    torch.manual_seed(0)
    _, exact = lines.closed_form(theta)
    assert exact == (math.log(2) if theta else 0)
    counted = lines.histogram_divergence(
        lines.line(0.0, 20_000), lines.line(theta, 20_000), bin=0.05
    )
    assert counted == pytest.approx(exact, abs=1e-3)


def test_a_discriminator_bounds_the_divergence_from_below() -> None:
    torch.manual_seed(0)
    assert 0.6 < lines.discriminator_bound(0.5, steps=200) <= math.log(2)
    assert lines.discriminator_bound(0.0, steps=20) == pytest.approx(0, abs=0.01)


def test_a_polynomial_leaves_over_what_its_degree_cannot_say() -> None:
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    square = x[:, 0] * x[:, 1] + x[:, 0].square()
    assert surfaces.unexplained(square, x, degree=2) == pytest.approx(0, abs=1e-9)
    assert surfaces.unexplained(square, x, degree=1) == pytest.approx(1, abs=0.05)
    assert surfaces.unexplained(x @ torch.tensor([2.0, -1.0]), x, degree=1) < 1e-9


class _Radius(nn.Module):
    """D(x) = −k ‖x‖, which has slope k everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -3 * x.norm(dim=1)


def test_a_critic_is_measured_in_units_of_its_slope() -> None:
    values = surfaces.measure(_Radius(), surfaces.Source("8 Gaussians", 0), n=200)
    assert values["gradient, mean"] == pytest.approx(3, abs=1e-4)
    assert values["gradient, std / mean"] < 1e-4
    assert values["gap"] / 3 / values["EMD"] == pytest.approx(values["transport"], abs=1e-3)
    # Noise moves points outward; a normal of the same moments has some of its mass near 0.
    assert 0 < values["transport"] <= 1
    assert values["higher moments"] < 0


def test_the_toys_have_unit_variance_whatever_their_scale() -> None:
    for toy in surfaces.TOYS:
        x, fake = surfaces.Source(toy, 0).pair(20_000)
        assert float((x - x.mean(0)).square().mean()) == pytest.approx(1, abs=0.02)
        assert float((fake - x).std()) == pytest.approx(1, abs=0.02)


def test_gradients_of_a_chain_grow_by_its_factor() -> None:
    critic = MLPCritic([4], hidden_features=[4, 4, 4, 4], activation="ReLU")
    for module in critic.modules():
        if isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
            module.weight.data *= 3
            nn.init.zeros_(module.bias)
    x = torch.rand(8, 4) + 0.1
    norms = deep.layer_gradients(critic, x)
    torch.testing.assert_close(norms.float(), torch.tensor([81.0, 27.0, 9.0, 3.0]))
    assert deep.gain(norms) == pytest.approx(3)


def test_weights_at_the_threshold_are_counted() -> None:
    weights = torch.tensor([0.1, -0.1, 0.096, 0.09, 0.0])
    assert deep.share_near(weights, 0.1) == pytest.approx(3 / 5)
