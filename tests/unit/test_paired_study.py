"""experiments/paired.py: differences over seeds, from values and from runs."""

import runpy
import sys
from pathlib import Path

import pytest
from report_runs import write_run

SCRIPT = Path(__file__).parents[2] / "experiments" / "paired.py"


def paired(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["paired.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_seeds_are_paired_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tmp_path / "values.csv"
    values.write_text(
        "prior,seed,epoch,nll\nmasked,2,9,13\nmasked,0,9,1\nmasked,1,9,22\nmasked,7,9,50\n"
        "normal,0,9,0\nnormal,1,9,20\nnormal,2,9,10\nnormal,0,1,99\n"
    )
    words = [values, "--metric", "nll", "--by", "prior", "--base", "normal"]
    paired(monkeypatch, *words, "--where", "epoch=9")
    # Differences 1, 2, 3: mean 2, s.e. 1/√3, t = 2√3 with 2 degrees of freedom, p = 0.0742;
    # of the 8 sign patterns 2 are as far out.
    told = capsys.readouterr().out
    assert told.startswith("masked less normal: +2 ± 0.58 ")
    assert "n = 3, below 0 in 0; t = 3.46, p = 0.074, of signs 0.25" in told
    with pytest.raises(SystemExit):
        paired(monkeypatch, *words)
    assert "seed 0 of normal stands twice" in capsys.readouterr().err


def test_runs_give_a_line_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for prior, low in (("uniform", 2.0), ("masked", 1.0)):
        for seed in (3, 4):
            rows = [{"generator_steps": i, "emd/samples": low * seed + i} for i in (1, 2)]
            overrides = [f"prior={prior}", f"seed={seed}"]
            write_run(tmp_path / f"{prior}{seed}", rows, overrides=overrides, seed=seed)
    out = tmp_path / "values.csv"
    words = ["--metric", "emd/samples", "--last", "2", "--by", "prior", "--base", "uniform"]
    paired(monkeypatch, tmp_path, *words, "--csv", out)
    assert capsys.readouterr().out.startswith("masked less uniform: -3.5 ± 0.5 ")
    assert sorted(out.read_text().splitlines()) == [
        "masked,3,4.5", "masked,4,5.5", "prior,seed,emd/samples", "uniform,3,7.5", "uniform,4,9.5"
    ]  # fmt: skip
