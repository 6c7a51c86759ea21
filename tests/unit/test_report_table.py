"""Runs are grouped by what they were told, and summarised over seeds."""

import csv
import io
import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_metrics, write_refit_run, write_run

from flexgen.report import RunError, print_values, table, write_table
from flexgen.report.catalogue import mean_and_std, number
from flexgen.report.latex import latex_escape


def _run(
    root: Path, name: str, overrides: str, values: Sequence[float | str], **how: object
) -> Path:
    seed = next((int(o[5:]) for o in overrides.split() if o.startswith("seed=")), 0)
    rows = [{"generator_steps": i, "emd/samples": v} for i, v in enumerate(values, 1)]
    return write_run(root / name, rows, overrides=overrides.split(), seed=seed, **how)  # type: ignore[arg-type]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for i, model in enumerate(("gan", "lsgan", "wgan", "wgan_gp")):
        for seed in (0, 1):
            values = [9.0, 1.0 + i + 0.1 * seed]
            _run(tmp_path, str(2 * i + seed), f"model={model} data=ring8 seed={seed}", values)
    return tmp_path


def test_eight_runs_are_four_rows_with_mean_and_sample_deviation(sweep: Path) -> None:
    result = table(sweep)
    assert result.keys == ["model"]
    assert [row.settings["model"] for row in result.rows] == ["gan", "lsgan", "wgan", "wgan_gp"]
    assert [row.seeds for row in result.rows] == [(0, 1)] * 4
    cells = [row.cells["emd/samples"] for row in result.rows]
    np.testing.assert_allclose([cell.mean for cell in cells], [1.05, 2.05, 3.05, 4.05])
    np.testing.assert_allclose([cell.std for cell in cells], math.sqrt(0.005))  # ddof = 1


def test_shared_settings_stand_in_the_caption(sweep: Path) -> None:
    text = table(sweep).text()
    assert "data=ring8" in text
    assert "1.050 ± 0.071" in text
    assert len([line for line in text.splitlines() if line.split()[-1:] == ["2"]]) == 4


def test_figures_of_seeds_alone_or_of_long_settings_are_not_cut(tmp_path: Path) -> None:
    sizes = "data=ring8 data.num_train=640 data.num_validation=200 data.num_test=100 lr=0.001"
    for seed in (0, 1):
        _run(tmp_path, f"a{seed}", f"{sizes} seed={seed}", [1.0])
    text = table(tmp_path).text(width=60)
    assert "EMD ↓" in text
    assert "1 ± 0" in text
    for seed in (0, 1):
        _run(tmp_path, f"b{seed}", f"{sizes} data.root={'a' * 50} seed={seed}", [2.0])
    text = table(tmp_path).text(width=60)
    assert "2 ± 0" in text
    assert f"data.root={'a' * 50}" in text.rpartition("2: ")[2].replace("\n", "")
    assert max(map(len, text.splitlines())) <= 60


def test_settings_that_differ_are_one_column_under_their_short_keys(tmp_path: Path) -> None:
    for i, words in enumerate(("model.critic.lr=0.1 prior=a", "model.critic.lr=0.2 prior=b")):
        _run(tmp_path, str(i), f"{words} seed=0", [1.0 + i])
    lines = [line.split() for line in table(tmp_path).text().splitlines()]
    assert ["lr,", "prior", "EMD", "↓", "n"] in lines
    assert ["0.1,", "a", "*", "1", "1"] in lines
    assert ["0.2,", "b", "2", "1"] in lines


def test_the_best_mean_is_marked_by_the_direction_of_its_metric(sweep: Path) -> None:
    for i, run in enumerate(sorted(sweep.iterdir())):
        write_metrics(run, [{"generator_steps": 1, "emd/samples": i, "modes/captured": i}])
        (run / "metrics.json").unlink()
    result = table(sweep)
    assert result.best("emd/samples") == [True, False, False, False]
    assert result.best("modes/captured") == [False, False, False, True]
    assert r"\mathbf" in result.latex()


def test_a_prior_over_another_base_is_named_and_told(tmp_path: Path) -> None:
    uniform = {"_target_": "flexgen.priors.Uniform"}
    kinds = {
        "normal": {"_target_": "flexgen.priors.Normal"},
        "masked": {"_target_": "flexgen.priors.Masked", "base": uniform},
    }
    for i, (name, prior) in enumerate(kinds.items()):
        config = {"model": {"prior": prior}}
        _run(tmp_path, str(i), f"prior={name} seed=0", [1.0 + i], config=config)
    result = table(tmp_path)
    assert [row.settings["prior"] for row in result.rows] == ["normal", "masked on uniform"]
    assert any("two changes" in n and "prior@base=normal" in n for n in result.notes)
    _run(tmp_path, "2", "prior=uniform seed=0", [3.0], config={"model": {"prior": uniform}})
    assert not any("two changes" in note for note in table(tmp_path).notes)


