"""Before, after and control are the right rows of the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import refit_rows, write_refit_run, write_run
from rich.console import Console
from safetensors.numpy import save_file

from flexgen.report import Comparison, RunFiles, compare, print_comparison, write_report


def _row(step: int, **values: Any) -> dict[str, Any]:
    names = {
        "pag": "pag/unit",
        "low": "pag/unit_low",
        "high": "pag/unit_high",
        "emd": "emd/samples",
    }
    names |= {"stage": "prior/stage", "kept": "refit/kept"}
    return {"generator_steps": step} | {names[key]: value for key, value in values.items()}


ROWS = [
    _row(10, pag=5.0, low=4.0, high=6.0, emd=3.0, stage=0),
    _row(20, pag=4.0, low=3.5, high=4.5, stage=0),
    _row(20, kept=1, stage=1),
    _row(20, pag=3.0, low=2.0, high=3.5, stage=1),
    _row(30, pag=1.0, low=0.5, high=1.5, emd=2.0, stage=1),
]


def _compare(path: Path, rows: list[dict[str, Any]], control: Any = None) -> Comparison:
    run = write_run(path / "run", rows)
    if control is not None:
        write_run(run / "control", control)
    compared = compare(RunFiles.load(run))
    assert compared is not None
    return compared


def test_before_is_the_last_row_of_the_first_stage_and_after_the_last_row(tmp_path: Path) -> None:
    at = _compare(tmp_path, ROWS).points["pag/unit"]
    assert (at["before"].value, at["before"].step) == (4.0, 20)
    assert (at["after"].value, at["after"].step) == (1.0, 30)
    assert "control" not in at


def test_row_that_reports_the_refit_and_the_measurements_of_its_step_is_before(
    tmp_path: Path,
) -> None:
    rows = [
        _row(10, pag=5.0, stage=0),
        _row(20, pag=4.0, low=3.5, high=4.5, kept=1, stage=1),
        _row(25, emd=2.0),
        _row(30, pag=1.0, kept=1, stage=2),
        _row(40, pag=0.5, stage=2),
    ]
    for start in (0, 1):  # with an earlier stage logged, and without
        at = _compare(tmp_path / str(start), rows[start:]).points
        assert (at["pag/unit"]["before"].value, at["pag/unit"]["after"].value) == (4.0, 0.5)
        assert at["emd/samples"]["after"].value == 2.0


def test_interval_is_that_of_the_same_row(tmp_path: Path) -> None:
    compared = _compare(tmp_path, ROWS)
    before = compared.points["pag/unit"]["before"]
    assert (before.low, before.high) == (3.5, 4.5)
    assert "pag/unit_low" not in compared.points


def test_metric_measured_earlier_than_others_keeps_its_own_step(tmp_path: Path) -> None:
    compared = _compare(tmp_path, ROWS)
    assert compared.points["emd/samples"]["before"].step == 10
    assert "before at 20 (some metrics at 10)" in " ".join(compared.notes)


def test_control_is_its_last_row_and_the_difference_is_after_less_control(tmp_path: Path) -> None:
    control = [_row(25, pag=9.0, stage=0), _row(30, pag=3.5, stage=0)]
    compared = _compare(tmp_path, ROWS, control)
    assert compared.points["pag/unit"]["control"].value == 3.5
    assert compared.difference("pag/unit") == -2.5
    assert compared.difference("emd/samples") is None
    assert not any("no control" in note for note in compared.notes)


def test_control_of_other_length_is_said(tmp_path: Path) -> None:
    compared = _compare(tmp_path, ROWS, [_row(25, pag=9.0, stage=0)])
    assert any("not alike" in note for note in compared.notes)


def test_missing_control_is_said(tmp_path: Path) -> None:
    assert any("no control run" in note for note in _compare(tmp_path, ROWS).notes)


def test_stage_that_is_logged_with_the_refit_alone_is_understood(tmp_path: Path) -> None:
    rows = [_row(10, pag=4.0), _row(20, kept=1, stage=1), _row(30, pag=1.0)]
    at = _compare(tmp_path, rows).points["pag/unit"]
    assert (at["before"].value, at["after"].value) == (4.0, 1.0)


def test_stage_of_a_continued_run_need_not_start_at_zero(tmp_path: Path) -> None:
    rows = [_row(5, emd=7.0), _row(10, pag=4.0, stage=2), _row(20, kept=1, stage=3)]
    at = _compare(tmp_path, [*rows, _row(30, pag=1.0, emd=6.0, stage=3)]).points
    assert (at["pag/unit"]["before"].value, at["pag/unit"]["after"].value) == (4.0, 1.0)
    assert at["emd/samples"]["before"].value == 7.0


def test_before_of_several_rounds_is_before_the_first_that_was_kept(tmp_path: Path) -> None:
    rows = [
        _row(10, pag=5.0, stage=0),
        _row(10, kept=0, stage=0),
        _row(20, pag=4.0, stage=0),
        _row(20, kept=1, stage=1),
        _row(30, pag=3.0, stage=1),
        _row(30, kept=1, stage=2),
        _row(40, pag=2.0, stage=2),
    ]
    compared = _compare(tmp_path, rows)
    at = compared.points["pag/unit"]
    assert (at["before"].value, at["after"].value) == (4.0, 2.0)
    assert [(refit.step, refit.kept) for refit in compared.refits] == [
        (10, False),
        (20, True),
        (30, True),
    ]


def test_refit_that_was_not_kept_is_said(tmp_path: Path) -> None:
    run = RunFiles.load(write_refit_run(tmp_path / "run", kept=False))
    compared = compare(run)
    assert compared is not None
    assert not compared.kept
    at = compared.points["pag/unit"]
    assert (at["before"].step, at["after"].step) == (2000, 4000)
    assert "not kept" in str(compared.refits[0])
    assert any("same prior" in note for note in compared.notes)


def test_run_that_stopped_at_the_refit_has_no_after(tmp_path: Path) -> None:
    compared = _compare(tmp_path, ROWS[:3])
    assert "after" not in compared.points["pag/unit"]
    assert any(note == "nothing was measured after" for note in compared.notes)


def test_run_without_refit_has_no_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [_row(10, pag=1.0, stage=0), _row(20, pag=1.0, stage=0)])
    assert compare(RunFiles.load(run)) is None


def test_losses_and_bookkeeping_are_not_compared(tmp_path: Path) -> None:
    compared = _compare(tmp_path, refit_rows())
    assert {name.partition("/")[0] for name in compared.points} == {"pag", "reversal", "own", "emd"}


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_every_number_whole(tmp_path: Path, width: int) -> None:
    compared = compare(RunFiles.load(write_refit_run(tmp_path / "run")))
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    console.print(compared)
    console.file.close()
    text = console.export_text()
    assert "…" not in text
    at = compared.points["pag/unit"] if compared else {}
    for point in at.values():
        assert point.interval in text
    assert "kept" in text


def test_print_comparison_prints_it_for_a_refit_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(write_run(tmp_path / "plain"))
    assert capsys.readouterr().out == ""
    print_comparison(write_refit_run(tmp_path / "refit"))
    assert "PAG, literal" in capsys.readouterr().out


def test_a_refit_says_what_decided_whether_it_was_kept(tmp_path: Path) -> None:
    energies = {"refit/energy_before": 0.1, "refit/energy_after": 0.2}
    nats = {"refit/nll_before": 14.25, "refit/nll_after": 14.0}
    rows = [_row(10, pag=5.0, stage=0), _row(20, kept=1, stage=1) | energies]
    (refit,) = _compare(tmp_path / "energy", rows).refits
    assert "distance to held-out codes: old prior 0.1000, learned prior 0.2000" in str(refit)
    (refit,) = _compare(tmp_path / "nats", [rows[0], rows[1] | nats]).refits
    assert "held-out codes, nats: old prior 14.25, learned prior 14" in str(refit)


def _save_nll(run: Path, step: int, nll: np.ndarray, index: np.ndarray, how: str = "") -> None:
    (run / "nll").mkdir(exist_ok=True)
    path = run / "nll" / f"step={step:08d}.safetensors"
    save_file({"nll": nll, "index": index}, path, {"settings": how})


def _nll_run(path: Path, nll: np.ndarray) -> Path:
    rows = [
        {"generator_steps": 10, "nll/samples": 9.0, "prior/stage": 0},
        {"generator_steps": 20, "refit/kept": 1, "prior/stage": 1},
        {"generator_steps": 30, "nll/samples": float(nll[0].mean()), "prior/stage": 1},
    ]
    run = write_run(path / "run", rows)
    control = {"generator_steps": 30, "nll/samples": float(nll[1].mean()), "prior/stage": 0}
    write_run(run / "control", [control])
    return run


def test_an_nll_on_the_same_data_is_less_the_controls_by_a_paired_error(tmp_path: Path) -> None:
    # Images differ by 5 nats, and the two models by 0.5 on each, up to 0.1.
    rng = np.random.default_rng(0)
    control = rng.normal(100, 5, 400)
    after = control - 0.5 + rng.normal(0, 0.1, 400)
    run = _nll_run(tmp_path, np.stack([after, control]))
    shuffled = rng.permutation(400)
    _save_nll(run, 30, after, np.arange(400))
    _save_nll(run / "control", 30, control[shuffled], shuffled)
    compared = compare(RunFiles.load(run))
    assert compared is not None
    pair = compared.paired["control", "after"]
    assert pair.n == 400
    assert pair.error == pytest.approx(0.1 / 20, rel=0.1)
    assert pair.mean == pytest.approx(after.mean() - control.mean())
    expected = f"−{control.mean() - after.mean():.4f} ± {pair.error:.4f}"
    assert f"{expected} nats (a gain, " in " ".join(compared.verdict)
    assert compared.told_difference("nll/samples") == expected
    assert any("paired over the held-out data" in note for note in compared.notes)
    assert expected in write_report(run).read_text()


def test_nlls_of_other_data_or_of_damaged_files_have_no_paired_error(tmp_path: Path) -> None:
    nll = np.stack([np.arange(5.0), np.arange(5.0) + 1])
    run = _nll_run(tmp_path, nll)
    _save_nll(run, 30, nll[0], np.arange(5))
    for index in (np.arange(1, 6), np.array(3), np.array([[1]])):
        _save_nll(run / "control", 30, nll[1], index)
        compared = compare(RunFiles.load(run))
        assert compared is not None
        assert compared.paired == {}
        assert compared.told_difference("nll/samples") == "−1"
    assert any("nll/ is damaged" in note for note in compared.notes)


def test_nlls_measured_with_other_settings_are_not_paired(tmp_path: Path) -> None:
    nll = np.stack([np.arange(5.0), np.arange(5.0) + 1])
    run = _nll_run(tmp_path, nll)
    _save_nll(run, 30, nll[0], np.arange(5), "sigma=0.2, num_temperatures=300")
    _save_nll(run / "control", 30, nll[1], np.arange(5), "sigma=0.2, num_temperatures=100")
    compared = compare(RunFiles.load(run))
    assert compared is not None
    assert compared.paired == {}
    assert any("num_temperatures=100 (control) and" in note for note in compared.notes)


def test_what_is_measured_right_after_a_refit_has_a_column_and_is_compared_with_before(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(10, 5, 300)
    swapped = before - 1 + rng.normal(0, 2, 300)
    rows = [
        {"generator_steps": 20, "nll/ais": before.mean(), "fid": 5.0, "prior/stage": 1,
         "refit/kept": 1},
        {"generator_steps": 21, "nll/ais": swapped.mean(), "prior/stage": 1},
        {"generator_steps": 30, "nll/ais": swapped.mean(), "fid": 4.0, "prior/stage": 1},
    ]  # fmt: skip
    run = write_run(tmp_path / "run", rows)
    for step, nll in ((20, before), (21, swapped), (30, swapped)):
        _save_nll(run, step, nll, np.arange(300))
    compared = compare(RunFiles.load(run))
    assert compared is not None
    assert compared.points["nll/ais"].keys() == {"before", "swapped", "after"}
    assert compared.points["fid"].keys() == {"before", "after"}
    pair = compared.paired["before", "swapped"]
    assert (pair.n, pair.mean) == (300, pytest.approx(swapped.mean() - before.mean()))
    assert "With the generator as it was" in " ".join(compared.verdict)


def test_the_verdict_names_what_got_worse_and_what_cannot_be_told(tmp_path: Path) -> None:
    def row(step: int, score: float, fid: float, **more: float) -> dict[str, float]:
        ends = {"pag/posterior_low": score - 0.1, "pag/posterior_high": score + 0.1}
        return {"generator_steps": step, "pag/posterior": score, "fid": fid, **ends, **more}

    rows = [row(20, 0.30, 9.0, **{"prior/stage": 1, "refit/kept": 1}),
            row(30, 0.20, 7.5, **{"prior/stage": 1})]  # fmt: skip
    run = write_run(tmp_path / "run", rows)
    write_run(run / "control", [row(30, 0.25, 7.0)])
    said = " ".join(compare(RunFiles.load(run)).verdict)  # type: ignore[union-attr]
    assert "intervals overlap: no difference can be told" in said
    assert (
        "Worse than the control, in one run, whose error is unknown: FID, own classifier 7.5"
        in said
    )
    assert "can be believed" not in said


def test_a_control_that_misses_0_takes_the_belief_from_the_score(tmp_path: Path) -> None:
    rows = [
        {"generator_steps": step, "pag/posterior": 0.5, "own/pag_posterior": 0.4, "prior/stage": 1,
         "own/pag_posterior_low": 0.3, "own/pag_posterior_high": 0.5, "refit/kept": 1}
        for step in (20, 30)
    ]  # fmt: skip
    run = write_run(tmp_path / "run", rows)
    said = " ".join(compare(RunFiles.load(run)).verdict)  # type: ignore[union-attr]
    assert "no such PAG can be believed" in said
    assert "num_temperatures" in said
