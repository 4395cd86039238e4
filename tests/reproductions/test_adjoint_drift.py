"""The drift reproduction compares the report with the truth, and would notice a silent fault."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow import Solver
from ctflow.cli.checkout import load_script

ROOT = Path(__file__).parents[2]
drift = load_script(ROOT, "adjoint_drift")


def test_the_smoke_preset_meets_its_bands_and_writes_its_files(tmp_path: Path) -> None:
    """Every problem is solved, wrong gradients are doubted, and right ones are not."""
    pytest.importorskip("matplotlib")
    drift.main(replace(drift.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert [band["passed"] for band in record["bands"]] == [True, True]
    assert {point["problem"] for point in record["points"]} == set(drift.PROBLEMS)
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


@pytest.mark.parametrize("name", drift.PROBLEMS)
def test_a_problem_is_the_same_in_every_solve(name: str) -> None:
    """Its weights and its gradient depend on the seed alone."""
    problem, solver = drift.PROBLEMS[name], Solver(rtol=1e-4, atol=1e-4)
    horizon = 0.1 * problem.longest
    first, _ = drift.gradient_of(problem, horizon, solver, 0)
    second, _ = drift.gradient_of(problem, horizon, solver, 0)
    assert torch.equal(first, second)
    assert problem.kind in drift.KINDS
    assert bool(first.abs().sum() > 0)


def test_the_threshold_drawn_is_the_one_that_ctflow_has() -> None:
    """Whatever is doubted has an estimate above it, and whatever is not, one below."""
    config = replace(drift.PRESETS["smoke"], tolerances=(1e-3, 1e-5))
    points = [p for name in ("van der Pol 8", "Lorenz") for p in drift.points_of(name, config)]
    assert {p.doubted for p in points} == {True, False}
    assert all((p.estimate > drift.THRESHOLD) == p.doubted for p in points)


@pytest.mark.slow
def test_the_quick_preset_meets_its_bands(tmp_path: Path) -> None:
    """No silent fault and no false alarm, over tolerances and horizons."""
    pytest.importorskip("matplotlib")
    record = drift.main(replace(drift.PRESETS["quick"], results=tmp_path))
    assert [band["name"] for band in record["bands"] if not band["passed"]] == []
