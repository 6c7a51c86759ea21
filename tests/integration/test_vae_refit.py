"""What a user sees of a VAE's prior: its refit, another prior, a sweep's end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flexgen.cli import main

Run = Callable[..., Path]
TINY = (
    "data.num_validation=60", "data.num_test=60", "latent_dim=3", "trainer=cpu", "steps=4",
    "network.encoder.hidden_features=[8]", "network.decoder.hidden_features=[8]",
    "callbacks.likelihood.n=40", "callbacks.likelihood.num_samples=4",
    "callbacks.likelihood.split=validation",
)  # fmt: skip


def test_a_vae_is_measured_as_one_refitted_and_sampled(
    flexgen: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = flexgen("train", "model=vae", "data=digits_static", *TINY)
    assert {kind.name for kind in (run / "images").iterdir()} == {
        "samples", "reconstructions", "aggregate_posterior",
    }  # fmt: skip
    assert "Aggregate posterior" in (run / "report.html").read_text()
    capsys.readouterr()
    child = flexgen(
        "refit", f"run={run}", "prior=realnvp", "prior.steps=20", "prior.hidden_features=[8]",
        "more=2", "refit.n=300", "control=true", run_dir="child",
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "NLL ↓" in told
    assert "before" in told
    assert "control" in told
    assert "held-out log p(x), by the codes" in told
    values = json.loads((child / "metrics.json").read_text())["values"]
    better = values["refit/gain"] > 0
    assert values["refit/kept"] == values["prior/stage"] == float(better)
    flexgen("sample", f"run={run}", "prior=gaussian", "n=4", "n_fit=300")
    assert list((run / "samples").glob("*_prior=gaussian_n_fit=300.png"))


@pytest.mark.usefixtures("flexgen")
def test_a_grid_in_an_experiment_ends_with_its_table_and_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As it is typed, without -m.
    words = ["experiment=led/digits", *TINY, "posterior=diagonal", "hydra.sweep.dir=sweep"]
    main(["train", *words])
    cells = sorted(Path("sweep").glob("*/metrics.json"))
    assert len(cells) == 2
    out = capsys.readouterr().out
    assert "NLL ↓" in out
    assert out.count("sweep/report.html") == 1
    page = Path("sweep/report.html").read_text()
    assert "PAG of posterior" in page
    assert page.count('alt="aggregate posterior of') == 2