def test_how_a_run_was_trained_is_no_setting(tmp_path: Path) -> None:
    for i, words in enumerate(("threads=1", "logger=[csv,wandb] trainer=gpu", "trainer.devices=2")):
        _run(tmp_path, str(i), f"model=gan {words} seed={i}", [1.0])
    assert [row.settings for row in table(tmp_path).rows] == [{"model": "gan"}]
    _run(tmp_path, "3", "model=gan trainer.precision=bf16-mixed seed=0", [1.0])
    assert table(tmp_path).keys == ["trainer.precision"]


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    result = table(_run(tmp_path, "a", "model=gan seed=0", [1.5]))
    cell = result.rows[0].cells["emd/samples"]
    assert math.isnan(cell.std)
    assert "±" not in result.text().replace("Mean ±", "")
    assert "One run has no deviation." in result.caption
    line = next(csv.DictReader(io.StringIO(result.csv())))
    assert line["emd/samples std"] == ""
    assert line["emd/samples mean"] == "1.5"
    assert line["n"] == "1"


def test_last_takes_the_mean_of_the_last_evaluations(tmp_path: Path) -> None:
    _run(tmp_path, "0", "seed=0", [9.0, 1.0, 3.0])
    _run(tmp_path, "1", "seed=1", [9.0, 2.0, 4.0])
    cell = table(tmp_path, last=2).rows[0].cells["emd/samples"]
    assert cell.values == (2.0, 3.0)
    assert cell.spread == pytest.approx(math.sqrt(2))


def test_run_with_fewer_evaluations_than_asked_is_said(tmp_path: Path) -> None:
    result = table(_run(tmp_path, "0", "seed=0", [1.0, 3.0]), last=5)
    assert any("2 of 5 evaluations" in note for note in result.notes)


def test_unfinished_and_unreadable_runs_are_listed_and_in_no_mean(sweep: Path) -> None:
    _run(sweep, "8", "model=gan data=ring8 seed=2", [100.0], finished=False)
    write_metrics(_run(sweep, "9", "model=gan data=ring8 seed=3", [], finished=False), [])
    (sweep / "10/.hydra").mkdir(parents=True)
    result = table(sweep)
    assert result.rows[0].cells["emd/samples"].mean == pytest.approx(1.05)
    listed = "\n".join(result.left_out)
    assert "unfinished at generator step 1" in listed
    assert "9: has no metrics" in listed
    assert "10: is not a run directory" in listed
    assert "unfinished" in result.text()
    assert "unfinished" in result.latex()


def test_group_of_unfinished_runs_alone_keeps_its_row(sweep: Path) -> None:
    _run(sweep, "8", "model=new data=ring8 seed=0", [100.0], finished=False)
    row = table(sweep).rows[-1]
    assert row.settings["model"] == "new"
    assert row.runs == ()
    assert row.cells["emd/samples"].count == 0
    table(sweep).latex()


def test_runs_without_overrides_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for seed in (0, 1):
            _run(tmp_path, f"{name}{seed}", f"seed={seed}", [1.0], config={"name": name})
    result = table(tmp_path)
    assert [(row.settings["name"], len(row.runs)) for row in result.rows] == [("a", 2), ("b", 2)]


def test_override_that_a_run_lacks_comes_from_its_configuration(tmp_path: Path) -> None:
    _run(tmp_path, "0", "latent_dim=2 seed=0", [1.0])
    _run(tmp_path, "1", "model.lr=1e-3 seed=1", [2.0])
    _run(tmp_path, "2", "model=gan seed=1", [3.0])
    result = table(tmp_path)
    assert [row.settings for row in result.rows] == [
        {"latent_dim": "2", "model.lr": "0.001", "model": "default"},
        {"latent_dim": "2", "model.lr": "0.001", "model": "gan"},
    ]
    assert len(result.rows[0].runs) == 2


def test_prefixes_of_overrides_are_no_part_of_the_key(tmp_path: Path) -> None:
    _run(tmp_path, "0", "+extra=1 ~callbacks.reversal seed=0", [1.0])
    assert table(tmp_path).rows[0].settings == {"extra": "1", "callbacks.reversal": "removed"}


