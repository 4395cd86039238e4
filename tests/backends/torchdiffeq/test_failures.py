"""A solve that stops says so as a value, keeps what it reached, and needs no `assert` for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, SolveFailed, Solver, Status, odeint, solve
from tests.checks import check, check_close
from tests.problems import FLOAT, blow_up, decay

GRADIENTS = ("direct", "adjoint")
LOOSE = Solver("torchdiffeq", rtol=1e-4, atol=1e-6)
ONE = torch.ones(1, dtype=FLOAT)
MIDPOINT = Solver("torchdiffeq", "midpoint", step=0.1)


def _nan_late(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t > 0.6, torch.nan, 1.0) * y


def _infinite_at_once(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t > 0, torch.inf, 1.0) * y


CASES: dict[str, tuple[Callable[..., Tensor], Solver, Status, int]] = {
    "step limit": (decay, replace(LOOSE, max_steps=8), Status.MAX_STEPS, 3),
    "pole": (blow_up, LOOSE, Status.STEP_TOO_SMALL, 3),
    "NaN later": (_nan_late, LOOSE, Status.NON_FINITE, 2),
    "infinite after the start": (_infinite_at_once, LOOSE, Status.NON_FINITE, 1),
    "NaN at the start": (lambda t, y: y * torch.nan, LOOSE, Status.NON_FINITE, 1),
    "fixed steps, step limit": (decay, replace(MIDPOINT, max_steps=6), Status.MAX_STEPS, 2),
    "fixed steps, NaN": (_nan_late, MIDPOINT, Status.NON_FINITE, 2),
    "fixed steps, a step far too small": (
        decay,
        replace(MIDPOINT, step=1e-13, max_steps=50),
        Status.MAX_STEPS,
        1,
    ),
}
"""f, solver, what it ends with, and how many of the outputs below it reaches."""
TIMES = torch.tensor([0.0, 0.5, 0.9, 40.0], dtype=FLOAT)


def _failed(case: str, gradient: str) -> tuple[Solution, Status, int]:
    f, solver, status, n_reached = CASES[case]
    y0 = ONE.clone().requires_grad_()
    return solve(ODEProblem(f, y0, TIMES), replace(solver, gradient=gradient)), status, n_reached


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_failure_is_a_value(case: str, gradient: str) -> None:
    """Status, NaN in what was not reached, no gradient, and where it stood."""
    solution, status, n_reached = _failed(case, gradient)
    assert solution.status.tolist() == [status]
    check(not solution.y.requires_grad, "a failed solve is a constant")
    assert solution.y.isfinite().flatten().tolist() == [i < n_reached for i in range(4)]
    (stop,) = solution.stops
    check(TIMES[n_reached - 1] <= stop.t < TIMES[n_reached], f"stopped at {stop.t}")
    counts = solution.stats.forward
    check_close(counts.n_accepted + counts.n_rejected, counts.n_steps, rtol=0)


def test_outputs_before_the_failure_are_those_of_a_shorter_solve() -> None:
    """Bit for bit, because the same steps lead there."""
    t = torch.tensor([0.0, 0.3, 0.9, 40.0], dtype=FLOAT)
    whole = solve(ODEProblem(decay, ONE, t), LOOSE)
    partial = solve(ODEProblem(decay, ONE, t), replace(LOOSE, max_steps=8))
    assert partial.status.tolist() == [Status.MAX_STEPS]
    check_close(partial.y[:3], whole.y[:3], rtol=0)
    check_close(partial.stats.step_times[0], whole.stats.step_times[0, :9], rtol=0)


def test_attempts_are_counted_over_the_whole_solve() -> None:
    """torchdiffeq's own limit starts anew at each output time."""
    t = torch.linspace(0, 100, 101, dtype=FLOAT)
    solution = solve(ODEProblem(decay, ONE, t), replace(LOOSE, max_steps=20))
    assert solution.stats.forward.n_steps.tolist() == [20]
    assert solution.status.tolist() == [Status.MAX_STEPS]


def test_fixed_steps_overflowing_in_the_last_step_are_noticed() -> None:
    """No callback of torchdiffeq follows the last step."""
    y0 = torch.full((1,), 1e60, dtype=FLOAT)
    solution = solve(ODEProblem(lambda t, y: y**3, y0, [0.0, 0.1]), MIDPOINT)
    assert solution.status.tolist() == [Status.NON_FINITE]
    assert solution.stats.forward.n_accepted.tolist() == [0]


def test_a_trial_step_that_overflows_is_shrunk() -> None:
    """torchdiffeq alone gives up at the first NaN in an error estimate."""
    seen: list[bool] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(bool((y < 0).any()))
        return torch.where(y < 0, torch.nan, -50 * y)  # long trial steps reach negative states

    solution = solve(ODEProblem(f, ONE, [0.0, 1.0]), replace(LOOSE, rtol=0.1, atol=0.1))
    check(solution.ok, f"{solution.stops}")
    check(any(seen), "no trial was NaN: the test shows nothing")


def test_odeint_raises_with_time_and_cause() -> None:
    """The exception carries the partial solution."""
    with pytest.raises(SolveFailed, match=r"STEP_TOO_SMALL at t=1\.0\d* of \[0, 2\]") as caught:
        odeint(blow_up, ONE, [0.0, 0.5, 2.0], solver=LOOSE)
    solution = caught.value.solution
    check(isinstance(solution, Solution) and bool(solution.y[1].isfinite()), "no partial solution")


def test_running_back_in_time_reports_the_problems_own_times() -> None:
    """The stop and the steps are not in folded time."""
    problem = ODEProblem(lambda t, y: -y * y, ONE, torch.tensor([1.0, 0.5, -1.0], dtype=FLOAT))
    solution = solve(problem, LOOSE)
    check(abs(solution.stops[0].t) < 1e-3, f"{solution.stops}")
    check(bool((solution.stats.step_times.diff() < 0).all()), "steps do not go back")


OPTIMISED = """
import torch
from ctflow import ODEProblem, Solver, solve
one = torch.ones(1, dtype=torch.float64)
for gradient in ("direct", "adjoint"):
    for f in (lambda t, y: y * y, lambda t, y: torch.where(t > 0.6, torch.nan, 1.0) * y):
        problem = ODEProblem(f, one.clone().requires_grad_(), [0.0, 0.5, 2.0])
        for solver in (Solver("torchdiffeq", rtol=1e-4, gradient=gradient),
                       Solver("torchdiffeq", "euler", step=0.01, gradient=gradient, max_steps=90)):
            solution = solve(problem, solver)
            print(int(solution.status), solution.y.isfinite().flatten().tolist().count(True))
"""


@pytest.mark.slow
def test_failures_are_found_without_asserts() -> None:
    """Under `python -O` torchdiffeq's own checks are gone, and so is its way out of the loop."""
    command = [sys.executable, "-O", "-W", "error", "-c", OPTIMISED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    check(done.returncode == 0, done.stderr)
    assert done.stdout.split("\n")[:-1] == ["2 2", "1 2", "3 2", "3 2"] * 2
