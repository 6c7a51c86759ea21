"""The table of several priors: its numbers, its interval, what failed, its picture."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flexgen.report import PriorRow, PriorTable

VALUES = (3.0, 3.5, 2.5, 3.1)


@pytest.fixture
def table() -> PriorTable:
    return PriorTable.of(
        [
            PriorRow("data (floor)", [{"emd/samples": 2.0}, {"emd/samples": 2.2}], is_data=True),
            PriorRow("normal", [{"emd/samples": v} for v in VALUES]),
            PriorRow("gaussian", [{"emd/samples": v - 1, "pag/fit": 7.0} for v in VALUES[:1]]),
            PriorRow("flow", [], failed="zuko is not installed"),
        ],
        "About it.",
    )


def test_mean_deviation_and_students_interval(table: PriorTable) -> None:
    rows = {row["prior"]: row for row in csv.DictReader(io.StringIO(table.csv()))}
    mean, sem = np.mean(VALUES), stats.sem(VALUES)
    low, high = stats.t.interval(0.95, df=3, loc=mean, scale=sem)
    for name, expected in (
        ("mean", mean), ("std", np.std(VALUES, ddof=1)), ("low", low), ("high", high)
    ):  # fmt: skip
        assert float(rows["normal"][f"emd/samples {name}"]) == pytest.approx(expected)
    assert rows["gaussian"]["emd/samples std"] == rows["gaussian"]["emd/samples low"] == ""
    assert rows["gaussian"]["pag/fit n"] == "1"
    factor = (high - mean) / np.std(VALUES, ddof=1)
    assert f"mean over 4 is ± {factor:.2f} of that" in table.caption


def test_what_failed_is_told_everywhere(table: PriorTable) -> None:
    assert "Not measured: flow: zuko is not installed" in table.text()
    assert "zuko is not installed" in table.latex()
    assert "flow,0,zuko is not installed" in table.csv()


def test_every_set_is_kept(table: PriorTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.sets())))
    assert [(r["prior"], r["seed"]) for r in rows][1:3] == [("data (floor)", "1"), ("normal", "0")]
    assert [float(r["emd/samples"]) for r in rows if r["prior"] == "normal"] == list(VALUES)


def test_the_files(table: PriorTable, tmp_path: Path) -> None:
    names = {path.name for path in table.save(tmp_path / "new", "compare")}
    endings = ("txt", "csv", "tex", "png")
    assert names == {f"compare.{e}" for e in endings} | {"compare_sets.csv"}
    assert (tmp_path / "new" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert all((tmp_path / "new" / name).stat().st_size for name in names)


def test_a_floor_alone_can_be_saved(tmp_path: Path) -> None:
    floor = PriorRow("data (floor)", [{"emd/samples": 2.0}], is_data=True)
    PriorTable.of([floor, PriorRow("flow", [], failed="why")], "").save(tmp_path)
