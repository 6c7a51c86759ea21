"""Sweeps: entered again after a kill, launched elsewhere, one device a process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexgen.cli import main
from flexgen.runs.cells import Cell, raise_failures, run_apart, train_cell
from flexgen.runs.devices import claim_device, keep_to_one_device, wants_several
from flexgen.runs.errors import MeasurementFailed
from flexgen.runs.grid_position import position
from tests.conftest import SMALL
from tests.forked import Forked, fork
from tests.integration.test_resume import same, state

TINY = tuple(w for w in SMALL if not w.startswith("callbacks.") or "checkpoint" in w)
TINY = (*TINY, "report=false", "callbacks=[checkpoint]")
"""A run that trains and saves, and measures nothing."""

Run = Callable[..., Path]


def cells(sweep: str) -> dict[str, str]:
    """The state of each cell by the folder's name."""
    found = {}
    for path in sorted(Path(sweep).glob("*/cell.json")):
        found[path.parent.name] = json.loads(path.read_text())["state"]
    return found


def wait_for(there: Callable[[], Any], process: Forked | subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert there()


@pytest.mark.slow
def test_a_sweep_killed_in_a_cell_is_entered_again_with_the_same_bits(
    flexgen: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", *TINY, "steps=150", "seed=0,1")
    flexgen("train", *words, "hydra.sweep.dir=undisturbed")

    process = fork("train", *words, "hydra.sweep.dir=killed")
    wait_for(lambda: list(Path("killed/1/checkpoints").glob("*.ckpt")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cells("killed") == {"0": "finished", "1": "running"}
    assert state(Path("killed/1"))["flexgen"]["counters"]["generator_steps"] < 150
    first = Path("killed/0/provenance.json").read_text()

    capsys.readouterr()
    other = ("logger=[csv,tensorboard]", "+trainer.profiler=simple")
    flexgen("train", *words, "hydra.sweep.dir=killed", *other)
    said = capsys.readouterr().err
    assert re.search(r"cell 0 \[.*seed=0 .*\] finished before", said)
    assert "cell 2 of 2 [seed=1]" in said
    assert "FIT Profiler Report" in said
    assert list(Path("killed/1").rglob("*tfevents*"))
    assert cells("killed") == dict.fromkeys("01", "finished")
    assert Path("killed/0/provenance.json").read_text() == first
    for n in "01":
        assert same(state(Path("undisturbed") / n), state(Path("killed") / n)) == []
        metrics = [
            (Path(sweep) / n / "metrics.csv").read_text() for sweep in ("undisturbed", "killed")
        ]
        assert metrics[0] == metrics[1]


def test_a_cell_is_known_by_its_overrides(tmp_path: Path) -> None:
    first = [Cell.claim(tmp_path, n, [f"seed={n}", "model=gan"], "a") for n in (0, 1)]
    grown = [Cell.claim(tmp_path, n, ["model=gan", f"seed={n + 1}"], "b") for n in (0, 1)]
    assert [cell.folder.name for cell in first] == ["0", "1"]
    assert [cell.folder.name for cell in grown] == ["1", "2"]
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "config.yaml").touch()  # somebody's run
    assert Cell.claim(tmp_path, 3, [], "b").folder.name == "4"


def test_another_logger_threads_or_trainer_enters_the_same_cell(tmp_path: Path) -> None:
    words = ["seed=0", "threads=1"]
    first = [Cell.claim(tmp_path, n, ["seed=0", f"threads={n + 1}"], "a") for n in (0, 1)]
    assert [cell.folder.name for cell in first] == ["0", "1"]  # of one grid
    for more in (["logger=wandb"], ["trainer=cpu", "+trainer.profiler=simple"], ["report=false"]):
        assert Cell.claim(tmp_path, 2, [*words, *more], "b").folder.name == "0"
    assert Cell.claim(tmp_path, 2, ["seed=0", "threads=2", "logger=wandb"], "b").folder.name == "1"
    assert Cell.claim(tmp_path, 2, [*words, "trainer.precision=64"], "b").folder.name == "2"


def test_a_cell_knows_its_place_in_the_grid_and_what_is_left(tmp_path: Path) -> None:
    words = ["model=gan", "prior=normal,uniform", "seed=0,1"]
    asked = {"sweeper": {"params": {"seed": "0,1,2"}}, "overrides": {"task": words}}
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": asked}))
    overrides = [
        ["model=gan", f"prior={p}", f"seed={s}"] for p in ("normal", "uniform") for s in "01"
    ]
    cells = [Cell.claim(tmp_path, n, words, "e") for n, words in enumerate(overrides)]
    place = position(tmp_path, cells[2].overrides)
    assert place is not None
    assert str(place) == "cell 2 of 4 [prior=uniform seed=0]"
    os.utime(tmp_path / "multirun.yaml", (time.time() - 100, time.time() - 100))
    cells[0].write("finished")
    place = position(tmp_path, cells[2].overrides)
    assert place is not None
    assert place.seconds_left == pytest.approx(300, rel=0.1)
    assert str(place).endswith("5 min left")
    cells[0].overrides.append("logger=wandb")  # by an earlier command: it is the same cell
    cells[0].write("finished")
    place = position(tmp_path, cells[2].overrides)
    assert place is not None
    assert place.seconds_left == pytest.approx(300, rel=0.1)
    assert position(tmp_path, ["seed=9"]) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"overrides": 3}'])
def test_a_damaged_cell_is_told_with_the_remedy(tmp_path: Path, text: str) -> None:
    cell = Cell.claim(tmp_path, 0, ["seed=0"], "e")
    (cell.folder / "cell.json").write_text(text)
    for damaged in (lambda: Cell.claim(tmp_path, 1, ["seed=1"], "e"), lambda: cell.state):
        with pytest.raises(ValueError, match=r"0/cell\.json is damaged; remove it"):
            damaged()


def test_what_becomes_of_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("`n` must be 1")

    def stop() -> None:
        raise SystemExit(130)

    cell = Cell.claim(tmp_path, 0, ["seed=0"], "first")
    cell.run(fail)
    with pytest.raises(RuntimeError, match=r"cells failed: 1; cell 0 \[seed=0\] `n` must be 1"):
        raise_failures(tmp_path, "first")
    raise_failures(tmp_path, "second")  # another command has not run it
    with pytest.raises(SystemExit):
        cell.run(stop)
    assert cell.state == "stopped"
    cell.run(lambda: cell.run(lambda: done.append("meanwhile")))
    assert (cell.state, done) == ("finished", [])
    cell.run(lambda: done.append("again"))
    assert done == []
    said = capsys.readouterr().err
    assert "another process is at it" in said
    assert "finished before" in said


def test_a_trained_cell_whose_measurement_failed_is_not_entered_again_but_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entered: list[int] = []

    def half() -> None:
        entered.append(1)
        raise MeasurementFailed("1 measurements failed")

    cell = Cell.claim(tmp_path, 0, ["seed=0"], "first")
    for entry in ("first", "second"):
        Cell.claim(tmp_path, 0, ["seed=0"], entry).run(half)
        with pytest.raises(MeasurementFailed, match=r"cell 0 \[seed=0\] 1 measurements failed"):
            raise_failures(tmp_path, entry)
    assert (entered, cell.state) == ([1], "finished")
    assert "seed=0] finished before" in capsys.readouterr().err


def test_a_sweep_with_a_failing_measurement_ends_with_status_3(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(cell: Path, overrides: list[str]) -> None:
        raise MeasurementFailed("1 measurements failed")

    monkeypatch.setattr("flexgen.runs.cells.wants_several", lambda trainer: True)
    monkeypatch.setattr("flexgen.runs.cells.run_apart", half)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            flexgen("train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep")
        assert ended.value.code == 3


def test_of_several_failures_each_line_tells_what_is_its_cells_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("`n` must be 1")

    cells = [Cell.claim(tmp_path, n, ["model=gan", f"seed={n}"], "e") for n in range(11)]
    for cell in cells[9:]:
        cell.run(fail)
    capsys.readouterr()
    with pytest.raises(RuntimeError, match=r"^cells failed: 2; to try again: the same command"):
        raise_failures(tmp_path, "e")
    assert capsys.readouterr().err.splitlines() == [
        "cell 9 [seed=9] `n` must be 1",
        "cell 10 [seed=10] `n` must be 1",
    ]


def test_a_worker_that_was_killed_is_told_with_the_cells_it_left(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(task: Any, cfg: Any, entry: str) -> None:
        for number in (0, 1):
            Cell.claim(Path("sweep"), number, [f"seed={number}"], entry).write("running")
        Cell.claim(Path("sweep"), 0, ["seed=0"], entry).write("finished")
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr("flexgen.runs.cells.run_cell", killed)
    with pytest.raises(
        SystemExit,
        match=r"a worker was killed; cells begun and not finished: 1; to go on: the same command "
        r"with hydra\.sweep\.dir=sweep$",
    ):
        flexgen("train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep")


def test_an_interval_is_no_grid(flexgen: Run) -> None:
    with pytest.raises(SystemExit, match="`flexgen search` draws from it"):
        flexgen("train", "-m", *TINY, "model.critic_steps=interval(1,3)")


CLAIM = """
import sys
from pathlib import Path
from flexgen.runs.devices import claim_device
print(claim_device(["0", "3"], Path(sys.argv[1]), int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def test_each_process_gets_a_device_of_its_own(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (7, 9)
    ]
    got = [process.stdout.readline().strip() for process in processes]  # type: ignore[union-attr]
    assert sorted(got) == ["0", "3"]
    assert claim_device(["0", "3"], tmp_path, 5) == "3"  # all are taken: shared, by number
    for process in processes:
        process.communicate("")
    assert claim_device(["0", "3"], tmp_path, 5) == "0"


@pytest.mark.parametrize(
    ("trainer", "devices", "shown"),
    [
        ({"accelerator": "auto", "devices": 1}, 2, "4"),
        ({"accelerator": "auto", "devices": 1}, 1, "4,6"),
        ({"accelerator": "auto", "devices": "1"}, 2, "4"),
        ({"accelerator": "gpu", "devices": -1}, 2, "4,6"),
        ({"accelerator": "cpu", "devices": 1}, 2, "4,6"),
    ],
)
def test_only_a_cell_that_wants_one_of_several_devices_is_kept_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: dict[str, Any], devices: int,
    shown: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    keep_to_one_device(trainer, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shown


@pytest.mark.parametrize(
    ("devices", "accelerator", "several"),
    [
        (1, "cpu", False), ("1", "gpu", False), ([1], "gpu", False), ("1,", "gpu", False),
        (2, "cpu", True), ("2", "auto", True), ([0, 1], "gpu", True), ("0,1", "gpu", True),
        (-1, "gpu", True), ("auto", "auto", True), ("-1", "auto", True), ("auto", "cpu", False),
    ],
)  # fmt: skip
def test_a_cell_of_several_devices_runs_apart(
    devices: Any, accelerator: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = {"strategy": "auto", "accelerator": accelerator, "devices": devices}
    assert wants_several(trainer) == several
    apart: list[str] = []
    monkeypatch.setattr("flexgen.runs.cells.run_apart", lambda run_dir, _: apart.append(run_dir))
    monkeypatch.setattr("flexgen.runs.cells.keep_to_one_device", lambda *_: None)
    monkeypatch.setattr("flexgen.runs.train.train", lambda *_, **__: None)
    train_cell({"trainer": trainer, "paths": {"run_dir": "0"}}, [], 0)
    assert apart == [Path("0")] * several


@pytest.mark.slow
def test_submitit_queues_a_cell_again_when_its_time_is_up(flexgen: Run) -> None:
    pytest.importorskip("submitit")
    words = ("-m", *TINY, "steps=150", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep")
    process = fork("train", *words, "seed=0", "hydra.launcher.timeout_min=10")
    wait_for(lambda: list(Path("sweep/0/checkpoints").glob("*.ckpt")), process)
    controller = next(p.name for p in Path("sweep/.submitit").iterdir() if p.name.isdigit())
    job = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0]
    os.kill(int(job), signal.SIGUSR2)  # as Slurm does, some time before it kills
    assert process.wait(250) == 0
    logs = Path("sweep/.submitit") / controller
    assert "Requeued job" in (logs / f"{controller}_0_log.out").read_text()
    stopped = re.search(
        r"stopped at step (\d+) of 150", (logs / f"{controller}_0_log.err").read_text()
    )
    assert stopped is not None
    assert (Path("sweep/0/checkpoints") / f"step={int(stopped[1]):08d}.ckpt").is_file()
    assert cells("sweep") == {"0": "finished"}
    assert state(Path("sweep/0"))["flexgen"]["counters"]["generator_steps"] == 150


@pytest.mark.slow
def test_joblib_runs_the_cells_and_tells_of_those_that_failed(flexgen: Run) -> None:
    pytest.importorskip("joblib")
    words = ("-m", *TINY, "steps=5", "model.critic_steps=1,0", "hydra.sweep.dir=sweep")
    with pytest.raises(SystemExit, match=r"cells failed: 1; .*`critic_steps` must be a whole"):
        flexgen("train", *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert cells("sweep") == {"0": "finished", "1": "failed"}


def test_a_cell_apart_with_a_class_of_ones_own_is_entered_again(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InThisProcess:
        def __init__(self, words: list[str], **kwargs: Any) -> None:
            main(words[3:])

        def wait(self) -> int:
            return 0

    monkeypatch.setattr("flexgen.runs.cells.subprocess", SimpleNamespace(Popen=InThisProcess))
    monkeypatch.setattr(sys, "path", [*sys.path, os.getcwd()])
    Path("my_networks.py").write_text("from flexgen.networks import MLPGenerator as Mine\n")
    cell = Cell.claim(Path("sweep").resolve(), 0, [], "e")
    overrides = [*TINY, "steps=5", "network.generator._target_=my_networks.Mine"]
    for _ in range(2):
        run_apart(cell.folder, overrides)
    assert state(cell.folder)["flexgen"]["counters"]["generator_steps"] == 5


@pytest.mark.slow
def test_a_cell_of_several_processes_is_a_flexgen_of_its_own(flexgen: Run) -> None:
    words = ("-m", *TINY, "steps=5", "trainer=ddp_cpu", "seed=7", "hydra.sweep.dir=a sweep")
    flexgen("train", *words)
    assert cells("a sweep") == {"0": "finished"}
    overrides = json.loads(Path("a sweep/0/provenance.json").read_text())["overrides"]
    assert overrides[-1] == "seed=7"
    assert state(Path("a sweep/0"))["flexgen"]["counters"]["images_seen"] == 5 * 5 * 32 * 2


def test_a_launcher_that_is_not_installed(flexgen: Run) -> None:
    with pytest.raises(SystemExit, match="pip install hydra-joblib-launcher"):
        flexgen("train", "-m", *TINY, "hydra/launcher=kubernetes")
