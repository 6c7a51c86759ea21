"""`flexgen search`: a search that was interrupted ends as one that never was."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexgen.models import Adversarial
from flexgen.training.csv_logger import read_metrics
from tests.integration.test_sweeps import TINY

pytest.importorskip("optuna")
from flexgen.cli.search import _distribution, _parsed

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


def test_an_interrupted_search_ends_as_one_that_never_was(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flexgen("search", *WORDS, "trials=4", "hydra.run.dir=undisturbed")
    said = capsys.readouterr().out.splitlines()
    whole = trials("undisturbed")
    assert {state for _, state in whole.values()} == {"finished", "failed"}
    values = {}
    for number, (_, state) in whole.items():
        if state == "finished":
            _, rows = read_metrics(Path("undisturbed") / number / "metrics.csv")
            values[number] = next(r["loss/critic"] for r in rows[::-1] if "loss/critic" in r)
    best = min(values, key=values.__getitem__)
    assert said[-2] == f"loss/critic: {values[best]:.6g}"
    assert all(word in said[-1] for word in whole[best][0] if word.startswith("model."))

    taken = Adversarial._critic_step

    def killed(self: Adversarial, *args: Any) -> None:
        taken(self, *args)
        if Path("killed/1").exists() and self.counters.generator_steps == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Adversarial, "_critic_step", killed)
        with pytest.raises(SystemExit):
            flexgen("search", *WORDS, "trials=3", "hydra.run.dir=killed")
    assert "stopped" in {state for _, state in trials("killed").values()}
    assert "goes on with the same command" in capsys.readouterr().err
    flexgen("search", *WORDS, "trials=4", "hydra.run.dir=killed")
    assert trials("killed") == whole
    assert capsys.readouterr().out.splitlines()[-3:] == said[-3:]

    with pytest.raises(SystemExit, match="holds another search"):
        flexgen("search", *WORDS, "seed=5", "hydra.run.dir=killed")


@pytest.mark.slow
def test_two_processes_share_the_trials(flexgen: Run) -> None:
    words = [w for w in WORDS if not w.startswith("model.critic_steps")]
    command = [
        sys.executable,
        "-m",
        "flexgen",
        "search",
        *words,
        "trials=5",
        "hydra.run.dir=shared",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(process.communicate(timeout=250)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert [state for _, state in trials("shared").values()] == ["finished"] * 5
    assert "best of 5 trials, 0 of them failed" in said


def test_a_trial_of_several_processes_is_a_flexgen_of_its_own(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = []

    def run_apart(run_dir: Path, overrides: list[str]) -> None:
        apart.append((run_dir.name, overrides[-1]))
        axes = "batches,critic_steps,generator_steps,images_seen"
        (run_dir / "metrics.csv").write_text(f"{axes},loss/critic\n1,1,1,32,0.5\n")

    monkeypatch.setattr("flexgen.cli.train.run_apart", run_apart)
    words = (*TINY, "trainer=ddp_cpu", "metric=loss/critic", "trials=1", "hydra.run.dir=apart")
    flexgen("search", *words, "model.critic_steps=1,2")
    assert apart in ([("0", f"model.critic_steps={n}")] for n in (1, 2))


def test_without_a_space_or_optuna(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="what is to be searched"):
        flexgen("search", *TINY)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"pip install 'flexgen\[search\]'"):
        flexgen("search", *TINY, "model.critic_steps=1,2", "hydra.run.dir=other")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=tag(log,interval(1e-4,1e-2))", "FloatDistribution(high=0.01, log=True, low=0.0001"),
        ("a=int(interval(2,8))", "IntDistribution(high=8, log=False, low=2"),
        ("a=range(1,8,2)", "IntDistribution(high=7, log=False, low=1, step=2"),
        ("a=range(0,1,0.25)", "FloatDistribution(high=0.75, log=False, low=0.0, step=0.25"),
        ("prior=normal,uniform", "CategoricalDistribution(choices=('normal', 'uniform')"),
    ],
)
def test_the_space_is_in_hydras_own_words(word: str, expected: str) -> None:
    override = _parsed(word)
    assert override is not None
    assert str(_distribution(override)).startswith(expected)
