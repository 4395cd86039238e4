"""Links of README.md and docs/ lead somewhere, and the comparison proves each yes."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMPARISON = ROOT / "docs" / "comparison.md"
# [text](target), [text](target "title"), and the same with "!" in front for a picture.
LINK = re.compile(r'\[[^\]\[]*\]\((?P<target>[^()\s]+)(?:\s+"(?P<title>[^"]*)")?\)')
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
VERDICT = re.compile(r"\[?(yes|part|no)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Whole addresses are not asked for; a title that names a test must name one in that file."""
    wrong = [fault for link in _links(page) if (fault := _fault(page, *link))]
    assert wrong == []


def test_every_row_of_the_comparison_has_a_verdict_and_every_yes_a_proof() -> None:
    """The last column is ctflow's; a test named in it is one that exists, by the test above."""
    rows = _comparison()
    assert len(rows) > 60
    for cells in rows:
        assert len(cells) == 8, cells
        found = VERDICT.match(cells[-1])
        assert found is not None, cells[-1]
        proofs = [m["title"] or m["target"] for m in LINK.finditer(cells[-1])]
        assert proofs or found[1] != "yes", cells[0]


def test_the_comparison_says_no_and_part_too() -> None:
    """A table in which one library has everything was not written by looking."""
    verdicts = [VERDICT.match(cells[-1]) for cells in _comparison()]
    counts = {
        word: sum(v is not None and v[1] == word for v in verdicts) for word in ("no", "part")
    }
    assert counts["no"] >= 5
    assert counts["part"] >= 5


def test_every_citation_of_the_paper_has_an_entry_and_the_other_way_round() -> None:
    """By the keys of docs/paper.bib."""
    docs = ROOT / "docs"
    cited = set(re.findall(r"@(\w+)", (docs / "paper.md").read_text()))
    entries = re.findall(r"^@\w+\{(\w+),$", (docs / "paper.bib").read_text(), re.MULTILINE)
    assert cited == set(entries)
    assert len(entries) == len(cited)


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    """A file, a heading and a test that are not there."""
    (tmp_path / "there.md").write_text("# One's *own* `title`\n")
    (tmp_path / "test_it.py").write_text("def test_right():\n    pass\n")
    page = tmp_path / "page.md"
    page.write_text(
        '[a](there.md#ones-own-title) [b](test_it.py "test_right") `[c](none.md)`\n'
        '[d](none.md) [e](there.md#other) [f](test_it.py "test_wrong")\n'
    )
    faults = [_fault(page, *link) for link in _links(page)]
    assert faults[:2] == ["", ""]
    assert [fault.split(":")[0] for fault in faults[2:]] == [
        "none.md",
        "there.md#other",
        "test_it.py",
    ]


def _links(page: Path) -> list[tuple[str, str]]:
    """Targets and titles of a page's relative links, outside of code."""
    text = CODE.sub("", page.read_text())
    links = [(m["target"], m["title"] or "") for m in LINK.finditer(text)]
    return [link for link in links if not re.match(r"[a-z]+:", link[0])]


def _fault(page: Path, target: str, title: str) -> str:
    """What is wrong with a link; empty if nothing is."""
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"{target}: no such file"
    if heading and heading not in _headings(file):
        return f"{target}: no such heading"
    if title.startswith("test_") and title not in _functions(file):
        return f"{target}: no test is called {title}"
    return ""


@cache
def _headings(page: Path) -> frozenset[str]:
    """Names by which a page's headings are linked to."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return frozenset(
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles
    )


@cache
def _functions(file: Path) -> frozenset[str]:
    """Names of the functions that a module defines."""
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _comparison() -> list[list[str]]:
    """Cells of the comparison's rows, heads left out."""
    lines = [line for line in COMPARISON.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
    return [row for row in rows if row[0] and set(row[0]) != {"-"}]
