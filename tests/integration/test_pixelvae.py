"""A PixelVAE of two levels through every command."""

import csv
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flexgen.runs.run import open_run
from flexgen.training import latest_checkpoint, load_checkpoint
from tests.integration.test_resume import same

Command = Callable[..., Path]

TINY = (
    "experiment=pixelvae/digits_two_levels", "latent_dim=5", "prior.levels=[3,2]",
    "prior.hidden_features=[8]", "network.encoder.hidden_features=[16]",
    "network.decoder.hidden_features=[16]", "network.decoder.shape=[2,8,8]",
    "likelihood.pixels.channels=4", "data.num_validation=60", "data.num_test=60",
    "callbacks.likelihood.n=60", "callbacks.likelihood.num_samples=2",
    "callbacks.likelihood.every=null", "callbacks.samples.n=4", "callbacks.reconstructions.n=4",
    "callbacks.samples.every=null", "trainer=cpu", "report=false",
)  # fmt: skip


CLASSES = (
    "experiment=pixels/digits_classes", "network.pixels.channels=4", "network.pixels.num_layers=2",
    "callbacks=[progress,nll,checkpoint]", "callbacks.nll.every=null", "trainer=cpu", "steps=4",
    "report=false",
)  # fmt: skip


def study() -> ModuleType:
    path = Path(__file__).parents[2] / "experiments" / "pixelvae" / "figures.py"
    spec = importlib.util.spec_from_file_location("pixelvae_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(flexgen: Command) -> Path:
    return flexgen("train", *TINY, "steps=6")


def values_of(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "metrics.json").read_text())["values"]
    return values


def test_it_is_trained_measured_by_level_and_resumed_to_the_same_bits(
    flexgen: Command, run: Path
) -> None:
    values = values_of(run)
    by_level = values["elbo/kl_level1"] + values["elbo/kl_level2"]
    assert by_level == pytest.approx(values["elbo/kl"], rel=0.2, abs=0.05)
    assert {"nll/bits_per_dimension", "posterior/active_units_level2"} <= values.keys()
    opened = open_run(run)
    assert opened.latent.prior.levels == (3, 2)
    flexgen("report", str(run))
    assert "KL, lowest level" in (run / "report.html").read_text()

    flexgen("resume", f"run={run}", "steps=12")
    whole = flexgen("train", *TINY, "steps=12", run_dir="whole")
    there, here = (load_checkpoint(latest_checkpoint(r)) for r in (run, whole))
    for part in ("state_dict", "optimizer_states", "flexgen"):
        assert same(there[part], here[part]) == []
    with (whole / "metrics.csv").open() as file:
        assert "elbo/kl_level2" in next(csv.reader(file))


def test_the_code_is_one_vector_for_refits_samples_and_comparisons(
    flexgen: Command, run: Path
) -> None:
    flexgen("sample", f"run={run}", "n=4")
    drawn = load_file(next((run / "samples").glob("*_n=4.safetensors")))["x"]
    grid = torch.arange(17) / 8 - 1
    assert torch.cdist(drawn.view(-1, 1), grid[:, None]).amin(1).max() < 1e-6
    flexgen("sample", f"run={run}", "prior=realnvp", "prior.steps=4", "n=4", "n_fit=100")
    flexgen("evaluate", f"run={run}")
    child = flexgen(
        "refit", f"run={run}", "prior=realnvp", "prior.steps=10", "prior.hidden_features=[8]",
        "more=2", "refit.n=200", "refit.keep=always", "report=false", run_dir="child",
    )  # fmt: skip
    values = values_of(child)
    assert values["prior/stage"] == 1
    assert math.isnan(values["elbo/kl_level1"])
    assert math.isfinite(values["nll/samples"])
    flexgen(
        "compare", f"run={run}", "priors=own,gaussian,hierarchical", "n=40", "seeds=2",
        "n_fit=200",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("reverse", "picture of each code to reverse, which this model does not have"),
        ("sample interpolate=linear", "cannot be reversed; its codes are its encoder's"),
        ("refit prior=realnvp refit.source=reversal", "cannot be reversed"),
        ("refit prior=pushforward", "a Pushforward prior has none"),
    ],
)
def test_what_needs_a_mean_is_refused_in_a_line(
    flexgen: Command, run: Path, command: str, told: str
) -> None:
    name, *words = command.split()
    with pytest.raises(SystemExit) as stopped:
        flexgen(name, f"run={run}", *words, run_dir="child")
    assert told in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)


def test_levels_that_do_not_add_up_are_refused_in_a_line(flexgen: Command) -> None:
    with pytest.raises(SystemExit) as stopped:
        flexgen("train", *TINY, "latent_dim=6")
    assert "add up to `latent_dim` 6" in str(stopped.value.code)


def test_the_study_varies_one_noise_at_a_time(run: Path) -> None:
    vary = study().Vary(open_run(run).latent)
    assert vary.names == ("level 2", "level 1", "pixels")
    codes: list[torch.Tensor] = []
    decode = vary.model.decode

    def seen(z: torch.Tensor) -> Any:
        codes.append(vary.model.prior.base_space().from_code(z))
        return decode(z)

    vary.model.decode = seen
    base = vary.draw(6, "level 1", 0)
    assert all(torch.equal(vary.draw(6, name, 0), base) for name in vary.names)
    noise = codes[0]
    codes.clear()
    images = {name: vary.draw(6, name, 1) for name in (*vary.names, "everything")}
    moved = [(eps - noise).abs() > 1e-4 for eps in codes]
    expected = [[False] * 3 + [True] * 2, [True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    for found, wanted in zip(moved, expected, strict=True):
        assert torch.equal(found, torch.tensor(wanted).expand(6, 5))
    # After six steps a code moves few pixels, if any; another noise moves many.
    assert torch.equal(images["pixels"], vary.draw(6, "pixels", 1))
    assert (images["pixels"] != base).float().mean() > 0.3
    assert (images["level 2"] != base).float().mean() < 0.1


def test_the_study_makes_its_pictures_and_tables(flexgen: Command, run: Path) -> None:
    out = Path("figures")
    out.mkdir()
    figures = study()
    for kind in ("levels", "shares", "codes"):
        getattr(figures, kind)([run], out)
    figures.classes([flexgen("train", *CLASSES, run_dir="classes")], out)
    for name in ("levels", "shares", "codes", "classes"):
        assert (out / f"{name}.png").stat().st_size > 1000
    varied = list(csv.DictReader((out / "levels.csv").read_text().splitlines()))
    assert [row["varied"] for row in varied] == ["level 2", "level 1", "pixels", "everything"]
    assert float(varied[-1]["distance"]) == 1
    (nats,) = csv.DictReader((out / "shares.csv").read_text().splitlines())
    assert float(nats["nll"]) == pytest.approx(values_of(run)["nll/samples"], abs=1e-3)
    (named,) = csv.DictReader((out / "classes.csv").read_text().splitlines())
    assert float(named["by the classifier"]) > 0.9
