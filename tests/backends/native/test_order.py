"""Each method converges at its nominal order, and so do its interpolant and its error estimate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.step import Step, combine, rk_step
from ctflow.backends.native.tableau import METHODS
from tests.checks import check_relative
from tests.problems import FLOAT, limit_cycle

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "bosh3": 3, "dopri5": 5, "tsit5": 5}
SMALL = [0.06, 0.05, 0.04, 0.03]
INTERPOLANTS = {"euler": 1, "midpoint": 2, "rk4": 3, "bosh3": 3, "dopri5": 4, "tsit5": 4}
Y0 = torch.tensor([0.2, 0.1], dtype=FLOAT)


def slope(steps: list[float], errors: list[float]) -> float:
    """Slope of log error over log step by least squares."""
    x = torch.tensor(steps, dtype=FLOAT).log()
    e = torch.tensor(errors, dtype=FLOAT).log()
    return float(((x - x.mean()) * (e - e.mean())).sum() / ((x - x.mean()) ** 2).sum())


def at(t: float) -> Tensor:
    """A time [1]."""
    return torch.tensor([t], dtype=FLOAT)


def one_step(method: str, h: float) -> Step:
    """A step of size h from t = 0.2."""
    return rk_step(limit_cycle.f, METHODS[method], at(0.2), at(0.2) + h, Y0[None], None)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
@pytest.mark.parametrize("end", [1.2, -0.8])
def test_observed_order_is_within_three_tenths_of_nominal(
    method: str, order: int, end: float
) -> None:
    """On a non-linear, time-dependent problem the error falls as h^order, in both directions."""
    t = torch.tensor([0.2, end], dtype=FLOAT)
    exact = limit_cycle.exact(t[1], t[0], Y0)
    steps = [1.0 / n for n in (24, 32, 40, 48)]
    found = [odeint(limit_cycle.f, Y0, t, solver=Solver(method=method, step=h)) for h in steps]
    errors = [float((y[-1] - exact).norm()) for y in found]
    assert slope(steps, errors) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(("method", "order"), INTERPOLANTS.items())
@pytest.mark.parametrize("fraction", [0.37, 0.81])
def test_the_interpolant_converges_one_order_above_its_own_in_one_step(
    method: str, order: int, fraction: float
) -> None:
    """Inside one step of size h its local error falls as h^(order + 1)."""
    times = [at(0.2 + fraction * h) for h in SMALL]
    inside = [
        evaluate(METHODS[method], one_step(method, h), torch.tensor([0]), t)
        for h, t in zip(SMALL, times, strict=True)
    ]
    exact = [limit_cycle.exact(t, at(0.2), Y0) for t in times]
    errors = [float((y - wanted).norm()) for y, wanted in zip(inside, exact, strict=True)]
    assert slope(SMALL, errors) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_the_error_estimate_is_of_the_embedded_order(method: str) -> None:
    """The estimate of one step falls as h^(embedded order + 1)."""
    tableau = METHODS[method]
    found = [one_step(method, h) for h in SMALL]
    errors = [float((combine(tableau.e or (), step.k) * step.h).norm()) for step in found]
    assert slope(SMALL, errors) == pytest.approx((tableau.error_order or 0) + 1, abs=0.3)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
@pytest.mark.parametrize("h", [0.1, -0.1])
def test_the_error_estimate_bounds_the_error(method: str, h: float) -> None:
    """The higher-order result of one step is nearer to the truth than the estimate says."""
    tableau, step = METHODS[method], one_step(method, h)
    exact = limit_cycle.exact(at(0.2 + h), at(0.2), Y0)
    estimate = (combine(tableau.e or (), step.k) * step.h).norm()
    assert float((step.y1 - exact).norm()) < float(estimate) < 1e-2


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_the_error_of_a_solve_follows_its_tolerance(method: str, rtol: float) -> None:
    """On the circle, where no error grows, each accepted step adds at most one tolerance."""
    t = torch.tensor([0.0, 4 * math.pi], dtype=FLOAT)
    y0 = torch.tensor([0.6, 0.8], dtype=FLOAT)
    solver = Solver(method=method, rtol=rtol, atol=rtol * 1e-2)
    solution = solve(ODEProblem(limit_cycle.f, y0, t), solver)
    n_steps = int(solution.stats.forward.n_accepted)
    check_relative(solution.y[-1], limit_cycle.exact(t[-1], t[0], y0), rtol=n_steps * rtol)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_the_error_inside_a_step_follows_the_tolerance(method: str) -> None:
    """Five hundred interpolated outputs are within a hundred tolerances of the truth."""
    t = torch.linspace(0, 6, 500, dtype=FLOAT)
    y = odeint(limit_cycle.f, Y0, t, method=method, rtol=1e-6, atol=1e-8)
    check_relative(y, limit_cycle.exact(t, t[0], Y0), rtol=100 * 1e-6)
