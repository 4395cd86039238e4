"""Committed results lie within their bands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "reproductions" / "results"
COMMITTED = sorted(p for p in RESULTS.rglob("*.json") if p.stem != "smoke")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: str(p.relative_to(RESULTS)))
def test_every_number_is_within_its_band(path: Path) -> None:
    """The verdict is worked out again from the numbers, not read."""
    bands = json.loads(path.read_text())["bands"]
    assert bands
    for band in bands:
        assert band["value"] is not None, band
        assert band["low"] is None or band["value"] >= band["low"], band
        assert band["high"] is None or band["value"] <= band["high"], band


def test_the_readme_quotes_what_was_measured() -> None:
    """Line by line, as `ctflow bench` wrote it."""
    rows = (RESULTS / "benchmarks" / "README.md").read_text().splitlines()
    readme = (RESULTS.parents[1] / "README.md").read_text().splitlines()
    quoted = [line for line in readme if line.startswith("| ") and "(compiled" in line]
    assert quoted
    assert set(quoted) <= set(rows)


def test_there_are_results() -> None:
    """The folder is where it was."""
    assert len(COMMITTED) >= 3
