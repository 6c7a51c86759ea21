"""A run directory is read whole, or refused in one clear line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_metrics, write_png, write_refit_run, write_run

from flexgen.report import RunError, RunFiles, find_runs

LOGGED = (
    {"generator_steps": 10, "loss/critic": 4.0},
    {"generator_steps": 20, "loss/critic": 2.0, "pag/unit": 0.5},
    {"generator_steps": 30, "loss/critic": 1.0},
    {"generator_steps": 30, "pag/unit": 0.25},
)


def test_curve_has_the_logged_cells_alone(tmp_path: Path) -> None:
    run = RunFiles.load(write_run(tmp_path / "run", LOGGED))
    assert run.curves["pag/unit"].values.tolist() == [0.5, 0.25]
    assert run.curves["pag/unit"].steps.tolist() == [20, 30]
    assert run.curves["pag/unit"].rows.tolist() == [1, 3]
    assert run.curves["pag/unit"].counters["images_seen"].tolist() == [6400, 9600]


def test_value_is_mean_and_sample_deviation_of_last_evaluations(tmp_path: Path) -> None:
    run = RunFiles.load(write_run(tmp_path / "run", LOGGED))
    value = run.value("loss/critic", last=2)
    assert value is not None
    assert (value.mean, value.count, value.step) == (1.5, 2, 30)
    assert value.spread == pytest.approx(math.sqrt(0.5))
    assert run.value("fid") is None


def test_value_counts_the_evaluations_there_are(tmp_path: Path) -> None:
    value = RunFiles.load(write_run(tmp_path / "run", LOGGED)).value("pag/unit", last=9)
    assert value is not None
    assert (value.mean, value.count) == (0.375, 2)


def test_logged_nan_is_not_hidden_by_the_value_before(tmp_path: Path) -> None:
    rows = [{"generator_steps": 1, "fid": 3.0}, {"generator_steps": 2, "fid": "nan"}]
    value = RunFiles.load(write_run(tmp_path / "run", rows, finished=False)).value("fid")
    assert value is not None
    assert math.isnan(value.mean)


def test_metric_without_a_curve_has_its_final_value(tmp_path: Path) -> None:
    run = RunFiles.load(write_run(tmp_path / "run", final={"kid": 0.125}))
    value = run.value("kid", last=5)
    assert value is not None
    assert (value.mean, value.count) == (0.125, 1)


def test_run_without_metrics_csv_has_its_final_values(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", final={"kid": 0.125})
    (path / "metrics.csv").unlink()
    run = RunFiles.load(path)
    assert run.curves == {}
    assert run.final["kid"] == 0.125
    assert run.counters["generator_steps"] == 10


def test_row_cut_by_a_kill_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", LOGGED, finished=False)
    with (path / "metrics.csv").open("a") as stream:
        stream.write("240,200,40,12800,0.12")  # of 0.1234
    run = RunFiles.load(path)
    assert run.curves["loss/critic"].values.tolist() == [4.0, 2.0, 1.0]
    assert run.step == 30
    assert "cut short" in run.notes[0]


def test_rows_older_than_a_column_may_be_shorter(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    header = "batches,critic_steps,generator_steps,images_seen,loss/critic,fid\n"
    (path / "metrics.csv").write_text(header + "1,1,1,9,0.5\n2,2,2,18,0.25,7\n")
    assert RunFiles.load(path).curves["fid"].steps.tolist() == [2]


def test_files_are_found_by_kind_and_step(tmp_path: Path) -> None:
    run = RunFiles.load(write_refit_run(tmp_path / "run"))
    assert list(run.images["samples"]) == list(range(500, 4001, 500))
    assert set(run.images) == {"samples", "code_map", "spectrum", "disagreement", "reconstructions"}
    assert list(run.codes) == [4000]
    assert run.control is not None
    assert run.control.path == run.path / "control"


def test_broken_image_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    whole = write_png(path / "images/samples/step=00000001.png")
    (path / "images/samples/step=00000002.png").write_bytes(whole.read_bytes()[:-12])
    run = RunFiles.load(path)
    assert list(run.images["samples"]) == [1]
    assert "step=00000002.png" in run.notes[0]


def test_broken_control_does_not_take_the_run_with_it(tmp_path: Path) -> None:
    path = write_refit_run(tmp_path / "run")
    write_metrics(path / "control", [])
    (path / "control/metrics.json").unlink()
    run = RunFiles.load(path)
    assert run.control is None
    assert "control left out: has no metrics" in run.notes[0]


def test_status_says_how_far_an_unfinished_run_came(tmp_path: Path) -> None:
    assert RunFiles.load(write_run(tmp_path / "a")).status == "finished"
    unfinished = RunFiles.load(write_run(tmp_path / "b", finished=False))
    assert unfinished.status == "unfinished at generator step 10 of 100"


def _message(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        RunFiles.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_directory_suggests_its_neighbour(tmp_path: Path) -> None:
    write_run(tmp_path / "digits")
    assert f"does not exist; did you mean {tmp_path / 'digits'}?" in _message(tmp_path / "digit")


def test_other_directory_names_what_is_missing_and_the_runs_below(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "sweep" / str(i)) for i in (10, 2, 1, 11)]
    message = _message(tmp_path)
    assert "config.yaml and provenance.json missing" in message
    assert f"{runs[2]}, {runs[1]}, {runs[0]} and 1 more" in message


def test_folder_in_a_run_names_the_run(tmp_path: Path) -> None:
    path = write_refit_run(tmp_path / "run")
    assert f"it lies in the run {path}" in _message(path / "images")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.yaml", "a: [1", "config.yaml is corrupt"),
        ("config.yaml", "- 1", "config.yaml is corrupt: it must hold keys, got list"),
        ("provenance.json", '{"seed": ', "provenance.json is corrupt"),
        ("provenance.json", "[1]", "provenance.json must hold an object"),
        ("metrics.json", '{"values": {"fid": "x"}}', "metrics.json is corrupt"),
        ("metrics.json", '{"values": [1]}', "metrics.json is corrupt"),
        ("metrics.csv", "step,fid\n1,2\n", "no column batches"),
        ("metrics.csv", "HEAD,fid\n1,1,1,1,x\n", "line 2, column fid is not a number: 'x'"),
        ("metrics.csv", "HEAD,fid\n1,1,1,1,2,3\n", "line 2 has 6 cells for 5 columns"),
        ("metrics.csv", "HEAD,fid\n1,1,nan,1,2\n", "column generator_steps is not a number"),
        ("metrics.csv", "HEAD,fid\n1,1,,1,2\n", "line 2, column generator_steps is empty"),
        ("metrics.csv", "HEAD,fid,fid\n1,1,1,1,2,2\n", "a column appears twice"),
    ],
)
def test_corrupt_file_is_named(tmp_path: Path, file: str, content: str, expected: str) -> None:
    path = write_run(tmp_path / "run")
    header = "batches,critic_steps,generator_steps,images_seen"
    (path / file).write_text(content.replace("HEAD", header))
    assert expected in _message(path)


def test_bytes_that_are_no_text_are_an_error_of_one_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "metrics.csv").write_bytes(b"\xff\xfe\x00\n")
    assert "metrics.csv cannot be read" in _message(path)


@pytest.mark.parametrize("content", ["", "batches,critic_steps,generator_steps,images_seen\n"])
def test_empty_metrics_are_refused(tmp_path: Path, content: str) -> None:
    path = write_run(tmp_path / "run", finished=False)
    (path / "metrics.csv").write_text(content)
    assert "has no metrics" in _message(path)


def test_find_runs_is_in_natural_order_and_leaves_controls_out(tmp_path: Path) -> None:
    for i in (10, 2):
        write_run(tmp_path / "sweep" / str(i))
    write_refit_run(tmp_path / "sweep/1")
    found = [path.name for path in find_runs(tmp_path)]
    assert found == ["1", "2", "10"]
    assert find_runs(tmp_path / "sweep/1") == [tmp_path / "sweep/1"]


def test_find_runs_finds_the_job_that_failed_at_once(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "1/.hydra").mkdir(parents=True)
    assert [path.name for path in find_runs(tmp_path)] == ["0", "1"]


def test_find_runs_without_any_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory in it"):
        find_runs(tmp_path)


def test_metrics_json_may_hold_nan(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "metrics.json").write_text(json.dumps({"counters": {}, "values": {"fid": math.nan}}))
    assert np.isnan(RunFiles.load(path).final["fid"])
