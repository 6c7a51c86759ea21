"""What an operator does to a run: another locale, a closed terminal, a full or moved folder."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flexgen.training import find_checkpoints, latest_checkpoint
from tests.conftest import SMALL
from tests.forked import Forked, fork

if sys.platform != "linux":
    pytest.skip("limits, locales and signals as Linux has them", allow_module_level=True)

BARE = (
    *[word for word in SMALL if not word.startswith(("callbacks.", "steps"))],
    "callbacks=[checkpoint]", "callbacks.checkpoint.every=50", "report=false",
)  # fmt: skip


def start(folder: Path, *words: str, **how: Any) -> Forked:
    """A command in a process of its own."""
    return fork(*words, cwd=folder, env={"FLEXGEN_CACHE": str(folder / "cache")}, **how)


def start_anew(folder: Path, *words: str, **how: Any) -> subprocess.Popen[str]:
    """A command in a process that imports all, under the environment or limits that are tested."""
    env = os.environ | {"FLEXGEN_CACHE": str(folder / "cache"), **how.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "flexgen", *words], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **how,
    )  # fmt: skip


def ended(process: Forked | subprocess.Popen[str]) -> tuple[int | None, list[str]]:
    """Its status, and the lines that it wrote on standard error."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err.strip().splitlines()


def wait_for(found: Callable[[], Any], process: Forked) -> None:
    deadline = time.monotonic() + 100
    while not found() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not found():
        process.kill()
    assert found(), process.communicate()


@pytest.mark.slow
def test_a_run_is_the_same_in_every_locale(tmp_path: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # POSIX is its other name
    run = tmp_path / "run"
    told = "cannot read `name=für`"
    assert told in ended(start_anew(tmp_path, "train", "name=für", env=env))[1][-1]
    words = ["train", *BARE, "steps=5", 'name="für"', f"paths.run_dir={run}"]
    assert ended(start_anew(tmp_path, *words, env=env))[0] == 0
    run = run.rename(tmp_path / "für")
    assert "name: für" in (run / "config.yaml").read_text(encoding="utf-8")
    resumed = ["resume", f"run={run}", "steps=10"]
    assert ended(start_anew(tmp_path, *resumed, env=env))[0] == 0
    assert ended(start(tmp_path, "resume", f"run={run}", "steps=12"))[0] == 0
    assert latest_checkpoint(run).name == "step=00000012.ckpt"


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", f"rmdir {gone}; exec {sys.executable} -m flexgen train data=ring8"],
        cwd=gone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "flexgen train: the working directory was removed; cd to one that is there"
    ]


@pytest.mark.slow
def test_too_little_memory_is_told(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (700 * 2**20, 700 * 2**20))

    status, lines = ended(start_anew(tmp_path, "train", *BARE, "steps=5", preexec_fn=limit))
    assert status == 1
    assert "not enough memory" in lines[-1]
    assert "ulimit -v" in lines[-1]


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, "train", *BARE, "steps=1000000", f"paths.run_dir={run}")
    wait_for(lambda: find_checkpoints(run), process)
    process.send_signal(signal.SIGHUP)
    status, lines = ended(process)
    assert status == 130
    assert f"flexgen resume run={run}" in lines[-1]
    stopped = int(latest_checkpoint(run).stem.removeprefix("step="))
    assert ended(start(tmp_path, "resume", f"run={run}", f"steps={stopped + 5}"))[0] == 0


@pytest.mark.slow
def test_a_comparison_that_is_terminated_keeps_what_it_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ended(start(tmp_path, "train", *BARE, "steps=2", f"paths.run_dir={run}"))[0] == 0
    many = ",".join(["own"] * 2000)
    process = start(tmp_path, "compare", f"run={run}", "n=50", "n_fit=50", f"priors={many}")
    wait_for(lambda: "[1/2000]" in process.err, process)
    process.send_signal(signal.SIGTERM)
    status, lines = ended(process)
    assert status == 1
    assert "interrupted" in lines[-1]
    assert "own (Normal)" in (run / "comparison" / "compare.csv").read_text()


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_does_not_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = ["train", *BARE, "steps=1000000", f"paths.run_dir={run}"]
    process = start(tmp_path, *words, prepare=ignore)
    wait_for(lambda: find_checkpoints(run), process)
    process.send_signal(signal.SIGHUP)
    before = latest_checkpoint(run)
    wait_for(lambda: find_checkpoints(run)[-1:] > [before], process)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130


@pytest.mark.slow
@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_run_whose_folder_is_taken_away_stops(tmp_path: Path, how: str) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    process = start(tmp_path, "train", *BARE, "steps=1000000", f"paths.run_dir={run}")
    wait_for(lambda: find_checkpoints(run), process)
    run.rename(moved)
    if how == "removed":
        shutil.rmtree(moved)
    status, lines = ended(process)
    assert status == 1
    assert f"{run} was moved or removed while it was worked in" in lines[-1]
    assert not run.exists()
    if how == "renamed":
        last = int(latest_checkpoint(moved).stem.removeprefix("step="))
        assert ended(start(tmp_path, "resume", f"run={moved}", f"steps={last + 5}"))[0] == 0


@pytest.mark.slow
def test_a_full_folder_for_temporary_files_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "no_folder").write_text("")
    env = {"TMPDIR": str(tmp_path / "no_folder")}
    words = ["train", *SMALL, "steps=5", "report=false", f"paths.run_dir={tmp_path / 'run'}"]
    status, lines = ended(start_anew(tmp_path, *words, env=env))
    assert status == 0, lines


def test_equal_runs_have_equal_files_of_codes(flexgen: Callable[..., Path]) -> None:
    words = ("reverse", "n=32", "seed=3")
    files = []
    run = flexgen("train", *SMALL, "steps=5", "report=false")
    for _ in range(3):
        flexgen(words[0], f"run={run}", *words[1:])
        (path,) = (run / "codes").glob("*.safetensors")
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]
    assert len(load_file(path)["z"]) == 32
