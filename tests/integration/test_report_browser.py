"""A real browser reads the figures of a report, draws it, and asks for nothing."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from report_runs import write_refit_run, write_run

from flexgen.report import RunFiles, compare, write_report, write_reports

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs the `chromium` browser, which is not installed"
)

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_refit_run(
        tmp_path_factory.mktemp("browser") / "run", config={"evil": "</pre><script>evil()</script>"}
    )
    return write_report(run)


@pytest.fixture(scope="module")
def dom(report: Path) -> str:
    return _chromium(report, "--dump-dom")


def _chromium(page: Path, *options: str) -> str:
    profile = page.parent.parent / "profile"
    done = subprocess.run(
        ["chromium", *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("when", ["before", "after", "control"])
def test_browser_shows_the_figures_of_the_run(report: Path, dom: str, when: str) -> None:
    compared = compare(RunFiles.load(report.parent))
    assert compared is not None
    for metric in ("pag/unit", "emd/samples"):
        found = re.findall(rf'<span data-metric="{metric}"[^>]*data-when="{when}"[^>]*>', dom)
        values = [re.search(r'data-value="([^"]+)"', element) for element in found]
        expected = compared.points[metric][when].value
        assert [float(value[1]) for value in values if value] == [expected]


def test_browser_ran_the_script_and_found_the_data(dom: str) -> None:
    assert "<dialog aria-label=" in dom  # made by the page's script alone
    content = re.search(r'id="flexgen-data">(.*?)</script>', dom, re.S)
    assert content is not None
    data = json.loads(html.unescape(content[1]))
    assert data["refits"][0]["kept"] is True
    assert len(re.findall(r'<svg[^>]*class="chart"', dom)) >= 8
    assert len(re.findall(r'<div class="tip"', dom)) >= 8


def test_browser_runs_no_script_but_the_pages_own(dom: str) -> None:
    assert len(re.findall(r"<script", dom)) == 2
    assert not re.search(r"""\s(?:src|href|action|srcset|poster)=["'](?!data:image/png|#)""", dom)


@pytest.mark.parametrize("width", [1280, 500])
def test_browser_draws_the_page(report: Path, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    _chromium(report, f"--screenshot={picture}", f"--window-size={width},1600")
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == width
    assert len(content) > 50_000  # an empty page of that size has some 10 kB


KEYS = """
const key = (on, name) =>
  on.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const chart = document.querySelector("svg.chart");
key(chart, "Home");
const tip = chart.parentElement.querySelector(".tip");
const seen = { first: tip.textContent, shown: tip.style.display };
key(chart, "ArrowRight");
seen.second = tip.textContent;
key(chart, "Escape");
seen.hidden = tip.style.display;
const select = document.getElementById("group-by");
if (select) {
  select.value = "1";
  select.dispatchEvent(new Event("change"));
  seen.groups = [...document.querySelectorAll("[data-grouping]")].map((part) => part.hidden);
}
const image = document.querySelector(".strip img.pixels");
if (image) {
  key(image, "Enter");
  const large = document.querySelector("dialog[open] img").getBoundingClientRect();
  seen.zoom = [large.width, large.height, image.getBoundingClientRect().width];
}
document.body.dataset.seen = JSON.stringify(seen);
"""


def _by_keys(page: Path) -> dict[str, Any]:
    """What the page answers to keys; a script of the test's own needs its policy taken away."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    copy = page.with_name("keys.html")
    copy.write_text(text.replace("</body>", f"<script>{KEYS}</script></body>"))
    seen = re.search(r'data-seen="([^"]*)"', _chromium(copy, "--dump-dom"))
    assert seen is not None
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found


def test_keys_reach_the_read_out_and_enlarge_a_picture_in_proportion(report: Path) -> None:
    seen = _by_keys(report)
    assert seen["shown"] == "block"
    assert seen["hidden"] == "none"
    assert seen["first"].startswith("step ")
    assert seen["first"] != seen["second"]
    width, height, before = seen["zoom"]
    assert width == height > 1.5 * before  # a grid of 64 × 64 pixels


def test_a_sweeps_page_reads_out_groups_and_groups_by_any_setting(tmp_path: Path) -> None:
    for i, words in enumerate(("prior=a lr=1", "prior=b lr=1", "prior=a lr=2", "prior=b lr=2")):
        rows = [{"generator_steps": s, "emd/samples": 4 + i + s / 10} for s in (1, 2)]
        write_run(tmp_path / "sweep" / str(i), rows, overrides=words.split())
    seen = _by_keys(write_reports(tmp_path / "sweep")[0])
    assert seen["first"] == "step 1a, 1: 4.1b, 1: 5.1a, 2: 6.1b, 2: 7.1"
    assert seen["groups"] == [True, False, True]
