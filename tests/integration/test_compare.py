"""`flexgen compare` on small runs: what it measures, what stays as it was, what fails."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from flexgen.analysis.comparison import default_priors
from flexgen.models import Latent
from flexgen.report.run_files import RunFiles
from flexgen.training import latest_checkpoint
from tests.conftest import REFIT, SMALL

Run = Callable[..., Path]
QUICK = ("n=60", "n_fit=100", "seeds=2")
EVERYWHERE = {"emd/samples", "precision", "recall", "density", "coverage", "pag/fit", "pag/samples"}


def read(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "compare.csv").open() as file:
        return {row["prior"]: row for row in csv.DictReader(file)}


def measured(row: dict[str, str]) -> set[str]:
    return {name.removesuffix(" mean") for name in row if name.endswith(" mean") and row[name]}


def test_a_toy_run_under_several_priors(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = flexgen("train", *SMALL, "report=false")
    before = latest_checkpoint(run).read_bytes()
    priors = "own,gaussian,masked(rate=0.5),masked(rate=0.5,prior@prior.base=uniform)"
    flexgen("compare", f"run={run}", *QUICK, f"priors={priors}")
    told = capsys.readouterr()
    assert "[4/4] masked(rate=0.5,prior@prior.base=uniform):" in told.err
    assert f"compare: {run}/comparison/" in told.out.replace("\n", "")
    for ending in ("txt", "csv", "tex", "png"):
        assert (run / "comparison" / f"compare.{ending}").stat().st_size > 0
    rows = read(run / "comparison")
    assert list(rows) == [
        "data (floor)", "own (Normal)", "gaussian", "masked(rate=0.5)",
        "masked(rate=0.5,prior@prior.base=uniform)",
    ]  # fmt: skip
    modes = {"modes/captured", "modes/high_quality", "modes/total_variation"}
    by_score = {"samples/acceptance", "samples/effective_sample_size"}
    assert measured(rows["data (floor)"]) == measured(rows["gaussian"]) == EVERYWHERE | modes
    assert measured(rows["own (Normal)"]) == EVERYWHERE | modes | {"pag/unit"}
    assert measured(rows["masked(rate=0.5)"]) == EVERYWHERE | modes | by_score
    # Without a base of its own a masked prior draws from the run's.
    emd = {label: row["emd/samples mean"] for label, row in rows.items()}
    assert len(set(emd.values())) == 5
    assert latest_checkpoint(run).read_bytes() == before
    sets = (run / "comparison" / "compare_sets.csv").read_text().splitlines()
    assert len(sets) == 1 + 5 * 2

    flexgen("compare", f"run={run}", *QUICK, "priors=[own, gaussian]", "out=again")
    for label, row in read(Path("again")).items():
        assert {name: rows[label][name] for name in row} == row


def test_images_are_compared_in_a_classifiers_features(flexgen: Run) -> None:
    run = flexgen(
        "train", "data=digits", "network.generator.hidden_features=[16]", "steps=3",
        "network.critic.hidden_features=[16]", "callbacks=[checkpoint]", "report=false",
    )  # fmt: skip
    flexgen("compare", f"run={run}", *QUICK, "priors=own")
    classes = {"fid", "kid", "inception", "classes/total_variation"}
    assert measured(read(run / "comparison")["own (Normal)"]) == EVERYWHERE | classes | {"pag/unit"}


def test_own_and_base_part_after_a_refit(flexgen: Run) -> None:
    words = (*REFIT, "callbacks.refit.source=reversal", "prior=masked", "report=false")
    run = flexgen("train", *SMALL, *words)
    flexgen("compare", f"run={run}", *QUICK, "priors=own,base")
    assert list(read(run / "comparison"))[1:] == ["own (Pushforward)", "base (Uniform)"]


def test_the_priors_that_are_compared_where_none_are_named(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = ["mixture", "kernel_density", "pushforward"]
    named: list[str] = []

    def quick(model: Latent) -> list[str]:
        named.extend(default_priors(model))
        return [name for name in named if name not in slow]

    monkeypatch.setattr("flexgen.analysis.comparison.default_priors", quick)
    run = flexgen("train", *SMALL, "report=false")
    flexgen("compare", f"run={run}", *QUICK)
    by_score = ["masked", "weighted", "rejection", "langevin"]
    assert named == ["own", "gaussian", *slow, *by_score]
    assert list(read(run / "comparison"))[1:] == ["own (Normal)", "gaussian", *by_score]


def test_a_prior_of_ones_own(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other_priors.py").write_text(
        "import torch\n"
        "class StudentT(torch.nn.Module):\n"
        "    def __init__(self, latent_dim, df=5.0):\n"
        "        super().__init__()\n"
        "        self.register_buffer('df', torch.full((latent_dim,), float(df)))\n"
        "    def forward(self):\n"
        "        student = torch.distributions.StudentT(self.df)\n"
        "        return torch.distributions.Independent(student, 1)\n"
    )
    monkeypatch.syspath_prepend(".")
    run = flexgen("train", *SMALL, "report=false")
    entry = "normal(_target_=other_priors.StudentT,~scale,+df=3)"
    flexgen("compare", f"run={run}", *QUICK, f"priors={entry}")
    assert measured(read(run / "comparison")[entry]) >= EVERYWHERE


def test_a_prior_that_fails_says_why_and_loses_nothing(flexgen: Run) -> None:
    run = flexgen("train", *SMALL, "report=false")
    with pytest.raises(SystemExit, match=r"1 of the priors failed.*num_components 900, got 100"):
        flexgen("compare", f"run={run}", *QUICK, "priors=mixture(num_components=900),own")
    rows = read(run / "comparison")
    assert "num_components 900, got 100" in rows["mixture(num_components=900)"]["failed"]
    assert measured(rows["own (Normal)"]) >= EVERYWHERE
    assert "Not measured: mixture" in (run / "comparison" / "compare.txt").read_text()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("priors=norml", "no prior called 'norml'; did you mean `prior=normal`"),
        ("priors=masked(ratee=0.5)", "unknown key `prior.ratee`; did you mean `rate`"),
        ("priors=masked(rate=0.5", "`priors` must be names with options in parentheses"),
        ("seeds=1", "`seeds` must be a whole number of at least 2, got 1"),
        ("n=1", "`n` must be a whole number of at least 2, got 1"),
        ("n=2", "`n` must be above the 2 dimensions of a code, got 2"),
        ("priors=masked(", "`priors` must be names with options in parentheses"),
        ("priors=masked(rate=0.5)(x)", "`priors` must be names with options in parentheses"),
        ("seedss=3", "did you mean `seeds`"),
        ("split=valid", "`split` must be validation or test, got 'valid'"),
        ("split=train", "`split` must be validation or test, got 'train'"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    flexgen: Run, trained: Path, word: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        flexgen("compare", f"run={trained}", word, "out=out")
    assert expected in str(stopped.value.code)
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flexgen.cli import main

    where = tmp_path_factory.mktemp("run") / "run"
    main(["train", *SMALL, "report=false", "steps=2", f"paths.run_dir={where}"])
    return where


def test_the_likelihood_of_held_out_data_under_each_prior_with_a_density(flexgen: Run) -> None:
    short = "callbacks.posterior_score.options.num_temperatures=5"
    words = ("callbacks=[samples,reversal,quality,posterior_score,checkpoint]", "report=false")
    run = flexgen("train", *SMALL, *words, short)
    priors = "own,gaussian,mixture(num_components=2),masked"
    flexgen("compare", f"run={run}", *QUICK, f"priors={priors}", "nll=true")
    rows = read(run / "comparison")
    levels = {label: row["nll/ais mean"] for label, row in rows.items()}
    assert levels.pop("data (floor)") == levels.pop("masked") == ""
    assert len({*map(float, levels.values())}) == len(levels) == 3


def test_the_likelihood_of_a_vae_is_by_its_posterior(flexgen: Run) -> None:
    run = flexgen(
        "train", "model=vae", "data=digits_static", "steps=20", "latent_dim=2", "report=false",
        "callbacks=[checkpoint,likelihood]", "callbacks.likelihood.split=validation",
    )  # fmt: skip
    flexgen("compare", f"run={run}", *QUICK, "priors=own,gaussian", "nll=true")
    rows = read(run / "comparison")
    own, fitted = (float(rows[label]["nll/samples mean"]) for label in ("own (Normal)", "gaussian"))
    assert own != fitted
    measured = RunFiles.load(run).final["nll/samples"]
    assert own == pytest.approx(measured, rel=0.05)
