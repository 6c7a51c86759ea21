"""Bad values are refused in one line that names them, before a run directory is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REFIT, SMALL
from tests.integration.test_errors import message

REVERSAL = "callbacks.reversal.options"


def refusal(flexgen: Callable[..., Path], command: str, *words: str, **options: Any) -> str:
    told = message(flexgen, command, *words, **options)
    assert "FLEXGEN_DEBUG" not in told, "an error that nobody foresaw"
    return told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=-1"], "`seed` must be a whole number of at least 0, got -1"),
        (["seed=abc"], "`seed` must be a whole number of at least 0, got 'abc'"),
        (["seed=1.5"], "`seed` must be a whole number"),
        (["seed=4294967296"], "`seed` must be below 2**32"),
        (["steps=abc"], "`steps` must be a whole number"),
        (["steps=1e6"], "`steps` must be a whole number"),
        (["threads=0"], "`threads` must be a whole number of at least 1"),
        (["threads=-1"], "`threads` must be a whole number of at least 1"),
        (["latent_dim=0"], "`latent_dim` must be"),
        (["latent_dim=2.5"], "`latent_dim` must be"),
        (["model.generator_optimizer.lr=-1"], "Invalid learning rate: -1"),
        (["model.gradient_clip=-1"], "`gradient_clip` must be positive"),
        (["model.accumulate=0"], "`accumulate` must be a whole number of at least 1"),
        (["model.log_every=0"], "`log_every` must be a whole number of at least 1"),
        (["network.generator.hidden_features=16"], "write it as [16]"),
        (["network.generator.hidden_features=[0]"], "must be a whole number of at least 1, got 0"),
        (["network.generator.activation=Nope"], "`activation` must name"),
        (["data.num_train=0"], "`num_train` must be a whole number of at least 1"),
        (["data.batch_size=1000000"], "at most the 640 training examples"),
        (["data.num_validation=0"], "`num_validation` must be a whole number of at least 1"),
        ([f"{REVERSAL}.method=newton"], "`method` must be one of"),
        ([f"{REVERSAL}.loss=l7"], "`loss` must be one of"),
        ([f"{REVERSAL}.steps=-1"], "`steps` must be a whole number of at least 0"),
        ([f"{REVERSAL}.lr=0"], "`lr` must be positive"),
        ([f"+{REVERSAL}.foo=1"], "unexpected keyword argument 'foo'"),
        (["callbacks.reversal.space=foo"], "`space` must be one of base, code"),
        (["callbacks.reversal.split=val"], "must be one of train, validation, test, got 'val'"),
        (["callbacks.reversal.n=0"], "`n` must be a whole number of at least 1"),
        (["callbacks.quality.draws=0"], "`draws` must be a whole number of at least 1"),
        (["callbacks.quality.split=val"], "must be one of train, validation, test, got 'val'"),
        (["callbacks.samples.n=-4"], "`n` must be a whole number of at least 1"),
        (
            ["callbacks.samples.draws=true"],
            "SampleGrid needs a likelihood p(x|z), which this model does not have; train model=vae",
        ),
        (["callbacks.checkpoint.keep=0"], "`keep` must be a whole number of at least 1"),
        (["callbacks.checkpoint.at=[-5]"], "`at` must hold generator steps"),
        (["callbacks=[likelihood]"], "unknown key `callbacks.reversal"),
        (["callbacks=[nope]"], "no callbacks called 'nope'; there are"),
        (["logger=nope"], "no logger called 'nope'"),
        (["trainer=tpu"], "no trainer called 'tpu'"),
        (["trainer.precision=12"], "Precision 12 is invalid"),
        (["trainer.devices=0"], "devices=0"),
        (["trainer.strategy=foo"], "invalid strategy name"),
        (["prior=mixture", "prior.num_components=0"], "`num_components` must be a whole number"),
        (["prior=masked", "prior.rate=2"], "`rate` must be in (0, 1], got 2"),
        (["prior=realnvp", "prior.mask=foo"], "`mask` must be alternating"),
        (
            ["prior=realnvp", "latent_dim=1"],
            "must be a whole number of at least 2, got 1; a coupling",
        ),
        (["prior=uniform", "prior.low=2", "prior.high=1"], "`high` must be above `low` 2"),
        (["prior=vamp"], "a VAE's posteriors"),
        ([*REFIT, "callbacks.refit.at=[]"], "`at` must name the generator steps"),
        ([*REFIT, "callbacks.refit.keep=maybe"], "`keep` must be closer"),
        ([*REFIT, "callbacks.refit.n=0"], "`n` must be a whole number of at least 1"),
        ([*REFIT, "callbacks.refit.n_held_out=0"], "`n_held_out` must be a whole number"),
        ([*REFIT, "callbacks.refit.source=foo"], "`source` must be one of"),
        (["model="], "no model called ''"),
        (["network=null"], "`network=null` names no network; there are"),
        (["~prior"], "refers to `prior`, which is not there"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_values_of_train(flexgen: Callable[..., Path], words: list[str], expected: str) -> None:
    assert expected in refusal(flexgen, "train", *SMALL, *words)
    assert not Path("run/config.yaml").exists()


def test_a_place_that_cannot_be_written(flexgen: Callable[..., Path]) -> None:
    told = refusal(flexgen, "train", *SMALL, run_dir="/proc/nope")
    assert "/proc/nope: No such file or directory; name another place" in told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flexgen.cli import main

    run = tmp_path_factory.mktemp("bad") / "run"
    main(["train", *SMALL, "steps=10", "report=false", f"paths.run_dir={run}"])
    return run


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("resume", ["checkpoint=nope"], "no checkpoint at nope"),
        ("resume", ["seed=abc", "steps=40"], "`seed` must be a whole number"),
        ("resume", ["steps=0"], "`steps` must be a whole number of at least 1"),
        ("evaluate", ["checkpoint=step=00000099.ckpt"], "no checkpoint at"),
        ("evaluate", ["callbacks.quality.n=-1"], "`n` must be a whole number of at least 1"),
        ("evaluate", ["callbacks.reversal.split=val"], "must be one of train, validation, test"),
        ("reverse", ["n=0"], "`n` must be a whole number of at least 1"),
        ("reverse", ["n=abc"], "`n` must be a whole number"),
        ("reverse", ["reverse.split=foo"], "must be one of train, validation, test"),
        ("reverse", ["reverse.options.steps=-1"], "`steps` must be a whole number of at least 0"),
        ("refit", ["prior=foo"], "no prior called 'foo'"),
        ("refit", ["prior=realnvp", "more=-1"], "`more` must be a whole number of at least 0"),
        ("refit", ["prior=vamp"], "a VAE's posteriors"),
        ("sample", ["n=0"], "`n` must be a whole number of at least 1"),
        ("sample", ["n=1.5"], "`n` must be a whole number"),
        ("sample", ["interpolate=cubic"], "`interpolate` must be"),
        ("sample", ["prior=foo"], "no prior called 'foo'"),
        ("sample", ["sample_seed=x"], "`sample_seed` must be a whole number"),
        ("compare", ["priors=foo"], "foo"),
        ("compare", ["priors='own,normal('"], "own,normal("),
        ("compare", ["priors=own", "n=1"], "`n` must be a whole number of at least 2"),
        ("compare", ["seeds=0"], "`seeds` must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_of_commands_on_a_run(
    flexgen: Callable[..., Path], trained: Path, command: str, words: list[str], expected: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert expected in refusal(flexgen, command, f"run={trained}", *words)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before, "touched"
