"""Saved first, measured after: a measurement never costs a training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flexgen.callbacks import Measurement, SampleQuality
from flexgen.metrics_table import read_metrics
from tests.conftest import SMALL

Run = Any

MEASURED = (*SMALL, "steps=12", "callbacks.quality.at=[6]", "callbacks.checkpoint.every=100",
            "callbacks.checkpoint.keep=null", "callbacks.reversal=null", "callbacks.samples=null",
            "report=false")  # fmt: skip


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step=*.ckpt"))


def test_the_checkpoint_is_on_disk_before_anything_is_measured(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    measure = SampleQuality.measure

    def watching(self: SampleQuality, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
        there.append(saved(run_dir))
        return measure(self, model, data, run_dir)

    monkeypatch.setattr(SampleQuality, "measure", watching)
    flexgen("train", *MEASURED)
    first, second = "step=00000006.ckpt", "step=00000012.ckpt"
    assert there == [[first], [first, second]]


def test_a_failing_measurement_is_told_noted_and_ends_with_status_3(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(self: Any, *args: Any) -> dict[str, float]:
        raise RuntimeError("no such\nthing")

    with monkeypatch.context() as patched:
        patched.setattr(SampleQuality, "measure", failing)
        with pytest.raises(SystemExit) as ended:
            flexgen("train", *MEASURED)
    assert ended.value.code == 3
    run = Path("run")
    assert saved(run) == ["step=00000006.ckpt", "step=00000012.ckpt"]
    assert json.loads((run / "provenance.json").read_text())["finished"]
    notes = [json.loads(line) for line in (run / "notes.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes] == [6, 12]
    for note in notes:
        assert note["failed"]
        assert note["measurement"] == "SampleQuality"
        assert "RuntimeError: no such thing" in note["why"]
        assert "test_saved_first.py:" in note["why"], "file and line"
    said = capsys.readouterr().err
    assert "flexgen evaluate run=" in said
    flexgen("evaluate", "run=run")
    assert "emd/samples" in json.loads((run / "evaluation.json").read_text())["values"]


@pytest.mark.parametrize("steps", [12, 6], ids=["midway", "at the end"])
def test_a_run_killed_while_it_measured_measures_when_it_is_resumed(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    class KilledError(BaseException):
        pass

    def killed(self: Any, model: Any, *args: Any) -> dict[str, float]:
        raise KilledError

    flexgen("train", *MEASURED, f"steps={steps}", run_dir="whole")
    with monkeypatch.context() as patched:
        patched.setattr(SampleQuality, "measure", killed)
        with pytest.raises(KilledError):
            flexgen("train", *MEASURED, f"steps={steps}")
        with pytest.raises(KilledError):
            flexgen("resume", "run=run")
    assert saved(Path("run")) == ["step=00000006.ckpt"]
    flexgen("resume", "run=run")
    whole, again = (read_metrics(Path(run, "metrics.csv")).rows for run in ("whole", "run"))
    assert whole == again


def test_a_resumed_run_does_not_measure_twice(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flexgen("train", *MEASURED, "steps=6")
    at: list[int] = []
    measure = SampleQuality.measure

    def counting(self: SampleQuality, model: Any, *args: Any) -> dict[str, float]:
        at.append(model.counters.generator_steps)
        return measure(self, model, *args)

    monkeypatch.setattr(SampleQuality, "measure", counting)
    flexgen("resume", "run=run", "steps=12")
    assert at == [12]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("callbacks.reversal.n=5",), ("callbacks.reversal.n", "n=6")),
        (("data.num_validation=0",), ("data.num_validation",)),
        (("conditional=true", "data=ring8", "data.num_train=0"), ("num_train",)),
    ],
)
def test_what_can_be_known_is_said_before_the_first_step(
    flexgen: Run, words: tuple[str, ...], keys: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        flexgen("train", *SMALL, *words, "steps=12")
    assert all(key in str(ended.value.code) for key in keys), ended.value.code
    assert not Path("run/checkpoints").exists()


def test_the_page_says_what_was_not_measured_and_why(
    flexgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any, *args: Any) -> dict[str, float]:
        raise RuntimeError("<b>no such thing</b>")

    monkeypatch.setattr(SampleQuality, "measure", failing)
    with pytest.raises(SystemExit):
        flexgen("train", *MEASURED, "report=true")
    page = Path("run/report.html").read_text()
    assert "Not measured" in page
    assert "failed: RuntimeError: &lt;b&gt;no such thing" in page


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"a": "many"}, r"`a` must be one number, got 'many'"),
        ({"a": torch.ones(2)}, r"`a` must be one number, got tensor"),
        ({"a,b\n": 1.0}, r"a value's name must be a word such as loss/critic"),
    ],
)
def test_what_no_column_of_a_table_holds_is_refused(values: dict[str, Any], told: str) -> None:
    class Own(Measurement):
        def measure(self, model: Any, data: Any, run_dir: Path) -> dict[str, float]:
            return values

    with pytest.raises(ValueError, match=told):
        Own(at=[1]).run(None, None, Path())