def test_where_a_run_writes_is_no_setting(tmp_path: Path) -> None:
    for seed in (0, 1):
        overrides = f"model=gan seed={seed} paths.run_dir=x{seed} hydra.job.num={seed}"
        _run(tmp_path, str(seed), overrides, [1.0])
    (row,) = table(tmp_path).rows
    assert row.settings == {"model": "gan"}


def test_refits_of_two_seeds_are_one_row_with_the_settings_of_their_parents(tmp_path: Path) -> None:
    for model in ("gan", "wgan"):
        for seed in (0, 1):
            parent = _run(tmp_path, f"{model}{seed}", f"model={model} seed={seed}", [2.0])
            child = _run(tmp_path / "refits", f"{model}{seed}", f"run={parent} prior=nsf", [1.0])
            about = json.loads((child / "provenance.json").read_text())
            about |= {"command": "refit", "seed": seed, "parent": {"run": str(parent)}}
            (child / "provenance.json").write_text(json.dumps(about))
    result = table(tmp_path / "refits")
    assert [(row.settings, row.seeds) for row in result.rows] == [
        ({"model": "gan", "refit:prior": "nsf"}, (0, 1)),
        ({"model": "wgan", "refit:prior": "nsf"}, (0, 1)),
    ]


def test_same_seed_twice_is_said(tmp_path: Path) -> None:
    _run(tmp_path, "0", "model=gan seed=0", [1.0])
    _run(tmp_path, "1", "model=gan seed=0", [1.0])
    assert any("a seed appears twice" in note for note in table(tmp_path).notes)


def test_same_run_named_twice_counts_once(sweep: Path) -> None:
    assert len(table([sweep, sweep / "0"]).rows[0].runs) == 2


def test_nan_is_shown_and_said_not_dropped(tmp_path: Path) -> None:
    _run(tmp_path, "0", "model=gan seed=0", [1.0, "nan"])
    _run(tmp_path, "1", "model=gan seed=1", [1.0, 2.0])
    result = table(tmp_path)
    assert math.isnan(result.rows[0].cells["emd/samples"].mean)
    assert any("not defined: EMD: it was measured as NaN" in note for note in result.notes)
    assert "not defined" in result.text()
    assert " not defined " in result.latex()
    assert result.plot(tmp_path / "nan.png").stat().st_size > 1000


def test_metric_of_some_runs_says_of_how_many(tmp_path: Path) -> None:
    _run(tmp_path, "0", "seed=0", [1.0], final={"fid": 8.0})
    _run(tmp_path, "1", "seed=1", [1.0])
    result = table(tmp_path, metrics=["fid", "emd/samples"])
    assert result.rows[0].cells["fid"].values == (8.0,)
    assert "(n=1)" in result.text()


def test_metrics_are_chosen_by_name_and_glob_in_that_order(tmp_path: Path) -> None:
    final = {"modes/captured": 8.0, "modes/high_quality": 0.9, "fid": 1.0, "other": 2.0}
    path = _run(tmp_path, "0", "seed=0", [1.0], final=final)
    assert table(path, metrics=["other", "modes/*"]).metrics == (
        "other",
        "modes/captured",
        "modes/high_quality",
    )
    assert table(path).metrics == ("emd/samples", "fid", "modes/captured", "modes/high_quality")


def test_unknown_metric_names_the_nearest(sweep: Path) -> None:
    with pytest.raises(ValueError, match="got 'emd/sample'; the nearest is `emd/samples`"):
        table(sweep, metrics=["emd/sample"])


@pytest.mark.parametrize("last", [0, -1])
def test_last_below_one_is_refused(sweep: Path, last: int) -> None:
    with pytest.raises(ValueError, match=f"`last` must be a whole .*, got {last}"):
        table(sweep, last=last)


def test_no_readable_run_is_an_error_that_says_why(tmp_path: Path) -> None:
    write_metrics(_run(tmp_path, "0", "seed=0", [], finished=False), [])
    with pytest.raises(RunError, match=r"no run can be read; .*has no metrics"):
        table(tmp_path)


def test_comparison_has_a_row_for_before_after_and_control_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_refit_run(tmp_path / str(seed), overrides=[f"seed={seed}"], seed=seed)
    result = table(tmp_path, comparison=True)
    assert [(row.settings["when"], len(row.runs)) for row in result.rows] == [
        ("before", 2),
        ("after", 2),
        ("control", 2),
        ("after − control", 2),
    ]
    before, after, control, less = (row.cells["pag/unit"].mean for row in result.rows)
    assert after < control < before
    assert less == pytest.approx(after - control)


def test_comparison_without_any_refit_is_an_error(sweep: Path) -> None:
    with pytest.raises(RunError, match="no run here has a prior refit"):
        table(sweep, comparison=True)


