"""One grammar for every command: keys as `key=value`, folders as they are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexgen.cli import explain, main
from flexgen.training import find_checkpoints
from tests.integration.test_sweeps import TINY

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep."""
    folder = tmp_path_factory.mktemp("grammar") / "sweep"
    for i, model in enumerate(("gan", "wgan")):
        main(["train", *TINY, "steps=14", f"model={model}", f"paths.run_dir={folder / str(i)}"])
    return folder


@pytest.fixture
def runs(saved: Path, flexgen: Run) -> str:
    """A copy of them in the working directory."""
    shutil.copytree(saved, "sweep")
    return "sweep"


def refused(*words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words])
    told = str(stopped.value.code)
    assert "\n" not in told
    return told


def columns(folder: str) -> list[str]:
    """The metrics in the CSV of a table."""
    header = (Path(folder) / "table.csv").read_text().partition("\n")[0].split(",")
    return [name.removesuffix(" mean") for name in header if name.endswith(" mean")]


def test_a_table_takes_keys_as_every_command(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["table", runs, "metrics=[loss/critic,loss/gen*]", "last=2", "out=tables of=runs"])
    said = capsys.readouterr()
    assert "the mean of its last 2 evaluations" in " ".join(said.out.split())
    assert said.err == ""
    assert columns("tables of=runs") == ["loss/critic", "loss/generator"]
    main(["table", runs, "metrics=loss/critic"])
    assert columns(runs) == ["loss/critic"]


@pytest.mark.parametrize("as_key", [False, True])
def test_folders_are_words_of_their_own_or_a_list(runs: str, as_key: bool) -> None:
    words = [f"runs=[{runs}/0, {runs}/1]"] if as_key else [f"{runs}/0", f"{runs}/1"]
    main(["table", *words, "metrics=[loss/critic]", "out=both"])
    rows = (Path("both") / "table.csv").read_text().splitlines()[1:]
    assert [("wgan" in row.split(","), "gan" in row.split(",")) for row in rows] == [
        (False, True), (True, False),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["model=gan,seed=1", "a folder", "[x]", "last=3/seed=0", "+a"])
def test_a_folder_may_have_any_name(runs: str, name: str) -> None:
    shutil.copytree(runs, name)
    main(["table", name, "metrics=[loss/critic]"])
    main(["report", name])
    assert columns(name) == ["loss/critic"]
    assert (Path(name) / "0" / "report.html").is_file()


def test_a_folder_named_as_a_key_is_given_by_its_path(runs: str) -> None:
    shutil.copytree(runs, "last=3")
    assert "which runs?" in refused("table", "last=3")
    main(["table", "./last=3", "metrics=[loss/critic]"])
    assert columns("last=3") == ["loss/critic"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["table"], "which runs? give a folder, as in `flexgen table multirun/…`"),
        (["table", "last=2"], "which runs?"),
        (["report"], "which runs? give a folder, as in `flexgen report multirun/…`"),
        (["table", "sweep", "lsat=2"], "unknown key `lsat`; did you mean `last`?"),
        (["table", "sweep", "metrcs=[a]"], "unknown key `metrcs`; did you mean `metrics`?"),
        (["report", "sweep", "last=2"], "unknown key `last`"),
        (["dashboard", "grup_by=prior"], "unknown key `grup_by`; did you mean `group_by`?"),
        (["table", "sweep", "last=0"], "`last` must be a whole number of at least 1, got 0"),
        (["table", "sweep", "last=x"], "`last` must be a whole number of at least 1, got 'x'"),
        (["table", "sweep", "comparison=tru"], "`comparison` must be true or false, got 'tru'"),
        (["table", "sweep", "-m"], "makes no grid; leave out -m"),
        (["report", "elsewhere"], "elsewhere: does not exist"),
        (["report", "else/where=3"], "else/where=3: does not exist"),
    ],
)
def test_a_mistake_gets_one_line(runs: str, words: list[str], told: str) -> None:
    assert told in refused(*words)


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--metrics", "loss/critic", "loss/generator"], "metrics=[loss/critic,loss/generator]"),
        (["--metrics=loss/critic"], "metrics=[loss/critic]"),
        (["--last", "2"], "last=2"),
        (["--last=2"], "last=2"),
        (["--out", "a=b"], "out=a=b"),
        (["--comparison"], "comparison=true"),
    ],
)
def test_flags_of_the_version_before_are_told_what_to_say(
    runs: str, words: list[str], instead: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    composed = []
    monkeypatch.setattr(
        "flexgen.report.write_table", lambda paths, **keys: composed.append((paths, keys))
    )
    main(["table", runs, *words])
    assert f"is deprecated, say {instead}" in capsys.readouterr().err
    main(["table", runs, instead])
    assert composed[0] == composed[1]
    assert composed[0][0] == [runs]


@pytest.mark.parametrize("command", ["table", "report", "dashboard"])
def test_help_lists_the_keys_that_the_yaml_has(
    flexgen: Run, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([command, "--help"])
    told = capsys.readouterr().out
    assert told.startswith(f"flexgen {command}")
    assert explain(command) in told
    assert "Hydra" not in told


def test_flags_may_stand_anywhere(flexgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML of one's own is found by the further processes of a sweep's cells too."""
    words: list[str] = []

    class Recorded:
        def __init__(self, typed: list[str], **kwargs: Any) -> None:
            words.extend(typed)

        def wait(self) -> int:
            return 0

    mine = Path("my conf") / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\nsteps: 3\n")
    flags = ("--config-dir", "my conf")
    run = flexgen("train", "experiment=mine", *flags, *(w for w in TINY if w != "steps=30"))
    assert [path.stem for path in find_checkpoints(run)] == ["step=00000003"]
    monkeypatch.setattr("flexgen.runs.cells.subprocess", SimpleNamespace(Popen=Recorded))
    flexgen("train", "experiment=mine", *flags, "trainer=ddp_cpu", "-m", "hydra.sweep.dir=sweep")
    assert f"--config-dir={Path('my conf').resolve()}" in words


def test_data_that_lie_elsewhere_change_no_other_word(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A data folder called `posterior` is not the word in `refit.source: posterior`."""
    words = ("callbacks=[refit,checkpoint]", "callbacks.refit.at=[2]", "callbacks.refit.n=64",
             "callbacks.refit.n_held_out=32", "callbacks.refit.source=posterior")  # fmt: skip
    refit = ("callbacks.refit.prior.steps=2", "callbacks.refit.keep=always",
             "callbacks.refit.options={method: adam, steps: 2}")  # fmt: skip
    tiny = [word for word in TINY if not word.startswith("callbacks=")]
    run = flexgen("train", *tiny, *words, *refit, "steps=4", "paths.data_dir=posterior")
    monkeypatch.setenv("FLEXGEN_DATA", str(tmp_path / "elsewhere"))
    flexgen("resume", f"run={run}", "steps=6")
