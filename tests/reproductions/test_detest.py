"""DETEST: problems and bands are right, and the script runs from problems to files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.detest_solves import Run, off, ours
from benchmarks.detest_problems import END, PROBLEMS, Problem

from ctflow import Solver, odeint
from ctflow.cli.checkout import load_script

detest = load_script(Path(__file__).parents[2], "detest")
BY_NAME = {problem.name: problem for problem in PROBLEMS}

# y(20) as Hull et al. 1972 or a closed form has it.
KNOWN = {
    "A1": (0, 2.061153622438558e-09),  # exp(-20)
    "A2": (0, 0.2182178902359924),  # 1 / sqrt(21)
    "A3": (0, 2.491650271850414),  # exp(sin 20)
    "A4": (0, 17.73016648131483),  # 20 / (1 + 19 exp(-5))
    "C1": (0, 2.061153622438558e-09),
    "E4": (1, math.sqrt(0.08) * math.tanh(20 * math.sqrt(0.0128))),
    "E5": (1, 2.4),  # sinh(log 5)
}


def test_there_are_five_problems_in_each_of_five_classes() -> None:
    """With names of their own."""
    assert list(BY_NAME) == [f"{kind}{i}" for kind in "ABCDE" for i in range(1, 6)]


@pytest.mark.parametrize("name", KNOWN)
def test_the_problems_end_where_they_are_known_to(name: str) -> None:
    """By a closed form."""
    problem, (variable, value) = BY_NAME[name], KNOWN[name]
    tight = Solver(method="dop853", rtol=1e-12, atol=1e-14)
    y = odeint(problem.f, problem.y0, [0.0, END], solver=tight)[-1]
    assert float(y[variable]) == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["B1", "C5", "D3", "E3", "E5"])
def test_the_problems_take_batches(name: str) -> None:
    """Which the errors of single steps are solved in."""
    problem = BY_NAME[name]
    t, y = torch.tensor([[0.0], [1.5]], dtype=torch.float64), torch.stack([problem.y0] * 2)
    one_by_one = torch.stack([problem.f(s[0], z) for s, z in zip(t, y, strict=True)])
    torch.testing.assert_close(problem.f(t, y), one_by_one)


def test_the_planets_keep_their_energy() -> None:
    """C5, whose masses and places are long: kinetic and potential energy about the sun."""
    problem = BY_NAME["C5"]
    y = odeint(problem.f, problem.y0, [0.0, END], method="dop853", rtol=1e-11, atol=1e-12)
    energy = [planetary_energy(state) for state in y]
    assert energy[1] == pytest.approx(energy[0], rel=1e-8)


def planetary_energy(y: torch.Tensor) -> float:
    """Of sun and planets, in heliocentric coordinates, up to a constant factor."""
    from benchmarks import detest_problems as data

    gravity, sun, masses = data._GRAVITY, data._SUN, data._MASSES
    place, speed = y[:15].reshape(5, 3), y[15:].reshape(5, 3)
    momentum = (masses[:, None] * speed).sum(0)
    kinetic = 0.5 * (masses * speed.square().sum(1)).sum()
    kinetic -= 0.5 * momentum.square().sum() / (sun + masses.sum())
    potential = -gravity * sun * (masses / place.norm(dim=1)).sum()
    for i in range(5):
        for j in range(i):
            potential -= gravity * masses[i] * masses[j] / (place[i] - place[j]).norm()
    return float(kinetic + potential)


def test_a_step_that_is_off_is_seen() -> None:
    """A circle on tolerance: each step's error, from where it began."""
    circle = Problem("circle", lambda _, y: torch.stack([-y[..., 1], y[..., 0]], -1),
                     torch.tensor([1.0, 0.0], dtype=torch.float64))  # fmt: skip
    right = torch.tensor([END], dtype=torch.float64)
    right = torch.cat([right.cos(), right.sin()])
    run = ours(circle, "dopri5", 1e-6, right, look=True)
    assert run.steepest is not None
    assert 0.01 < run.steepest < 1.0
    assert run.beyond == 0.0
    assert run.error == pytest.approx(
        off(odeint(circle.f, circle.y0, [0.0, END], rtol=1e-6, atol=1e-6)[-1], right)
    )


def test_errors_that_are_far_apart_are_measured_from_several_starts() -> None:
    """What one start says stands as long as it may not be chance."""
    own = Run("A1", "ctflow dop853", 1e-6, 3e-9, 100)
    assert detest.beside(own, own._replace(who="SciPy DOP853", error=2e-9)) == pytest.approx(1.5)
    assert detest.beside(own, own._replace(who="SciPy DOP853", error=1e-9)) == pytest.approx(1, 0.1)


def test_evaluations_are_compared_at_the_same_error() -> None:
    """Between two runs by their straight line in logarithms; never beyond them."""
    own = [Run("A1", "one", 1e-3, 1e-3, 100), Run("A1", "one", 1e-5, 1e-5, 400)]
    other = [Run("A1", "two", 1e-3, error, 100) for error in (1e-2, 1e-4, 1e-6)]
    assert detest.at_equal_error(own, other) == pytest.approx([2.0])


def test_the_page_quotes_what_was_measured() -> None:
    """Errors in tolerances and evaluations, method by method."""
    root = Path(__file__).parents[2]
    record = json.loads((root / "reproductions/results/detest/quick.json").read_text())
    page = (root / "docs/methods.md").read_text().split("## Measured")[1]
    runs = [Run(**each) for each in record["runs"]]
    for method in detest.OURS:
        cells = next(line for line in page.splitlines() if line.startswith(f"| `{method}`"))
        quoted = [float(cell) for cell in cells.split("|")[2:8] if cell.strip()]
        measured = []
        for tolerance in record["config"]["asked"]:
            own = [r for r in runs if (r.who, r.tolerance) == (f"ctflow {method}", tolerance)]
            errors = [max(r.error, 1e-15) / tolerance for r in own]
            evaluations = [float(r.evaluations) for r in own]
            measured += [detest.geometric_mean(x) for x in (errors, evaluations) if x]
        assert quoted == pytest.approx(measured, rel=0.05)


def test_the_smoke_preset_writes_its_files(tmp_path: Path) -> None:
    """Two problems; errors are SciPy's, whose steps are ours."""
    for module in ("matplotlib", "scipy", "torchdiffeq"):
        pytest.importorskip(module)
    detest.main(replace(detest.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    beside = [band for band in record["bands"] if "over SciPy's" in band["name"]]
    assert len(beside) == 6
    assert all(band["passed"] for band in beside)
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
