"""The page holds its figures, needs nothing from outside, and lets nothing in a run act in it."""

import base64
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import refit_rows, write_metrics, write_png, write_refit_run, write_run

from flexgen.metrics_table import COUNTERS
from flexgen.report import RunError, RunFiles, table, write_report, write_reports
from flexgen.report.chart import Chart, Line, ticks
from flexgen.report.curves import Curve
from flexgen.report.pairs import Pair, pairs_page
from flexgen.report.sweep_charts import over_seeds
from flexgen.report.templating import render


class Page(HTMLParser):
    """The elements of a page: (name, attributes) in order, and the text inside scripts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside: str = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.text += data

    def figures(self, metric: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if attrs.get("data-metric") == metric]

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.elements if found == name]

    @property
    def data(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.scripts[0])
        return content


def _page(run: Path) -> Page:
    return Page(write_report(run))


def test_figures_carry_before_after_and_control_with_their_interval(tmp_path: Path) -> None:
    page = _page(write_refit_run(tmp_path / "run"))
    data = page.data["comparison"]["pag/unit"]
    for when in ("before", "after", "control"):
        (found,) = [f for f in page.figures("pag/unit") if f.get("data-when") == when]
        assert float(found["data-value"] or "") == data[when]["value"]
        assert float(found["data-low"] or "") == data[when]["low"]
        assert int(found["data-step"] or "") == data[when]["step"]


def test_final_values_stand_in_a_page_without_refit(tmp_path: Path) -> None:
    rows = [{"generator_steps": t, "fid": 20.0 - t, "loss/critic": 0.1 * t} for t in (1, 2, 3)]
    page = _page(write_run(tmp_path / "run", rows))
    assert {f["data-value"] for f in page.figures("fid")} == {"17.0"}
    assert page.data["final"]["fid"] == 17.0
    assert page.data["comparison"] == {}
    assert page.data["curves"]["run"]["fid"]["values"] == [19.0, 18.0, 17.0]


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    page = _page(write_refit_run(tmp_path / "run"))
    for name, attrs in page.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attrs.get(key) or "#"
            assert value.startswith(("data:image/png;base64,", "#")), (name, key, value[:60])
    style = (tmp_path / "run/report.html").read_text()
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        [{"generator_steps": t, HOSTILE: float(t)} for t in (1, 2)],
        overrides=[f"model={HOSTILE}"],
        config={"name": HOSTILE, "evil": HOSTILE, "steps": HOSTILE},
    )
    provenance = json.loads((run / "provenance.json").read_text())
    provenance |= {"commit": HOSTILE, "machine": {HOSTILE: HOSTILE}, "started": HOSTILE}
    (run / "provenance.json").write_text(json.dumps(provenance))
    write_png(run / f"images/{HOSTILE.replace('/', '')}/step=00000001.png")
    page = _page(run)
    assert len(page.all("script")) == 2
    assert len(page.all("img")) == 1
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert HOSTILE in page.text
    assert page.data["name"] == HOSTILE
    assert page.data["final"] == {HOSTILE: 2.0}


def test_nan_and_infinity_are_shown_and_are_null_in_the_data(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"generator_steps": 1, "pag/unit": 2.0, "fid": 1.0},
        {"generator_steps": 2, "pag/unit": "nan", "fid": "inf"},
    ]
    run = write_run(tmp_path / "run", rows, finished=False)
    page = _page(run)
    assert page.data["curves"]["run"]["pag/unit"]["values"] == [2.0, None]
    assert page.data["final"]["fid"] is None
    assert {f["data-value"] for f in page.figures("fid")} == {"inf"}
    assert "Not defined: PAG by descent: it was measured as NaN" in page.text
    assert list(page.data["undefined"]) == ["pag/unit"]
    assert "×" in page.text


def test_page_without_images_codes_or_control_leaves_their_sections_out(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path / "run"))
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections == ["result", "configuration", "provenance"]
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#{name}" for name in sections]


def test_refit_without_control_and_not_kept_are_said(tmp_path: Path) -> None:
    page = _page(write_refit_run(tmp_path / "run", kept=False, control=False))
    assert "was not kept" in page.text
    assert "No control run" in page.text
    assert not [f for f in page.figures("pag/unit") if f.get("data-when") == "control"]


def test_unfinished_run_is_said(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path / "run", finished=False))
    assert "This run is unfinished at generator step 10 of 100." in page.text


def test_configuration_command_provenance_and_codes_are_there(tmp_path: Path) -> None:
    run = write_refit_run(tmp_path / "run", overrides=["experiment=demo", "x=[1, 2]"])
    page = _page(run)
    assert "flexgen train experiment=demo 'x=[1, 2]'" in page.text
    assert (run / "config.yaml").read_text() in page.text
    assert "3 min 20 s" in page.text
    assert "torch 2.15.0" in page.text
    assert "n 3, optimiser adam, sigma 1.0, space base, steps 300" in page.text


def test_images_over_time_keep_first_last_refit_and_control(tmp_path: Path) -> None:
    run = write_refit_run(tmp_path / "run")
    for step in range(2020, 4000, 20):
        write_png(run / f"images/samples/step={step:08}.png")
    page = _page(run)
    shown = [
        img["alt"] or "" for img in page.all("img") if (img["alt"] or "").startswith("Samples")
    ]
    assert len(shown) == 9
    assert shown[0] == "Samples, step 500"
    assert "Samples, step 2000" in shown
    assert shown[-2:] == ["Samples, step 4000", "Samples, control, step 4000"]
    assert "8 of 104 steps shown" in page.text


def test_broken_codes_do_not_break_the_page(tmp_path: Path) -> None:
    run = write_refit_run(tmp_path / "run")
    (run / "codes/step=00004000.safetensors").write_bytes(b"cut")
    assert "cannot be read" in _page(run).text


def test_report_is_replaced_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    before = set(run.iterdir())
    assert write_report(run) == run / "report.html"
    assert set(run.iterdir()) == before
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_several_runs_get_a_page_each_though_one_is_broken(tmp_path: Path) -> None:
    good = [write_run(tmp_path / "a"), write_run(tmp_path / "c")]
    broken = write_run(tmp_path / "b")
    (broken / "config.yaml").write_text("a: [1")
    with pytest.raises(RunError, match=r"b: config\.yaml is corrupt"):
        write_reports([good[0], broken, good[1]])
    assert all((run / "report.html").is_file() for run in good)
    assert write_reports(good) == [run / "report.html" for run in good]


def test_folder_of_runs_gets_an_index_that_links_and_lists(tmp_path: Path) -> None:
    for seed in (0, 1):
        rows = [{"generator_steps": 1, "fid": 1.0 + seed}]
        write_run(tmp_path / f"m/{seed}", rows, overrides=["model=gan", f"seed={seed}"], seed=seed)
    write_metrics(write_run(tmp_path / "m/2", finished=False), [])
    pages = write_reports(tmp_path / "m")
    assert pages == [tmp_path / "m" / name / "report.html" for name in ("", "0", "1")]
    page = Page(pages[0])
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["0/report.html", "1/report.html"]
    assert [f["data-value"] for f in page.figures("fid")] == ["1.5"]
    assert page.data["rows"][0]["fid"]["std"] == pytest.approx(math.sqrt(0.5))
    assert "has no metrics" in page.text


def test_a_sweeps_page_has_curves_with_bands_dot_plots_and_its_table(tmp_path: Path) -> None:
    for i, (prior, seed) in enumerate((p, s) for p in ("normal", "uniform") for s in (0, 1)):
        rows = [{"generator_steps": s, "emd/samples": 85 + i / 10 - s} for s in (10, 20)]
        write_run(tmp_path / str(i), rows, overrides=[f"prior={prior}", f"seed={seed}"], seed=seed)
    page = Page(write_reports(tmp_path)[0])
    drawn = page.data["grouped"]["0"]
    assert drawn["normal"]["emd/samples"] == {"generator_steps": [10, 20], "values": [75.05, 65.05]}
    assert any("the table as a picture" in str(image["alt"]) for image in page.all("img"))
    dots = [str(i["style"]) for i in page.all("i") if i.get("class") == "dot"]
    places = [float(style.removeprefix("left:").rstrip("%")) for style in dots]
    assert len(places) == 2
    assert places[1] - places[0] > 40  # of an axis that does not begin at 0
    assert len(page.all("polygon")) == 2  # a band of each group


def test_a_band_is_one_deviation_around_the_mean_of_the_runs_that_were_measured() -> None:
    line = over_seeds([_curve([1.0, 2.0]), _curve([3.0])], "series-0")
    np.testing.assert_allclose(line.values, [2.0, 2.0])
    assert line.low is not None
    assert line.high is not None
    np.testing.assert_allclose(line.high - line.low, [2 * math.sqrt(2), 0.0])


def test_the_loss_of_a_vae_has_its_name_and_nll_its_error(tmp_path: Path) -> None:
    values = {"nll/samples": 85.0, "nll/standard_error": 0.25, "loss/generator": 90.0}
    rows = [{"generator_steps": s, **values} for s in (1, 2)]
    config = {"model": {"_target_": "flexgen.models.VAE", "importance_samples": 1}}
    page = Page(write_report(write_run(tmp_path / "run", rows, config=config)))
    assert "−ELBO, training" in page.text
    assert "Generator loss" not in page.text
    assert "± 0.25 (standard error)" in page.text
    assert any("lower is better" in str(about["title"]) for about in page.all("abbr"))


def test_a_comparison_is_drawn_where_a_standard_error_alone_is_known(tmp_path: Path) -> None:
    def rows(control: bool) -> list[dict[str, float | str]]:
        nll = {"nll/samples": 85.0, "nll/standard_error": 0.25}
        return [row | nll if "pag/unit" in row else row for row in refit_rows(control=control)]

    write_run(tmp_path / "run", rows(False))
    write_run(tmp_path / "run/control", rows(True))
    page = Page(write_report(tmp_path / "run"))
    assert "± 0.25" in page.text
    assert any(i.get("class") == "dot" for i in page.all("i"))


def test_emd_of_images_below_its_floor_is_no_headline(tmp_path: Path) -> None:
    values = {"emd/samples": 2.9, "emd/floor": 3.0, "fid": 9.0}
    config = {"data": {"shape": [1, 8, 8]}}
    run = write_run(tmp_path / "run", [{"generator_steps": 1, **values}], config=config)
    result = table(run)
    assert result.metrics == ("fid",)
    assert "EMD is left out" in result.notes[0]
    assert table(run, metrics=["emd/samples"]).metrics == ("emd/samples",)
    page = Page(write_report(run))
    named = [e for e in page.elements if e[1].get("class") in ("tile", "wide")]
    assert [attributes["class"] for _, attributes in named] == ["tile", "wide"]  # FID's alone


def _curve(values: Any) -> Curve:
    values = np.asarray(values, dtype=float)
    steps = 10 * np.arange(1, len(values) + 1)
    return Curve(values, np.arange(len(values)), dict.fromkeys(COUNTERS, steps))


def _svg(*curves: Any) -> ElementTree.Element:
    lines = [Line.of(_curve(values), "series-0") for values in curves]
    return ElementTree.fromstring(_chart(lines))


def _chart(lines: list[Line], label: str = "x") -> str:
    return render("chart.svg", chart=Chart(lines, label=label, metrics=[label], marks=[(1, label)]))


def test_line_passes_through_its_values() -> None:
    path, dots = _svg([1.0, 3.0, 2.0]).iter("path")
    assert dots.attrib["d"].replace("h0", "").replace("M", " ").split() == (
        path.attrib["d"][1:].split()
    )
    points = np.array([p.split(",") for p in path.attrib["d"][1:].split()], dtype=float)
    np.testing.assert_allclose(np.diff(points[:, 0]), points[1, 0] - points[0, 0])
    heights = points[:, 1]
    assert (heights[0] - heights[2]) / (heights[0] - heights[1]) == pytest.approx(0.5, abs=0.01)
    assert heights[1] < heights[0]  # larger is higher on the screen


def test_line_is_broken_at_nan_and_the_loss_is_marked() -> None:
    svg = _svg([1.0, 2.0, math.nan, 2.0, math.inf])
    assert [path.attrib["class"] for path in svg.iter("path")] == ["line", "line", "dots"]
    assert [t.text for t in svg.iter("text")].count("×") == 2
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")


def test_long_curve_is_binned_with_its_extremes_as_band() -> None:
    values = np.sin(np.arange(1000.0))
    values[500] = 50.0
    line = Line.of(_curve(values))
    assert line.binned
    assert len(line.values) == 150
    assert line.high is not None
    assert line.high.max() == 50.0
    assert line.values.mean() == pytest.approx(values.mean(), abs=0.02)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-5, 1e-5], [-3.0, -3.0], [1.0, 1e6], [5.0]])
def test_flat_and_wide_ranges_can_be_drawn(values: list[float]) -> None:
    assert re.search(r'd="M[\d., ]+"', ElementTree.tostring(_svg(values), encoding="unicode"))


def test_curve_of_nan_alone_says_so() -> None:
    assert "No finite value" in _chart([Line.of(_curve([math.nan]))])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 5000, [0, 1000, 2000, 3000, 4000, 5000]), (-0.1, 0.1, [-0.1, -0.05, 0, 0.05, 0.1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


def test_hostile_text_stays_text_in_an_index(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m" / "0", overrides=[f"model={HOSTILE}"])
    write_png(run / "images/samples/step=00000001.png")
    page = Page(write_reports(tmp_path / "m")[0])
    assert len(page.all("script")) == 2
    assert len(page.all("img")) == 1
    assert f"model={HOSTILE}" in page.text


def test_hostile_text_stays_text_among_pairs(tmp_path: Path) -> None:
    pair = Pair(write_png(tmp_path / "a.png").read_bytes(), HOSTILE, 1.0, converged=False)
    path = tmp_path / "pairs.html"
    path.write_text(pairs_page(HOSTILE, [(HOSTILE, HOSTILE)], {HOSTILE: [pair]}))
    page = Page(path)
    assert len(page.all("script")) == 2
    assert len(page.all("img")) == 1
    assert page.text.count(HOSTILE) == 6  # both titles, both sides of the fact, section, pair
    assert page.data["facts"] == {HOSTILE: HOSTILE}


def test_hostile_text_stays_text_in_a_chart() -> None:
    svg = ElementTree.fromstring(_chart([Line.of(_curve([1.0, 2.0]))], label=HOSTILE))
    assert svg.attrib["aria-label"] == svg.attrib["data-metrics"] == HOSTILE
    assert HOSTILE in [text.text for text in svg.iter("text")]


@pytest.mark.parametrize("part", ["style", "script"])
def test_policy_allows_the_script_of_the_page_alone(tmp_path: Path, part: str) -> None:
    path = write_report(write_run(tmp_path / "run"))
    page, text = Page(path), path.read_text(encoding="utf-8")
    (policy,) = [m["content"] or "" for m in page.all("meta") if "http-equiv" in m]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "&#" not in text.split(f"<{part}>")[1].split(f"</{part}>")[0]  # what is ours is whole


def test_run_reports_after_a_control_that_has_nothing_yet(tmp_path: Path) -> None:
    run = write_refit_run(tmp_path / "run", control=False)
    (run / "control").mkdir()
    assert RunFiles.load(run).control is None
    assert "control left out" in _page(run).text
