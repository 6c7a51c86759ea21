"""`flexgen search`: a search that was interrupted ends as one that never was."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from flexgen.metrics_table import read_metrics
from flexgen.objectives import WGANGP
from flexgen.report import RunFiles
from tests.forked import fork
from tests.integration.test_sweeps import TINY

pytest.importorskip("optuna")

Run = Callable[..., Path]
WORDS = (
    *TINY, "steps=14", "search_seed=3", "metric=loss/critic", "callbacks.checkpoint.every=7",
    "model.generator_optimizer.lr=tag(log,interval(1e-4,1e-2))", "model.critic_steps=1,2,0",
)  # fmt: skip


def trials(folder: str) -> dict[str, tuple[list[str], str]]:
    """Overrides and state of each trial by its number."""
    found = {}
    for path in sorted(Path(folder).glob("*/cell.json")):
        about = json.loads(path.read_text())
        found[path.parent.name] = (about["overrides"], about["state"])
    return found


def pretend(run_dir: Path) -> None:
    axes = "batches,critic_steps,generator_steps,images_seen"
    (run_dir / "metrics.csv").write_text(f"{axes},loss/critic\n1,1,1,32,0.5\n")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial has a value at once."""
    monkeypatch.setattr(
        "flexgen.runs.search.train_cell",
        lambda config, overrides, number: pretend(Path(config["paths"]["run_dir"])),
    )


