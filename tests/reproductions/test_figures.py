"""What the docs show is what the committed results are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "reproductions" / "results"
FIGURES = ["memory", "figure_2_adjoint", "adjoint_drift"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_docs_is_that_of_the_results(name: str) -> None:
    """Bit for bit."""
    shown = (ROOT / "docs" / "figures" / f"{name}.png").read_bytes()
    assert shown == (RESULTS / name / "quick.png").read_bytes()


def test_the_memory_table_of_the_docs_has_the_numbers_of_the_results() -> None:
    """Every row of the page is a row of the record."""
    page = (ROOT / "docs" / "adjoint.md").read_text()
    record = json.loads((RESULTS / "memory" / "quick.json").read_text())
    rows = {
        f"| {peak['tolerance']:.0e} | {peak['steps']} | "
        .replace("e-0", "e-") + " | ".join(f"{n / 1024:.0f} KiB" for n in peak["n_bytes"].values())
        + " |"
        for peak in record["peaks"]
    }  # fmt: skip
    shown = [line for line in page.splitlines() if line.startswith("| 1e-")]
    assert len(shown) >= 4
    assert set(shown) <= rows
