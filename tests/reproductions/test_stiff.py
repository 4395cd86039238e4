"""Rodas5P on four stiff problems of the literature: steps, errors and gradients as they must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow.cli.checkout import load_script
from tests.problems import FLOAT

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
stiff = load_script(ROOT, "stiff")
RECORD = json.loads((ROOT / "reproductions" / "results" / "stiff" / "quick.json").read_text())
RADAU = {
    run["problem"]: run["steps"]
    for run in RECORD["runs"]
    if run["method"] == "radau" and run["rtol"] == stiff.RTOL
}
every = pytest.mark.parametrize("name", stiff.PROBLEMS)


def wanted(name: str) -> torch.Tensor:
    """States by SciPy's Radau at 1e-12, as the reproduction wrote them down."""
    return torch.tensor(RECORD["references"][name], dtype=FLOAT)


@every
def test_steps_are_within_three_times_radaus_and_errors_within_a_hundred_tolerances(
    name: str,
) -> None:
    """At 1e-6, at eleven times, every variable for itself."""
    problem, expected = stiff.PROBLEMS[name], wanted(name)
    solver = stiff.solver_of(problem, "rodas5p", stiff.RTOL)
    solution = stiff.solved(problem, solver, len(expected))
    assert int(solution.stats.forward.n_steps) <= stiff.STEPS * RADAU[name]
    assert stiff.error_of(solution.y, expected, solver) <= stiff.ERROR


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "van der Pol")) for n in stiff.PROBLEMS],
)
def test_the_gradient_of_the_parameters_is_that_of_the_steps(name: str) -> None:
    """By checkpointed, to 1e-5, along a random direction."""
    problem = stiff.PROBLEMS[name]
    solver = stiff.solver_of(problem, "rodas5p", stiff.RTOL)
    weights = stiff.weights_of(problem, wanted(name))
    error = stiff.gradient_error(problem, solver, weights, seed=1)
    assert solver.gradient == "checkpointed"
    assert error < stiff.GRADIENT


def test_before_its_first_jump_van_der_pol_has_the_gradient_of_its_steps() -> None:
    """Where differences are not spoiled by rounding they agree to far more than 1e-5."""
    problem = replace(stiff.PROBLEMS["van der Pol"], end=700.0, difference=1e-4)
    solver = stiff.solver_of(problem, "rodas5p", stiff.RTOL)
    error = stiff.gradient_error(problem, solver, torch.ones(2, dtype=FLOAT), seed=1)
    assert error < 1e-8


def test_robertson_matches_the_literature() -> None:
    """y(40) as in Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.10."""
    problem = replace(stiff.PROBLEMS["Robertson"], end=40.0)
    y = stiff.solved(problem, stiff.solver_of(problem, "rodas5p", 1e-8), 2).y[-1]
    expected = torch.tensor([0.7158270688, 0.9185534765e-5, 0.2841637457], dtype=FLOAT)
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=0.0)


def test_hires_matches_the_literature() -> None:
    """y(321.8122) as in the test set of Mazzia and Magherini."""
    expected = torch.tensor(
        [0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4,
         0.1175651343283149e-2, 0.2386356198831331e-2, 0.6238968252742796e-2,
         0.2849998395185769e-2, 0.2850001604814231e-2],
        dtype=FLOAT,
    )  # fmt: skip
    torch.testing.assert_close(wanted("HIRES")[-1], expected, rtol=1e-7, atol=0.0)


def test_the_smoke_preset_meets_its_bands_and_writes_its_files(tmp_path: Path) -> None:
    """One of the problems, beside Radau itself."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    record = stiff.main(replace(stiff.PRESETS["smoke"], results=tmp_path))
    assert [band["name"] for band in record["bands"] if not band["passed"]] == []
    assert {run["problem"] for run in record["runs"]} == {"heat"}
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]
