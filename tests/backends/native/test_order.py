"""Each method converges at its nominal order, and so do its interpolant and its error estimate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.backends.native.control import blended
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.step import Step, combine, extended, rk_step
from tests.checks import check_relative
from tests.problems import FLOAT, limit_cycle

ORDERS = {name: tableau.order for name, tableau in METHODS.items()}
INTERPOLANTS = {name: tableau.dense_order or 0 for name, tableau in METHODS.items()}
ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.e]
SMALL = {
    True: [0.35, 0.3, 0.25, 0.2],
    False: [0.06, 0.05, 0.04, 0.03],
}  # high orders reach rounding
FRACTIONS = torch.tensor([0.13, 0.29, 0.37, 0.5, 0.62, 0.81, 0.93], dtype=FLOAT)
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


def whole_step(method: str, h: float) -> Step:
    """The same with what its interpolant needs."""
    return extended(limit_cycle.f, METHODS[method], one_step(method, h))


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
@pytest.mark.parametrize("end", [1.2, -0.8])
def test_observed_order_is_within_three_tenths_of_nominal(
    method: str, order: int, end: float
) -> None:
    """On a non-linear, time-dependent problem the error falls as h^order, in both directions."""
    t = torch.tensor([0.2, end], dtype=FLOAT)
    exact = limit_cycle.exact(t[1], t[0], Y0)
    steps = [1.0 / n for n in ((24, 32, 40, 48) if order < 6 else (6, 8, 9, 10))]
    found = [odeint(limit_cycle.f, Y0, t, solver=Solver(method=method, step=h)) for h in steps]
    errors = [float((y[-1] - exact).norm()) for y in found]
    assert slope(steps, errors) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(("method", "order"), INTERPOLANTS.items())
def test_the_interpolant_converges_one_order_above_its_own_in_one_step(
    method: str, order: int
) -> None:
    """Inside one step of size h its local error, at seven places, falls as h^(order + 1)."""
    tableau, steps, errors = METHODS[method], SMALL[order > 5], list[float]()
    row = torch.zeros(len(FRACTIONS), dtype=torch.int64)
    for h in steps:
        times = 0.2 + FRACTIONS * h
        found = evaluate(tableau, whole_step(method, h), row, times)
        errors.append(float((found - limit_cycle.exact(times, at(0.2), Y0)).norm()))
    assert slope(steps, errors) == pytest.approx(order + 1, abs=0.3)


def estimate(method: str, step: Step) -> Tensor:
    """What the method says of the error of a step, 0-dim."""
    tableau = METHODS[method]
    rows = [row for row in (tableau.e, tableau.e_low) if row is not None]
    sizes = [(combine(row, step.k) * step.h).norm() for row in rows]
    return sizes[0] if len(sizes) == 1 else blended(*sizes)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_error_estimate_is_of_the_embedded_order(method: str) -> None:
    """The estimate of one step falls as h^(embedded order + 1)."""
    order = METHODS[method].error_order or 0
    steps = [0.2, 0.17, 0.15, 0.12] if order > 5 else SMALL[False]
    errors = [float(estimate(method, one_step(method, h))) for h in steps]
    assert slope(steps, errors) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("h", [0.1, -0.1])
def test_the_error_estimate_bounds_the_error(method: str, h: float) -> None:
    """The higher-order result of one step is nearer to the truth than the estimate says."""
    step = one_step(method, h)
    exact = limit_cycle.exact(at(0.2 + h), at(0.2), Y0)
    off = float((step.y1 - exact).norm())
    assert off < max(float(estimate(method, step)), 1e-15) < 1e-2


@pytest.mark.parametrize("method", [name for name in ADAPTIVE if ORDERS[name] > 2])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_the_error_of_a_solve_follows_its_tolerance(method: str, rtol: float) -> None:
    """On the circle, where no error grows, each accepted step adds at most one tolerance."""
    t = torch.tensor([0.0, 4 * math.pi], dtype=FLOAT)
    y0 = torch.tensor([0.6, 0.8], dtype=FLOAT)
    solver = Solver(method=method, rtol=rtol, atol=rtol * 1e-2)
    solution = solve(ODEProblem(limit_cycle.f, y0, t), solver)
    n_steps = int(solution.stats.forward.n_accepted)
    check_relative(solution.y[-1], limit_cycle.exact(t[-1], t[0], y0), rtol=n_steps * rtol)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_error_inside_a_step_follows_the_tolerance(method: str) -> None:
    """Five hundred interpolated outputs are within ten tolerances of the truth."""
    t = torch.linspace(0, 6, 500, dtype=FLOAT)
    y = odeint(limit_cycle.f, Y0, t, method=method, rtol=1e-6, atol=1e-8)
    check_relative(y, limit_cycle.exact(t, t[0], Y0), rtol=10 * 1e-6)