def test_csv_holds_every_setting_in_full_precision(sweep: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(table(sweep).csv())))
    assert [line["data"] for line in lines] == ["ring8"] * 4
    assert float(lines[0]["emd/samples std"]) == pytest.approx(math.sqrt(0.005), rel=1e-12)
    assert lines[0]["seeds"] == "0 1"


def test_latex_is_booktabs_with_its_special_characters_escaped(sweep: Path) -> None:
    text = table(sweep).latex()
    assert r"wgan\_gp & 2 & $4.050 \pm 0.071$ \\" in text
    assert r"EMD $\downarrow$" in text
    for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrc}"):
        assert line in text


def test_latex_escape_covers_every_special_character() -> None:
    assert latex_escape(r"a_b%c$d&e#f{g}h~i^j\k") == (
        r"a\_b\%c\$d\&e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )
    assert latex_escape("a\nb") == "a b"
    assert latex_escape("−σ é") == r"$-$$\sigma$ é"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_and_fits_a_page(tmp_path: Path) -> None:
    awkward = "'[{_target_: my_pkg.Net, sizes: [64, 64]}, 50%]&#$~^|<>\"β−σ'"
    final = {"nll/ais": 3.0, "my_metric/with_under_scores": 2e-7, "fid": math.nan, "inf_one": -1e9}
    for i, words in enumerate(("prior=masked", f"+x={awkward}", "prior=a_b")):
        _run(tmp_path, str(i), f"{words} seed=0".replace(", ", ","), [1.5 + i], final=final)
    text = table(tmp_path, metrics=["*"]).latex()
    assert "begin{tabular}" in text
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text("\n".join([document, text, r"\end{document}"]))
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "t.tex"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Overfull" not in made.stdout


def test_latex_writes_powers_of_ten(tmp_path: Path) -> None:
    _run(tmp_path, "0", "seed=0", [2.5e-7])
    assert r"$2.500 \times 10^{-7}$" in table(tmp_path).latex()


def test_narrow_terminal_gets_whole_numbers_in_blocks(tmp_path: Path) -> None:
    final = {"modes/captured": 8.0, "modes/high_quality": 0.9, "fid": 123.4, "kid": 0.5}
    for seed in (0, 1):
        _run(tmp_path, str(seed), f"model=gan seed={seed}", [1.0], final=final)
    text = table(tmp_path).text(width=60)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("High-quality") == 1


def test_save_writes_text_csv_latex_and_a_plot(sweep: Path, tmp_path: Path) -> None:
    files = table(sweep).save(tmp_path / "new/folder")
    assert [file.name for file in files] == ["table.txt", "table.csv", "table.tex", "table.png"]
    assert files[-1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (8.0, "8"),
        (0.5, "0.5000"),
        (1.23456, "1.235"),
        (10160.4, "10160"),
        (1.5e-7, "1.500e-07"),
        (2.5e9, "2.500e+09"),
        (math.nan, "not defined"),
        (-math.inf, "-inf"),
    ],
)
def test_number_keeps_four_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.10312, 0.01234, ("0.103", "0.012")),
        (10160.0, 391.0, ("10160", "391")),
        (1.0, math.nan, ("1", "")),
        (1.5, 0.0, ("1.500", "0")),
        (123.4, 1e-9, ("123.400", "0.000")),
        (math.nan, math.nan, ("not defined", "")),
    ],
)
def test_mean_and_deviation_share_their_decimals(
    mean: float, std: float, text: tuple[str, str]
) -> None:
    assert mean_and_std(mean, std) == text


def test_write_table_prints_and_saves_beside_the_first_path(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_table([sweep])
    assert files[0] == sweep / "table.txt"
    out = capsys.readouterr().out
    assert "wgan_gp" in out
    assert f"table: {sweep}" in out.replace("\n", "")


def test_print_values_puts_an_interval_beside_its_metric(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_values({"pag/unit": 0.5, "pag/unit_low": 0.25, "pag/unit_high": 1.0, "fid": 3.0}, "step")
    out = capsys.readouterr().out
    assert "[0.250, 1]" in out
    assert "unit_low" not in out
    assert "FID" in out


def test_print_values_says_why_a_value_is_not_defined(capsys: pytest.CaptureFixture[str]) -> None:
    print_values({"elbo/kl": math.nan, "elbo/bound": math.nan, "posterior/correlation": math.nan})
    out = " ".join(capsys.readouterr().out.split())
    assert "not defined: ELBO, KL of posteriors: the density of the prior in use is not norm" in out
    assert "not defined: Correlation: all data or all codes are equal" in out
