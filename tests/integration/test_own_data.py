"""Own data from a command line: named by path, known again later, refused without a trace."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from flexgen.cli import main
from flexgen.report import RunFiles
from flexgen.report.page import command
from flexgen.run_notes import on_run
from tests.conftest import SMALL

TINY = (
    *(word for word in SMALL if not word.startswith(("data", "steps", "callbacks.checkpoint"))),
    "data.batch_size=8",
    "network=mlp",
    "callbacks=[checkpoint]",
    "report=false",
    "steps=2",
)
TINY = tuple(word for word in TINY if not word.startswith("callbacks."))
NAME = "my pics, a=b's"


def draw(folder: Path, numbers: range) -> None:
    for i in numbers:
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        x = np.random.default_rng(i).integers(0, 255, (6, 8)).astype(np.uint8)
        Image.fromarray(x).save(folder / "ab"[i % 2] / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and the images that it was trained on, named as nobody should."""
    where = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setenv("FLEXGEN_CACHE", str(where / "cache"))
        patch.delenv("FLEXGEN_DATA", raising=False)
        draw(where / NAME, range(40))
        main(
            ["train", "data=folder", f"path={NAME}", "conditional=true", *TINY, "paths.run_dir=r 1"]
        )
    return where


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be changed; the working directory is another."""
    shutil.copytree(trained / "r 1", tmp_path / "r 1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("FLEXGEN_CACHE", str(trained / "cache"))
    monkeypatch.delenv("FLEXGEN_DATA", raising=False)
    return tmp_path


def refusal(*words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words])
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def test_shape_classes_and_an_absolute_path_are_saved(trained: Path) -> None:
    data = yaml.safe_load((trained / "r 1" / "config.yaml").read_text())["data"]
    assert data["shape"] == [1, 6, 8]
    assert data["root"] == str(trained / NAME)
    about = json.loads((trained / "r 1" / "provenance.json").read_text())["data"]
    assert about["train"] + about["validation"] + about["test"] == 40


def test_follow_up_commands_work_as_pasted(place: Path) -> None:
    pasted = shlex.split(on_run("sample", place / "r 1", "n=2"))
    main(pasted[1:])
    again = shlex.split(command(RunFiles.load(place / "r 1")))
    main([*again[1:], f"paths.run_dir={place / 'again'}"])
    assert (place / "again" / "provenance.json").is_file()


@pytest.mark.parametrize("name", ["sample", "evaluate", "resume", "reverse"])
def test_commands_on_a_run_refuse_data_that_changed(trained: Path, place: Path, name: str) -> None:
    more = ["steps=4"] if name == "resume" else ["n=2"] if name in ("sample", "reverse") else []
    new = trained / NAME / "a" / "new.png"
    shutil.copy(trained / NAME / "a" / "0.png", new)
    try:
        told = refusal(name, f"run={place / 'r 1'}", *more)
        assert "have changed" in told or "are not those" in told
        if name == "sample":
            main([name, f"run={place / 'r 1'}", *more, "same_data=false"])
    finally:
        new.unlink()


def test_an_image_rewritten_to_the_same_size_is_a_change(place: Path) -> None:
    folder = place / "set"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.full((6, 8), i, np.uint8)).save(folder / f"{i}.bmp")
    words = ("train", "data=folder", f"path={folder}", *TINY, "data.batch_size=4")
    main([*words, f"paths.run_dir={place / 'r 2'}"])
    Image.fromarray(np.full((6, 8), 99, np.uint8)).save(folder / "7.bmp")
    assert "as many, but others" in refusal("sample", f"run={place / 'r 2'}", "n=2")
    main(["resume", f"run={place / 'r 2'}", "steps=3", "same_data=false"])
    (folder / "gone.png").symlink_to("nowhere.png")
    told = refusal(*words, f"paths.run_dir={place / 'r 3'}")
    assert "cannot read 1 of 21 images" in told
    assert "data.unusable=leave_out" in told


def test_data_that_nobody_trained_on_here_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXGEN_CACHE", str(place / "new"))
    told = refusal("sample", f"run={place / 'r 1'}", "n=2")
    assert "no run was trained on them here" in told
    root = yaml.safe_load((place / "r 1" / "config.yaml").read_text())["data"]["root"]
    main(["sample", f"run={place / 'r 1'}", "n=2", f"path={root}"])


@pytest.mark.parametrize("kind", ["array", "table"])
def test_arrays_and_tables_train(flexgen: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c", comments="")
    path = {"array": "x.npy", "table": "x.csv"}[kind]
    run = flexgen("train", f"data={kind}", f"path={path}", *TINY)
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (data["shape"], data["range"]) == ([3], None)
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(SystemExit):
        flexgen("sample", f"run={run}", "n=2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["latnt_dim=3"], "did you mean `latent_dim`"),
        (["latent_dim=0"], "`latent_dim` must be"),
        (["data=folder"], r"which data\? give path=…"),
        (["path=bad"], "digits .* have no path.*data=folder"),
        (["data=folder", "path=no where"], r"no folder .*/no where; set path"),
        (["data=array", "path=x.txt"], "no file"),
        (["data=folder", "path=bad"], "cannot read 1 of 40 images"),
        (["data=folder", "path=bad", "paths.run_dir=mine/run"], "cannot read 1 of 40 images"),
        (["-m", "latnt_dim=3,4"], "did you mean `latent_dim`"),
    ],
)
def test_a_refused_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXGEN_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "bad", range(40))
    (tmp_path / "bad" / "a" / "0.png").write_text("no image")
    with pytest.raises(SystemExit, match=told):
        main(["train", *TINY, *words])
    assert {path for path in os.listdir() if path != "bad"} <= {"cache", "mine"}
    assert not any(path.is_dir() for path in (tmp_path / "mine").glob("*"))


def test_a_sweep_tells_once_what_is_done_to_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("pics"), range(20))
    Path("pics/a/notes.txt").touch()
    for folder, seeds in (("a", "0,1"), ("b", "2")):  # another sweep tells it again
        words = ["data=folder", "path=pics", *TINY, f"seed={seeds}", f"hydra.sweep.dir={folder}"]
        main(["train", "-m", *words])
        told = capsys.readouterr().err
        assert told.count("left out, not named as images: 1 (a/notes.txt)") == 1
        assert told.count("cell ") == len(seeds.split(","))
