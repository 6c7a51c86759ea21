"""What a process that was killed leaves behind, and two at once in one run directory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from flexgen.files import in_turn, locked
from flexgen.runs.folder import alone
from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]
SHORT = (*SMALL, "steps=10", "report=false")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("script", "kills", "told"),
    [("faults.py", 3, "the same bits"), ("command_faults.py", 3, "the same files")],
)
def test_what_is_killed_ends_as_if_left_alone(script: str, kills: int, told: str) -> None:
    words = [sys.executable, f"benchmarks/{script}", f"--kills={kills}", "--seed=3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} of {kills} ended with {told}" in done.stdout


def test_two_processes_in_one_run_directory_are_refused(
    flexgen: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    run = flexgen("train", *SHORT)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with alone(run), pytest.raises(SystemExit, match="another process is at work in"):
        flexgen("resume", f"run={run}", "steps=20")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    flexgen("resume", f"run={run}", "steps=20")


def test_a_lock_that_was_removed_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *args: (tmp_path / ".lock").unlink())
    with pytest.raises(ValueError, match="busy"), locked(tmp_path / ".lock", "busy"):
        pass


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
@pytest.mark.parametrize("hold", [lambda lock: locked(lock, "busy"), in_turn])
def test_a_link_in_place_of_a_lock_is_not_followed(
    tmp_path: Path, hold: Callable[[Path], AbstractContextManager[None]]
) -> None:
    target, lock = tmp_path / "target", tmp_path / ".lock"
    target.write_text("whole")
    lock.symlink_to(target)
    with pytest.raises(OSError, match=r"\.lock"), hold(lock):
        pass
    assert target.read_text() == "whole"


def test_what_a_lock_file_holds_is_not_cut_off(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("not ours")
    with locked(lock, "busy"):
        assert lock.read_text() == "not ours"


def test_half_written_files_of_a_killed_process_are_cleared(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *SHORT)
    half = run / "checkpoints" / ".step=00000010.ckpt.999.part"
    half.write_bytes(b"half")
    flexgen("resume", f"run={run}", "steps=20")
    assert not half.exists()


def test_a_start_that_was_killed_before_it_was_a_run_is_started_again(
    flexgen: Callable[..., Path],
) -> None:
    whole = flexgen("train", *SHORT, run_dir="whole")
    started = whole.parent / "started"
    started.mkdir()
    shutil.copy(whole / "provenance.json", started)
    flexgen("train", *SHORT, run_dir="started")
    assert (started / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_run_that_was_moved_goes_on(flexgen: Callable[..., Path]) -> None:
    run = flexgen("train", *SHORT)
    moved = run.parent / "elsewhere" / "moved"
    moved.parent.mkdir()
    run.rename(moved)
    flexgen("resume", f"run={moved}", "steps=20")
    assert not run.exists()
    assert (moved / "checkpoints" / "step=00000020.ckpt").is_file()
