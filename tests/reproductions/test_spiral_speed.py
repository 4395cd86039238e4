"""The side-by-side timing runs, and both sides solve the same problem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctflow.cli.checkout import load_script

pytest.importorskip("torchdiffeq")

spiral_speed = load_script(Path(__file__).parents[2], "spiral_speed")


def test_both_solvers_are_timed_on_the_same_solve(tmp_path: Path) -> None:
    """The smoke preset takes the real path and finds the same states."""
    record = spiral_speed.main(replace(spiral_speed.PRESETS["smoke"], results=tmp_path))
    assert set(record["milliseconds"]) == {"native", "torchdiffeq"}
    assert [band["passed"] for band in record["bands"]] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["smoke.json"]
