"""The report says what the committed results say, and can be read on any screen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
from _harness.pictures import Picture, picture
from _harness.report import page, write_report
from PIL import Image

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "reproductions" / "results"
PAGE = RESULTS / "report" / "index.html"
ENVIRONMENT = {"versions": {"torch": "2"}, "machine": {"cpus": 2}, "commit": "abc"}


def without_pictures(text: str) -> str:
    """The page's words; what a picture is compressed to depends on Pillow."""
    return re.sub(r'src="data:[^"]*" width="\d+" height="\d+"', "", text)


def write_result(folder: Path, preset: str, bands: list[dict[str, Any]], **more: Any) -> None:  # noqa: ANN401
    """A result file with a picture beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"config": {"preset": preset, "seed": 7, "backend": "native"} | more.pop("config", {})}
    record |= {"environment": ENVIRONMENT | more, "bands": bands}
    (folder / f"{preset}.json").write_text(json.dumps(record))
    Image.new("RGB", (1800, 600), "white").save(folder / f"{preset}.png")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on pictures."""
    monkeypatch.setattr("_harness.report_parts.picture", lambda path: Picture("data:,", 1, 1))


@pytest.mark.usefixtures("plain")
def test_the_committed_page_is_that_of_the_committed_results() -> None:
    """Word by word; `ctflow report` writes it again."""
    assert without_pictures(PAGE.read_text()) == without_pictures(page(RESULTS))


def test_the_page_stands_alone_and_is_small() -> None:
    """No script, nothing loaded, every picture in it, and less than 6 MB."""
    text = PAGE.read_text()
    assert PAGE.stat().st_size < 6e6
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="?([^">:]*:|#|[^">]{0,20})', text)) <= {"data:", "#"} | {
        f"#{name}" for name in re.findall(r'href="#([^"]*)"', text)
    }
    assert str(ROOT) not in text


@pytest.mark.usefixtures("plain")
def test_numbers_stand_beside_the_papers_with_bands_and_verdicts(tmp_path: Path) -> None:
    """Presets and backends side by side; a miss is said in words; schema 1 has the number too."""
    band = {"name": "ODE-Net, error in percent", "value": 1.5, "low": None, "high": 2.0}
    missed = {**band, "value": 3.25, "passed": True}  # what was written down is not believed
    write_result(tmp_path / "table_1", "quick", [{**band, "passed": True}])
    command = {"command": "ctflow reproduce table_1 --preset full", "schema": 2}
    seconds = {"elapsed": 12.5, "processor": 24.0}
    write_result(
        tmp_path / "table_1", "full", [{**missed, "paper": 0.42}], **command, seconds=seconds
    )
    other = {"config": {"backend": "compiled"}}
    write_result(tmp_path / "table_1/compiled", "quick", [{**band, "passed": True}], **other)
    write_result(tmp_path / "table_1", "smoke", [])
    words = unescape(re.sub(r"<[^>]*>", " ", page(tmp_path)))
    row = re.search(r"ODE-Net, error in percent .*", words)
    assert row is not None
    shown = " ".join(row[0].split()[4:])
    assert shown == "0.42 1.5 at most 2 ✓ pass 1.5 at most 2 ✓ pass 3.25 at most 2 ✗ MISS"
    for title in ("quick, native: ours", "quick, compiled: ours", "full, native: ours"):
        assert title in words
    assert "smoke" not in words
    assert "ctflow reproduce table_1 --preset full" in words
    assert "12.5 s elapsed, 24 s of the processors" in words
    assert "not recorded" in words  # command and time of schema 1


@pytest.mark.usefixtures("plain")
def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    """A band may be called what it likes."""
    band = {"name": "<b>&x</b>", "value": None, "low": 1.0, "high": None, "passed": False}
    write_result(tmp_path / "digits_density", "quick", [band])
    text = page(tmp_path)
    assert "&lt;b&gt;&amp;x&lt;/b&gt;" in text
    assert "✗ MISS" in text


def test_a_wide_picture_is_made_narrower_and_lies_in_the_page(tmp_path: Path) -> None:
    """Its proportions stay; an animation is taken as it is."""
    write_result(tmp_path, "quick", [])
    shown = picture(tmp_path / "quick.png")
    assert (shown.width, shown.height) == (1200, 400)
    assert shown.url.startswith("data:image/webp;base64,")
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "quick.gif", save_all=True, append_images=frames[1:])
    assert picture(tmp_path / "quick.gif").url.startswith("data:image/gif;base64,")


def test_no_results_make_a_page_that_says_so(tmp_path: Path) -> None:
    """As on the first day."""
    text = write_report(tmp_path).read_text()
    assert "Without committed results: figure_1" in text


FRAME = """<!doctype html><meta charset=utf-8><pre id=out>unloaded</pre>
<iframe src="PAGE" style="width:390px;height:900px;border:0"></iframe>
<iframe src="PAGE" style="width:1440px;height:900px;border:0"></iframe>
<script>window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, all = [...page.querySelectorAll("body *")];
    page.querySelectorAll("details").forEach(each => each.open = true);
    const width = page.documentElement.clientWidth, images = [...page.images];
    const hidden = each => getComputedStyle(each).position === "absolute" ||
      each.closest("thead") || each.closest(".wide") !== each && each.closest(".wide");
    return {
      wider: page.documentElement.scrollWidth - width,
      beyond: all.filter(e => !hidden(e) && e.getBoundingClientRect().right > width + 1).length,
      images: images.length,
      broken: images.filter(i => !(i.complete && i.naturalWidth > 0)).length,
      unnamed: images.filter(i => !i.alt).length,
      ink: getComputedStyle(page.body).color, paper: getComputedStyle(page.body).backgroundColor,
    };
  });
  document.getElementById("out").textContent = JSON.stringify(found);
}</script>"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_fits_a_phone_and_a_desk_in_a_browser(scheme: str, tmp_path: Path) -> None:
    """At 390 and 1440 px: nothing overflows, every picture is there, the console is silent."""
    browser = os.environ.get("CTFLOW_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), ""
    )
    if not browser:
        pytest.skip("no browser: none of " + ", ".join(BROWSERS) + ", nor CTFLOW_BROWSER")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("PAGE", PAGE.as_uri()))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1500,1000"]
    flags += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    flags += [f"--user-data-dir={tmp_path}", "--dump-dom", frame.as_uri()]
    result = subprocess.run(
        [browser, *flags], capture_output=True, text=True, check=False, timeout=120
    )
    found = re.search(r"<pre id=\"out\">(.*?)</pre>", result.stdout)
    assert found is not None, result.stderr[-2000:]
    for each in json.loads(unescape(found[1])):
        assert (each["wider"], each["beyond"]) == (0, 0)
        assert each["images"] == PAGE.read_text().count("<img ")
        assert (each["broken"], each["unnamed"]) == (0, 0)
        ink, paper = (sum(map(int, re.findall(r"\d+", each[k])[:3])) for k in ("ink", "paper"))
        assert (ink > paper) is (scheme == "dark")
    assert "CONSOLE" not in result.stderr
