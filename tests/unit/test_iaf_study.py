"""The measurements of experiments/iaf, on cases whose values are known; the rows of its table."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flexgen.flows import Planar
from flexgen.runs import resolvers
from tests.conftest import CONF

STUDY = Path(__file__).parents[2] / "experiments" / "iaf"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planar, points, cost, levels = map(script, ("planar", "four_points", "cost", "levels"))


def test_the_normaliser_of_a_gaussian() -> None:
    found = planar.log_normaliser(lambda z: z.square().sum(-1) / (2 * 0.5**2), points=200)
    assert found == pytest.approx(math.log(2 * math.pi * 0.5**2), abs=1e-9)


def test_the_normaliser_of_a_wave_between_walls_is_its_area() -> None:
    walls = 2 * planar.WALL + math.sqrt(2 * math.pi) * planar.WALL_WIDTH
    area = walls * 0.4 * math.sqrt(2 * math.pi)
    assert planar.log_normaliser(planar.ENERGIES["U2"]) == pytest.approx(math.log(area), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("U1", [[2.0, 0.0], [-2.0, 0.0]]),
        ("U2", [[1.0, 1.0], [3.0, -1.0], [-4.0, 0.0]]),
        ("U3", [[-3.0, 1.0], [1.0, 1.0], [1.0, -2.0]]),
        ("U4", [[-3.0, 1.0], [3.0, -1.0], [3.0, -4.0]]),
    ],
)
def test_where_each_energy_is_lowest(name: str, lowest: list[list[float]]) -> None:
    at = torch.tensor(lowest)
    energy = planar.ENERGIES[name]
    # Two branches on top of each other double the density.
    assert energy(at).abs().max() < math.log(2) + 0.02
    for aside in ([0.0, 1.5], [0.0, -1.5]):
        assert (energy(at + torch.tensor(aside)) > energy(at) + 0.5).all()
    assert (energy(at + torch.tensor([10.0, 0.0])) > 40).all()


def test_fits_share_no_parameter_and_no_draw() -> None:
    fits = planar.Fits(3, [0, 1])
    torch.manual_seed(1)
    alone = Planar(2, num_layers=3)
    eps = planar.noise([0, 1], 5, planar.generators([0, 1]))
    torch.testing.assert_close(planar.noise([1], 5, planar.generators([1]))[:, 0], eps[:, 1])
    z, log_q = fits(eps)
    assert z.shape == eps.shape
    expected, ladj = alone(eps[0, 1])
    torch.testing.assert_close(z[0, 1], expected)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(eps[0, 1]).sum(-1)
    torch.testing.assert_close(log_q[0, 1], base - ladj)
    z[0, 1].sum().backward()
    touched = fits.flow.free.grad.flatten(2).any(-1)
    assert touched.tolist() == [[False, True]] + [[False, False]] * 3


def test_a_short_fit_comes_nearer_to_its_energy() -> None:
    eps = planar.noise([0], 2000, planar.generators([7]))

    def bound(fits: Any) -> float:
        with torch.no_grad():
            z, log_q = fits(eps)
        return float((log_q[1] + planar.ENERGIES["U2"](z[1])).mean())

    fits = planar.Fits(2, [0])
    before = bound(fits)
    planar.fit(fits, [0], 80, 50)
    assert bound(fits) < before - 0.1
    assert bound(fits) > -planar.log_normaliser(planar.ENERGIES["U2"])


def test_the_integral_over_codes_is_the_evidence() -> None:
    torch.manual_seed(0)
    model = points.build(0).double()
    # A decoder that ignores the code: log p(x) is its likelihood.
    decoder = model.likelihood.decoder.output
    torch.nn.init.zeros_(decoder.weight)
    expected = model.likelihood(torch.zeros(1, 2, dtype=torch.float64)).log_prob(points.DATA)
    torch.testing.assert_close(points.log_evidence(model), expected, rtol=0, atol=1e-4)


def test_posteriors_at_the_prior_have_no_kl_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "PAIRED", 500)
    torch.manual_seed(0)
    model = points.build(0)
    torch.nn.init.zeros_(model.posterior.head.weight)
    torch.nn.init.zeros_(model.posterior.head.bias)
    at_prior = points.measure(model, 2000)
    assert abs(at_prior["marginal_kl"]) < 1e-5
    assert abs(at_prior["energy"]) < 0.02
    shift = torch.tensor([1.0, 0.0, 0.0, 0.0])
    model.posterior.head.bias.data.copy_(shift)
    moved = points.measure(model, 20_000)
    assert moved["marginal_kl"] == pytest.approx(0.5, abs=0.03)
    assert moved["energy"] > 0.1
    assert moved["gap"] == pytest.approx(moved["log_p"] - moved["elbo"])


def config(experiment: str) -> dict[str, Any]:
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", "paths.run_dir=nowhere"])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize(("depth", "width"), [(2, 320), (2, 1920), (4, 1920), (8, 1920)])
def test_a_row_of_the_table_has_its_depth_and_width(depth: int, width: int) -> None:
    row, plain = config(f"iaf/iaf_{depth}_{width}"), config("iaf/diagonal")
    flow = row["posterior"]["flow"]
    assert (flow["num_layers"], flow["hidden_features"]) == (depth, [width, width])
    assert (flow["update"], flow["features"], flow["gate_bias"]) == ("gated", 32, 2.0)
    # It differs from the diagonal row by its posterior alone.
    assert row["callbacks"]["likelihood"] == plain["callbacks"]["likelihood"]
    for part in ("data", "network", "prior", "likelihood", "steps", "latent_dim"):
        assert row[part] == plain[part], part


def test_the_smallest_row_trains() -> None:
    torch.manual_seed(0)
    model = instantiate(config("iaf/iaf_2_320")["model"])
    loss = model.loss(torch.rand(4, 1, 28, 28).round())
    assert 400 < float(loss.detach()) < 700
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_cost_of_a_row_is_of_all_its_steps() -> None:
    found = cost.measure("diagonal", 0, 1)
    steps = config("iaf/diagonal")["steps"]
    # Milliseconds are rounded to a tenth, days too.
    assert found["days"] == pytest.approx(steps * found["milliseconds"] / 86.4e6, abs=0.06)


def test_a_run_of_two_levels_is_one_line(tmp_path: Path) -> None:
    posterior = {
        "_target_": "flexgen.posteriors.Bidirectional", "flow": {"num_layers": 2},
        "encoder": {"hidden_features": [200]},
    }  # fmt: skip
    model = {
        "free_bits": 0.1, "kl_warmup": 5, "prior": {"levels": [16, 8]}, "posterior": posterior
    }  # fmt: skip
    config = {"seed": 3, "latent_dim": 24, "data": {"name": "mnist"}, "model": model}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    values = {"nll/samples": 22.5, "elbo/kl_level2": 1.25, "loss/kl": 7.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"values": values}))
    assert levels.row_of(tmp_path) == {
        "data": "mnist", "levels": "16+8", "numbers": "24",
        "posterior": "Bidirectional with IAF",
        "free_bits": "0.1", "warmup": "5", "layers": "1", "seed": "3",
        "nll/samples": "22.5000", "elbo/kl_level2": "1.2500",
    }  # fmt: skip
