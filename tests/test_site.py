"""The documentation's site: its drawing, its hooks, and that it is built strictly."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = """
site_name: trial
docs_dir: {docs}
use_directory_urls: false
theme: {{name: mkdocs}}
plugins: []
hooks: [{hooks}]
markdown_extensions:
  - pymdownx.arithmatex: {{generic: true}}
not_in_nav: "*"
validation: {{links: {{not_found: warn, anchors: warn}}}}
"""


def build(folder: Path, **pages: str) -> subprocess.CompletedProcess[str]:
    """Build a small site strictly, with our hooks, from pages that stand where docs/ does."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    tree = folder / "tree"
    (tree / "docs").mkdir(parents=True)
    (tree / ".ci").mkdir()
    (tree / ".ci/site.py").write_text((ROOT / ".ci/site.py").read_text())
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        (tree / name).write_text(f"# {name}\n")
    (tree / "module.py").write_text("answer = 42\n")
    (tree / "other.md").write_text("# Other\n\n[module](module.py)\n")
    for name, text in pages.items():
        (tree / f"docs/{name}.md").write_text(text)
    (tree / "mkdocs.yml").write_text(CONFIG.format(docs="docs", hooks=".ci/site.py"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def test_the_drawing_is_that_of_its_script() -> None:
    """What is committed is what `solve_path.py` draws."""
    drawn = runpy.run_path(str(DOCS / "figures/solve_path.py"))["drawing"]()
    assert drawn == (DOCS / "figures/solve_path.svg").read_text()


def test_every_page_stands_in_the_navigation() -> None:
    """A page that nobody finds is no page."""
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1].split("\nnot_in_nav")[0]
    named = set(re.findall(r"([\w/]+\.md)$", navigation, re.MULTILINE))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert {name for name in named if not name.startswith("source/")} == pages | notebooks


def test_a_public_name_without_a_place_in_the_reference_is_noticed(tmp_path: Path) -> None:
    """By module and name; the command line's are no part of it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    missing_names = runpy.run_path(str(ROOT / ".ci/site.py"))["missing_names"]
    package = tmp_path / "package"
    for name, names in {"flows": ["Flow", "draw"], "cli": ["main"]}.items():
        (package / name).mkdir(parents=True)
        (package / f"{name}/__init__.py").write_text(f"__all__ = {names}\n")
    assert missing_names(package, {"package.flows.Flow"}) == ["package/flows/__init__.py: draw"]


def test_a_link_out_of_the_pages_leads_to_the_file(tmp_path: Path) -> None:
    """A listing for code, a page for a page, and what that one links to."""
    made = build(
        tmp_path, index='# Trial\n\n[code](../module.py#L1 "a title"), [other](../other.md)\n'
    )
    assert made.returncode == 0, made.stdout + made.stderr
    site = tmp_path / "tree/site"
    assert 'href="source/module.py.html"' in (site / "index.html").read_text()
    assert "answer = 42" in (site / "source/module.py.html").read_text()
    assert 'href="module.py.html"' in (site / "source/other.html").read_text()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """As it would in the source tree."""
    made = build(tmp_path, index="# Trial\n\n[code](../missing.py)\n")
    assert made.returncode != 0
    assert "missing.py" in made.stdout + made.stderr


def test_formulas_need_no_script(tmp_path: Path) -> None:
    """They are MathML in the page."""
    made = build(tmp_path, index="# Trial\n\n$$\\frac{a}{b} < c$$\n")
    assert made.returncode == 0, made.stdout + made.stderr
    page = (tmp_path / "tree/site/index.html").read_text()
    assert "<mfrac>" in page
    assert "arithmatex" not in page


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FRAME = """<pre id="out"></pre><script>
(async () => {
  const found = [];
  for (const width of [390, 1440]) for (const page of PAGES) {
    const frame = document.createElement("iframe");
    frame.style.cssText = `border: 0; height: 900px; width: ${width}px`;
    frame.src = page;
    document.body.append(frame);
    await new Promise((done) => { frame.onload = done; });
    await new Promise((done) => setTimeout(done, 50));
    const inside = frame.contentDocument, root = inside.documentElement;
    const images = [...inside.images].filter((x) => x.complete && !x.naturalWidth);
    if (root.scrollWidth > root.clientWidth || images.length)
      found.push([page, width, root.scrollWidth, images.length]);
    frame.remove();
  }
  document.getElementById("out").textContent = JSON.stringify({found});
})();
</script>"""


@pytest.mark.slow
def test_every_page_fits_a_phone_and_a_desk(tmp_path: Path) -> None:
    """At 390 and 1440 px nothing is wider than the window, and no picture is missing."""
    pytest.importorskip("mkdocs")
    browser = os.environ.get("CTFLOW_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), ""
    )
    if not browser:
        pytest.skip("no browser: none of " + ", ".join(BROWSERS) + ", nor CTFLOW_BROWSER")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    pages = [path.as_uri() for path in sorted(site.rglob("*.html")) if "results" not in path.parts]
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("PAGES", json.dumps(pages)))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--virtual-time-budget=120000", "--window-size=1500,1000"]
    flags += [f"--user-data-dir={tmp_path}/user", "--dump-dom", frame.as_uri()]
    shown = subprocess.run([browser, *flags], capture_output=True, text=True, check=True).stdout
    answer = re.search(r"<pre id=\"out\">(.*?)</pre>", shown)
    assert answer is not None, shown[-1000:]
    assert json.loads(unescape(answer[1])) == {"found": []}