def test_an_interrupted_search_ends_as_one_that_never_was(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flexgen("search", *WORDS, "trials=4", "hydra.run.dir=undisturbed")
    told = capsys.readouterr()
    said = told.out.splitlines()
    assert "trial 1 of 4\n" in told.err
    assert re.search(r"^trial 4 of 4, \d+ s left$", told.err, re.MULTILINE)
    whole = trials("undisturbed")
    assert {state for _, state in whole.values()} == {"finished", "failed"}
    values = {}
    for number, (_, state) in whole.items():
        if state == "finished":
            rows = read_metrics(Path("undisturbed") / number / "metrics.csv").rows
            values[number] = next(r["loss/critic"] for r in rows[::-1] if "loss/critic" in r)
    best = min(values, key=values.__getitem__)
    assert said[-2] == f"loss/critic: {values[best]:.6g}"
    assert all(word in said[-1] for word in whole[best][0] if word.startswith("model."))

    generator, calls = WGANGP.generator, itertools.count(1)

    def killed(self: WGANGP, logits: Tensor) -> Tensor:
        if Path("killed/1").exists() and next(calls) == 9:
            raise KeyboardInterrupt
        return generator(self, logits)

    with monkeypatch.context() as patched:
        patched.setattr(WGANGP, "generator", killed)
        with pytest.raises(SystemExit):
            flexgen("search", *WORDS, "trials=3", "hydra.run.dir=killed")
    assert "stopped" in {state for _, state in trials("killed").values()}
    assert "goes on with the same command" in capsys.readouterr().err
    flexgen("search", *WORDS, "trials=4", "hydra.run.dir=killed")
    assert trials("killed") == whole
    assert capsys.readouterr().out.splitlines()[-3:] == said[-3:]

    with pytest.raises(SystemExit, match="holds another search"):
        flexgen("search", *WORDS, "seed=5", "hydra.run.dir=killed")


def test_pruned_trials_are_told_and_a_killed_search_prunes_the_same(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optuna.study import Study

    words = (*WORDS[:-1], "pruner=successive_halving", "trials=4", "model.log_every=3")
    flexgen("search", *words, "hydra.run.dir=undisturbed")
    whole = trials("undisturbed")
    pruned = [number for number, (_, state) in whole.items() if state == "pruned"]
    assert 0 < len(pruned) < 4
    assert f"0 of them failed, {len(pruned)} pruned: number" in capsys.readouterr().out
    status = RunFiles.load(f"undisturbed/{pruned[0]}").status
    assert status.startswith("pruned at generator step ")
    assert not any("pruning" in word for overrides, _ in whole.values() for word in overrides)

    tell = Study.tell

    def killed(self: Study, number: int, *args: Any, **kwargs: Any) -> Any:
        if number == int(pruned[0]):
            (Path("killed") / pruned[0] / "cell.json").unlink()  # nor did its cell say so
            raise KeyboardInterrupt
        return tell(self, number, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", killed)
        with pytest.raises(SystemExit):
            flexgen("search", *words, "hydra.run.dir=killed")
    (Path("killed") / pruned[0] / "config.yaml").unlink()
    flexgen("search", *words, "hydra.run.dir=killed")
    assert list(trials("killed").values()) == list(whole.values())


@pytest.mark.usefixtures("untrained")
def test_a_search_killed_while_it_drew_draws_that_trial_again(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optuna.samplers import TPESampler

    flexgen("search", *WORDS, "trials=3", "hydra.run.dir=undisturbed")
    draw, calls = TPESampler.sample_independent, itertools.count(1)

    def killed(self: TPESampler, *args: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return draw(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(TPESampler, "sample_independent", killed)
        with pytest.raises(SystemExit):
            flexgen("search", *WORDS, "trials=3", "hydra.run.dir=killed")
    capsys.readouterr()
    flexgen("search", *WORDS, "trials=3", "hydra.run.dir=killed")
    assert list(trials("killed").values()) == list(trials("undisturbed").values())
    assert "best of 3 trials, 0 of them failed" in capsys.readouterr().out


def test_a_trial_with_the_overrides_of_one_at_another_process_gets_its_value(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "search", *TINY, "model.critic_steps=choice(1)", "metric=loss/critic", "trials=2",
        "hydra.run.dir=shared",
    )  # fmt: skip
    trained, others = [], []

    def train(config: dict[str, Any], overrides: list[str], number: int) -> None:
        trained.append(number)
        # Its trials are this one and one alike: their cell is locked while this one trains.
        # A fork would be inside of this search, and hold its lock too.
        command = [sys.executable, "-m", "flexgen", *words]
        others.append(subprocess.run(command, capture_output=True, text=True, check=True))
        pretend(Path(config["paths"]["run_dir"]))

    monkeypatch.setattr("flexgen.runs.search.train_cell", train)
    flexgen(*words)
    assert trained == [0]
    assert "another process is at it" in others[0].stderr
    assert "some trials are at other processes" in others[0].stdout
    assert "best of 2 trials, 0 of them failed" in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
def test_a_mistyped_metric_costs_nothing(flexgen: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("search", *TINY, "model.critic_steps=1,2", "trials=1", "hydra.run.dir=typo")
    with pytest.raises(SystemExit, match=r"no metric 'los'; there are .* another `metric` and"):
        flexgen(*words, "metric=los")
    assert "same command" not in capsys.readouterr().err
    flexgen(*words, "metric=loss/critic")
    assert "best of 1 trials, 0 of them failed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds another search"):
        flexgen(*words, "metric=los")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trials=0", "`trials` must be a whole number of at least 1, got 0"),
        ("last=1.5", "`last` must be a whole number of at least 1, got 1.5"),
        ("pruner=median2", "`pruner` must be one of null, median, percentile, successive_halving"),
        ("search_seed=-1", "`search_seed` must be a whole number of at least 0, got -1"),
        ("-m", "a search is no sweep; leave out -m"),
    ],
)
def test_what_is_no_search_is_told_before_anything_is_made(
    flexgen: Run, word: str, told: str
) -> None:
    with pytest.raises(SystemExit, match=told):
        flexgen("search", *TINY, "model.critic_steps=1,2", "hydra.run.dir=none", word)
    assert not list(Path().glob("none/*"))


@pytest.mark.slow
def test_two_processes_share_the_trials(flexgen: Run) -> None:
    words = [w for w in WORDS if not w.startswith("model.critic_steps")]
    both = [fork("search", *words, "trials=5", "hydra.run.dir=shared") for _ in range(2)]
    said = "".join(process.communicate(timeout=250)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], said
    assert [state for _, state in trials("shared").values()] == ["finished"] * 5
    assert "best of 5 trials, 0 of them failed" in said


def test_a_trial_of_several_processes_is_a_flexgen_of_its_own(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = []

    def run_apart(run_dir: Path, overrides: list[str]) -> None:
        apart.append((run_dir.name, overrides[-1]))
        pretend(run_dir)

    monkeypatch.setattr("flexgen.runs.cells.run_apart", run_apart)
    words = (*TINY, "trainer=ddp_cpu", "metric=loss/critic", "trials=1", "hydra.run.dir=apart")
    flexgen("search", *words, "model.critic_steps=1,2")
    assert apart in ([("0", f"model.critic_steps={n}")] for n in (1, 2))


def test_without_a_space_or_optuna(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="what is to be searched"):
        flexgen("search", *TINY)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="pip install optuna"):
        flexgen("search", *TINY, "model.critic_steps=1,2", "hydra.run.dir=other")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "model.generator_optimizer.lr=tag(log,interval(1e-4,1e-2))",
            "FloatDistribution(high=0.01, log=True, low=0.0001",
        ),
        ("model.critic_steps=int(interval(2,8))", "IntDistribution(high=8, log=False, low=2"),
        ("model.critic_steps=range(1,8,2)", "IntDistribution(high=7, log=False, low=1, step=2"),
        (
            "model.objective.penalty_weight=range(0,1,0.25)",
            "FloatDistribution(high=0.75, log=False, low=0.0, step=0.25",
        ),
        ("prior=normal,uniform", "CategoricalDistribution(choices=('normal', 'uniform')"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_the_space_is_in_hydras_own_words(flexgen: Run, word: str, expected: str) -> None:
    import optuna

    flexgen("search", *TINY, "metric=loss/critic", "trials=1", "hydra.run.dir=one", word)
    journal = optuna.storages.journal.JournalFileBackend("one/search.journal")
    storage = optuna.storages.JournalStorage(journal)
    (trial,) = optuna.load_study(study_name="search", storage=storage).trials
    assert str(trial.distributions[word.partition("=")[0]]).startswith(expected)
