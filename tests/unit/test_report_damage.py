"""Runs that are damaged, hostile or long: each is told in a line, and the others are reported."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_png, write_refit_run, write_run

from flexgen.metrics_table import COUNTERS, read_arrays, read_metrics
from flexgen.report import PriorRow, PriorTable, RunFiles, table, write_report, write_reports
from flexgen.report.latex import latex_escape
from flexgen.report.summary import csv_text
from flexgen.run_notes import RunNote, add_note, read_notes
from flexgen.untrusted import printable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links are POSIX's")


def _replace(path: Path, by: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    by(path)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


HEAD = ",".join(COUNTERS)
REFUSED = {
    "config.yaml": [_text("a: [1"), os.mkfifo, Path.mkdir],
    "provenance.json": [_text("{"), os.mkfifo, Path.mkdir],
    "metrics.csv": [_text(f"{HEAD},fid\n1,1,1,1,many\n"), os.mkfifo, Path.mkdir],
    "metrics.json": [_text("[]"), os.mkfifo, Path.mkdir],
}


@pytest.mark.parametrize(("name", "by"), [(n, by) for n, all_ in REFUSED.items() for by in all_])
def test_a_damaged_run_is_left_out_with_its_name_and_the_others_stand(
    tmp_path: Path, name: str, by: Callable[[Path], object]
) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    _replace(bad / name, by)
    pages = write_reports(tmp_path)
    assert pages == [tmp_path / "report.html", good / "report.html"]
    (line,) = table(tmp_path).left_out
    assert line.startswith(f"{bad}: {name} ")
    assert "\n" not in line
    assert f"Not in the means: {bad}: {name} " in pages[0].read_text()


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("images/samples/step=00000001.png", _text("no picture")),
        ("images/samples/step=00000001.png", os.mkfifo),
        ("images/samples/step=00000001.png", Path.mkdir),
        ("codes/step=00000001.safetensors", os.mkfifo),
        ("codes/step=00000001.safetensors", Path.mkdir),
        ("checkpoints/step=00000001.ckpt", Path.mkdir),
        ("notes.jsonl", os.mkfifo),
        ("images", os.mkfifo),
        ("control", os.mkfifo),
    ],
)
def test_a_part_that_is_none_is_told_on_the_page(
    tmp_path: Path, name: str, by: Callable[[Path], object]
) -> None:
    run = write_run(tmp_path / "run")
    _replace(run / name, by)
    page = write_report(run)
    assert any(name in note and "left out" in note for note in RunFiles.load(run).notes)
    assert name in page.read_text()


@pytest.mark.parametrize("name", ["images", "images/samples", "codes", "control"])
def test_no_linked_folder_below_a_run_is_followed(tmp_path: Path, name: str) -> None:
    elsewhere = write_refit_run(tmp_path / "elsewhere" / "run")
    run = write_run(tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(elsewhere / name)
    found = RunFiles.load(run)
    assert (found.images, found.codes, found.control) == ({}, {}, None)
    assert f"{name} is a link and is left out" in found.notes
    assert f"{name} is a link and is left out" in write_report(run).read_text()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "metrics.json"])
def test_no_linked_file_of_a_run_is_read(tmp_path: Path, name: str) -> None:
    elsewhere, run = write_run(tmp_path / "elsewhere"), write_run(tmp_path / "runs" / "run")
    write_run(tmp_path / "runs" / "good")
    _replace(run / name, lambda path: path.symlink_to(elsewhere / name))
    assert table(tmp_path / "runs").left_out == (f"{run}: {name} is a link; put its file there",)


def test_notes_are_neither_read_nor_written_through_a_link(tmp_path: Path) -> None:
    run, secret = write_run(tmp_path / "run"), tmp_path / "secret"
    secret.write_text(json.dumps({"step": 1, "measurement": "m", "failed": True, "why": "w"}))
    before = secret.read_text()
    (run / "notes.jsonl").symlink_to(secret)
    with pytest.raises(OSError, match="Too many levels"):
        read_notes(run)
    with pytest.raises(OSError, match="Too many levels"):
        add_note(run, RunNote(1, "m", True, "w"))
    assert secret.read_text() == before
    assert "notes.jsonl left out" in RunFiles.load(run).notes[0]


def test_a_folder_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad") / "report.html").mkdir()
    page = write_reports(tmp_path)[0]
    assert "bad: has no report: could not write" in page.read_text()


EVIL = "\x1b[2J\u202egnp\tx\rq"
SHOWN = r"\x1b[2J\u202egnp\tx\rq"


def test_what_a_terminal_would_obey_is_shown(tmp_path: Path) -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\udcffb") == r"a\udcffb"  # of a path that is no UTF-8
    assert printable("two\nlines", keep="\n") == "two\nlines"
    rows = [{"generator_steps": 1, f"fid{EVIL.replace(chr(13), '')}": 1.0}]
    for seed, name in enumerate((EVIL.replace("\r", ""), "b")):
        run = write_run(
            tmp_path / name, rows, overrides=[f"k{EVIL}={EVIL}{seed}"], config={"name": EVIL}
        )
        write_png(run / "images" / EVIL / "step=00000001.png")
    pages = write_reports(tmp_path)
    result = table(tmp_path)
    texts = [result.text(), result.csv(), result.latex(), *(page.read_text() for page in pages)]
    for text in texts:
        assert not any(c in text for c in "\x1b\u202e\r")
    assert not any("\t" in text for text in texts[:3])
    assert SHOWN in texts[1]
    assert SHOWN in texts[3]
    label = PriorTable.of([PriorRow(EVIL, [{"fid": 1.0}])], "").csv().splitlines()[1]
    assert label.startswith(SHOWN)


def test_no_cell_of_a_csv_is_computed_by_a_spreadsheet() -> None:
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "-1.5", "+2e3", -2.5, "x=1", ""]
    (line,) = csv.reader(io.StringIO(csv_text([cells]), newline=""))
    assert line[:6] == ["'=1+1", "'+x", "'-x", "'@x", "\\tx", "\\rx"]
    assert line[6:] == ["-1.5", "+2e3", "-2.5", "x=1", ""]


def test_a_latex_row_begins_with_no_argument(tmp_path: Path) -> None:
    for i, value in enumerate(("[32, 32]", "*")):
        write_run(tmp_path / str(i), overrides=[f"hidden.sizes={value}"])
    lines = table(tmp_path).latex().splitlines()
    assert any(line.startswith("{[}32, 32{]} &") for line in lines)
    assert any(line.startswith("{*} &") for line in lines)
    assert latex_escape("a[1]*") == "a{[}1{]}{*}"


def test_a_matplotlibrc_of_the_working_directory_changes_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    write_run(tmp_path / "runs" / "0", overrides=["name=a$b$_c^"])
    result = table(tmp_path / "runs")
    plain = result.plot(tmp_path / "plain.png").read_bytes()
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\n")
    monkeypatch.chdir(tmp_path)
    found = matplotlib.rc_params_from_file("matplotlibrc", use_default_template=False)
    with matplotlib.rc_context(found):
        assert result.plot(tmp_path / "other.png").read_bytes() == plain
        assert matplotlib.rcParams["text.usetex"]


def test_a_clock_set_back_gives_no_duration(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    about = json.loads((run / "provenance.json").read_text())
    about["started"], about["finished"] = about["finished"], about["started"]
    (run / "provenance.json").write_text(json.dumps(about))
    assert "Duration" not in write_report(run).read_text()


def test_a_parent_that_is_no_path_is_no_parent(tmp_path: Path) -> None:
    for i, parent in enumerate((3, ["x"], "a\0b", str(tmp_path / "none"))):
        run = write_run(tmp_path / "runs" / str(i), overrides=["prior=nsf"])
        about = json.loads((run / "provenance.json").read_text())
        about |= {"command": "refit", "parent": {"run": parent}}
        (run / "provenance.json").write_text(json.dumps(about))
    result = table(tmp_path / "runs")
    assert result.left_out == ()
    assert [row.settings for row in result.rows] == [{"prior": "nsf"}]


def test_columns_are_what_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexgen.metrics_table._BLOCK", 64)  # blocks end within rows
    lines = [f"{HEAD},a,b", "1,1,1,9,0.5", "2,2,2,18,,nan", "3,3,3,27,-inf,1e+05", "4,4,4,36",
             "5,5,5,45, 7 ,1_0", "6,6,6,54,1e-300,-0.1"]  # fmt: skip
    for end in ("\n", "\r\n"):
        path = tmp_path / "metrics.csv"
        path.write_bytes((end.join(lines) + end + "7,7").encode())
        with path.open("rb") as file:
            found = read_arrays(file)
        rows = read_metrics(path).rows
        assert (found.num_rows, found.cut_short) == (6, True)
        for name in (*COUNTERS, "a", "b"):
            at = [i for i, row in enumerate(rows) if name in row]
            assert found.columns[name][0].tolist() == at
            np.testing.assert_array_equal(found.columns[name][1], [rows[i][name] for i in at])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1 2,1,1,9,3", "column batches is not a number: '1 2'"),
        ("1,1,1,9,1-2", "column fid is not a number: '1-2'"),
        ("1,1,1.5,9,1", "column generator_steps is not a number: '1.5'"),
        ("1,1,-1,9,1", "column generator_steps is empty or out of range"),
        ("", "column batches is empty"),
        ("1,1,1,9,1,1", "has 6 cells for 5 columns"),
    ],
)
def test_a_wrong_line_is_named(line: str, told: str) -> None:
    good = "1,1,1,9,1\n" * 3
    with pytest.raises(ValueError, match=f"line 5.*{told}"):
        read_arrays(io.BytesIO(f"{HEAD},fid\n{good}{line}\n{good}".encode()))


def test_a_page_grows_neither_with_its_rows_nor_an_index_with_its_pictures(tmp_path: Path) -> None:
    rows = 20_000
    run = write_run(tmp_path / "long")
    lines = [f"{i},{i},{i},{i},{1 / i!r}" for i in range(1, rows + 1)]
    (run / "metrics.csv").write_text("\n".join([f"{HEAD},loss/critic", *lines, ""]))
    assert write_report(run).stat().st_size < 100_000
    for i in range(70):
        write_png(write_run(tmp_path / "m" / str(i)) / "images/samples/step=00000001.png")
    text = write_reports(tmp_path / "m")[0].read_text()
    assert text.count("data:image/png") == 60
    assert "The first 60 of 70 runs" in text
    assert text.count("/report.html") == 70
