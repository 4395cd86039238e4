"""The page that writes a backend shows the package that a test installs, whole and in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests/plugins/ctflow_extrapolation"
PAGE = (ROOT / "docs/tutorials/backend.md").read_text()


def _lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def test_the_blocks_of_the_page_are_the_module() -> None:
    """Every line of it, in its order, and none besides."""
    before = PAGE.split("## Try it")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", before, re.DOTALL | re.MULTILINE)
    assert _lines("\n".join(blocks)) == _lines((PACKAGE / "ctflow_extrapolation.py").read_text())


@pytest.mark.parametrize("name", ["pyproject.toml"])
def test_the_other_files_are_shown_as_they_are(name: str) -> None:
    """What a reader copies is what was tested."""
    assert (PACKAGE / name).read_text().strip() in PAGE
