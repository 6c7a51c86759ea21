"""Files are whole or absent, one process writes at a time, and no link leads out of a run."""

import os
import socket
import sys
from pathlib import Path

import pytest

from flexgen.files import keep_open, keep_within, locked, open_file, write_atomically

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are POSIX's")


def write(path: Path, text: str = "new") -> None:
    write_atomically(path, lambda beside: beside.write_text(text))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.txt").write_text("mine")
    return tmp_path / "outside"


def test_a_link_put_there_after_the_check_is_not_followed(tmp_path: Path, outside: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    keep_within(run, links=False)
    write(run / "samples" / "a.txt")
    write(run / "images" / "new" / "a.txt")
    with open_file(run / "samples" / "a.txt") as file:
        assert file.read() == b"new"
    (run / "samples" / "a.txt").unlink()
    (run / "samples").rmdir()
    (run / "samples").symlink_to(outside)
    with pytest.raises(OSError, match=r"could not write .*samples/a\.txt"):
        write(run / "samples" / "a.txt")
    for path in (run / "samples" / "a.txt", run / "link"):
        (run / "link").unlink(missing_ok=True)
        (run / "link").symlink_to(outside / "a.txt")
        with pytest.raises(OSError, match=r"Not a directory|Too many"):
            open_file(path)
    with pytest.raises(OSError, match="Too many"), locked(run / "link", "busy"):
        pass
    write(run / "link")  # a link itself is replaced
    assert sorted(path.name for path in outside.iterdir()) == ["a.txt"]
    assert (outside / "a.txt").read_text() == "mine"
    keep_within(run, links=True)
    write(run / "samples" / "b.txt")
    assert (outside / "b.txt").exists()


def test_an_open_folder_stays_the_one_that_it_was(tmp_path: Path, outside: Path) -> None:
    logs = tmp_path / "run" / "tensorboard"
    assert keep_open(logs) == logs
    keep_within(tmp_path / "run", links=False)
    kept = keep_open(logs)
    logs.rename(tmp_path / "run" / "moved")
    logs.symlink_to(outside)
    (kept / "events").write_text("mine")
    assert (tmp_path / "run" / "moved" / "events").read_text() == "mine"
    with pytest.raises(OSError, match="Not a directory"):
        keep_open(logs)


def test_nothing_is_written_where_a_folder_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    keep_within(run)
    run.rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(OSError, match="run was moved or removed"):
            write(run / "checkpoints" / "a.txt")
    assert not run.exists()
    with locked(run / ".lock", "busy"):  # other work in a folder of that name
        write(run / "a.txt")


def test_a_lock_is_not_emptied_and_no_link_is_locked(tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".lock").symlink_to(outside / "a.txt")
    with pytest.raises(OSError, match="Too many"), locked(tmp_path / ".lock", "busy"):
        pass
    assert (outside / "a.txt").read_text() == "mine"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        open_file(tmp_path / "pipe")


def test_where_the_system_has_no_locks_the_file_says_who_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock, host = tmp_path / ".lock", socket.gethostname()
    for other, free in ((f"{host} 1", False), ("elsewhere 7", False), (f"{host} 999999999", True),
                        ("what somebody wrote", False)):  # fmt: skip
        lock.write_text(other)
        if free:
            with locked(lock, "busy"):
                assert lock.read_text() == f"{host} {os.getpid()}"
        else:
            with pytest.raises(ValueError, match=r"busy; or if there is none, remove .*\.lock"):
                locked(lock, "busy").__enter__()


def test_what_was_half_written_is_removed(tmp_path: Path) -> None:
    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    write(tmp_path / "a.txt", "whole")
    with pytest.raises(OSError, match=r"could not write .*a\.txt: No space left.*free some disk"):
        write_atomically(tmp_path / "a.txt", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"
