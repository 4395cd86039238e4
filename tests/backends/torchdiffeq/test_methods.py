"""A method's name means the same as on the native backend, or it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, solve
from tests.backends.torchdiffeq.cases import solved
from tests.checks import check, check_close
from tests.problems import FLOAT, limit_cycle

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4_38": 4}
Y0 = torch.tensor([[0.4, -0.3]], dtype=FLOAT)


def _error(solver: Solver, t: Tensor) -> float:
    y = solved(ODEProblem(limit_cycle.f, Y0, t), solver).y
    exact = torch.stack([limit_cycle.exact(time, t[0], Y0) for time in t])
    return float((y - exact).abs().max())


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("inside", [False, True])
def test_fixed_steps_have_the_order_of_their_method(method: str, inside: bool) -> None:
    """At the end of the grid, and at outputs inside its steps."""
    t = torch.tensor([0.0, 0.531, 1.277, 2.0] if inside else [0.0, 2.0], dtype=FLOAT)
    errors = [_error(Solver("torchdiffeq", method, step=step), t) for step in (0.05, 0.025)]
    order = torch.log2(torch.tensor(errors[0] / errors[1])).item()
    check(order > ORDERS[method] - 0.3, f"observed order {order:.2f}")


@pytest.mark.parametrize("method", ["euler", "midpoint"])
@pytest.mark.parametrize("t1", [2.0, 1.93, -1.0])
def test_fixed_steps_are_those_of_native(method: str, t1: float) -> None:
    """Same grid, last step cut at t1, either direction: same numbers up to rounding."""
    problem = ODEProblem(limit_cycle.f, Y0, torch.tensor([0.0, t1], dtype=FLOAT))
    here, there = (solved(problem, Solver(b, method, step=0.1)) for b in ("torchdiffeq", "native"))
    check_close(here.y, there.y, rtol=1e-12)
    check_close(here.stats.forward.n_steps, there.stats.forward.n_steps, rtol=0)
    check_close(here.stats.step_times, there.stats.step_times, rtol=1e-12)


def test_euler_interpolates_as_native_does() -> None:
    """Linearly, inside its steps."""
    problem = ODEProblem(limit_cycle.f, Y0, torch.tensor([0.0, 0.531, 1.0], dtype=FLOAT))
    here, there = (solved(problem, Solver(b, "euler", step=0.1)) for b in ("torchdiffeq", "native"))
    check_close(here.y, there.y, rtol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
def test_adaptive_outputs_are_as_good_as_the_steps(method: str) -> None:
    """Interior outputs hold the tolerance that the end holds; torchdiffeq's interpolants do not."""
    tol = 1e-8
    solver = Solver("torchdiffeq", method, rtol=tol, atol=tol)
    t = torch.linspace(0, 3, 31, dtype=FLOAT)
    check(_error(solver, t) < 100 * tol, f"error {_error(solver, t):.1e}")


@pytest.mark.parametrize("method", ["adaptive_heun", "fehlberg2"])
def test_methods_of_low_order_follow_the_tolerance(method: str) -> None:
    """Its own second-order pairs: a tenth of the tolerance is less than half the error."""
    t = torch.linspace(0, 1, 11, dtype=FLOAT)
    errors = [_error(Solver("torchdiffeq", method, rtol=r, atol=r), t) for r in (1e-5, 1e-6)]
    check(errors[1] < errors[0] / 2, f"errors {errors}")


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_one_step_is_the_same_as_natives(method: str) -> None:
    """A tolerance so loose that both take one step shows that the methods are the same."""
    problem = ODEProblem(limit_cycle.f, Y0, torch.tensor([0.0, 0.01], dtype=FLOAT))
    loose = {"rtol": 1e3, "atol": 1e3}
    here, there = (solve(problem, Solver(b, method, **loose)) for b in ("torchdiffeq", "native"))
    check(here.stats.forward.n_steps.item() == 1, "more than one step")
    check(there.stats.forward.n_steps.item() == 1, "more than one native step")
    check_close(here.y, there.y, rtol=1e-13)
