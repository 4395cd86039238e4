"""Contact without crossing is reported and not guessed; so are events without end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, SolveFailed, Solver, Status, odeint_event, solve
from tests.checks import check_close
from tests.events.known import FLOAT, Ball, oscillator, steady

UP = torch.tensor([0.0, 1.0], dtype=FLOAT)
ONE = torch.ones(1, dtype=FLOAT)


@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize("beyond", [0.0, 1e-10, -1e-10])
def test_grazing_contact_is_a_status(beyond: float, direction: int) -> None:
    """sin t reaches 1 at pi / 2; whether it passes 1 + 1e-10 is not for a tolerance of 1e-9."""
    event = Event(lambda t, y: y[0] - 1 - beyond, direction=direction)
    with pytest.raises(SolveFailed, match=r"GRAZING at t=1\.5708") as caught:
        odeint_event(oscillator, UP, [0.0, 9.0], event, rtol=1e-9, atol=1e-9)
    assert "Tighten" in str(caught.value)


@pytest.mark.parametrize("beyond", [1e-6, -1e-6])
def test_a_tighter_tolerance_decides_a_near_contact(beyond: float) -> None:
    """1e-6 off: reported at 1e-5; at 1e-9 a miss, or two events sqrt(2e-6) off the top."""
    event = Event(lambda t, y: y[0] - 1 - beyond, terminal=False)
    with pytest.raises(SolveFailed, match="GRAZING"):
        odeint_event(oscillator, UP, [0.0, 3.0], event, rtol=1e-5, atol=1e-5)
    found = odeint_event(oscillator, UP, [0.0, 3.0], event, rtol=1e-9, atol=1e-9)
    off = math.acos(1 + beyond) if beyond < 0 else 0.0
    exact = [math.pi / 2 - off, math.pi / 2 + off] if off else []
    check_close(found.t, torch.tensor(exact, dtype=FLOAT), rtol=0.0, atol=1e-5)


def test_a_contact_that_crosses_without_a_slope_is_reported() -> None:
    """(t - 1)^3 changes its sign, but the time of its zero has no derivative."""
    event = Event(lambda t, y: (t - 1) ** 3)
    with pytest.raises(SolveFailed, match="GRAZING at t=1 "):
        odeint_event(steady, ONE, [0.0, 2.5], event)


def test_a_state_that_settles_on_the_zero_is_reported() -> None:
    """dy/dt = 1 - y comes to 1 within the tolerance, and rounding then crosses it or does not."""
    event = Event(lambda t, y: y[0] - 1, terminal=False)
    with pytest.raises(SolveFailed, match="GRAZING"):
        odeint_event(lambda t, y: 1 - y, 0 * ONE, [0.0, 60.0], event)
    short = odeint_event(lambda t, y: 1 - y, 0 * ONE, [0.0, 10.0], event)  # 5e-5 away: no contact
    assert short.counts == 0


def test_other_samples_go_on_and_get_their_gradient() -> None:
    """One grazes, one fires, one never comes near; a failed sample sends no gradient."""
    top = torch.tensor([1.0, 2.0, 0.5], dtype=FLOAT, requires_grad=True)
    y0 = torch.stack([0 * top, top], dim=1)
    event = Event(lambda t, y: y[:, 0] - 1)
    problem = ODEProblem(oscillator, y0, [0.0, 1.0, 2.0], event=event)
    found = solve(problem, Solver(coupling="per_sample"))
    assert found.status.tolist() == [Status.GRAZING, Status.OK, Status.OK]
    assert found.event is not None
    assert found.event.ended_by.tolist() == [-1, 0, -1]
    assert found.event.t_end.isnan().tolist() == [True, False, False]
    assert found.y[:, 0, 0].isnan().tolist() == [False, False, True]
    assert not bool(found.y[:, 1:].isnan().any())
    (slope,) = torch.autograd.grad(found.y.nan_to_num().sum() + found.event.t[1, 0], top)
    assert float(slope[0]) == 0
    assert bool(torch.isfinite(slope).all())


def ball(restitution: float, floor: float = 0.0) -> Ball:
    """A ball let go 1 above the floor."""
    numbers = (torch.tensor(x, dtype=FLOAT) for x in (1.0 + floor, 9.81, restitution, floor))
    return Ball(*numbers)


def test_more_events_than_the_limit_are_reported() -> None:
    """The limit itself is allowed."""
    known = ball(0.5)
    solver = Solver(max_events=3)
    found = odeint_event(known, known.y0, [0.0, 1.2], known.bounce(), solver=solver)
    assert found.counts == 3
    with pytest.raises(SolveFailed, match=r"TOO_MANY_EVENTS.*Zeno"):
        odeint_event(known, known.y0, [0.0, 1.3], known.bounce(), solver=solver)


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("restitution", [0.1, 0.0])
def test_bounces_that_accumulate_are_reported_where_they_do(
    restitution: float, floor: float
) -> None:
    """Zeno: infinitely many by sqrt(2 / g) (1 + e) / (1 - e); with e = 0 at the first contact."""
    known = ball(restitution, floor)
    solution = solve(
        ODEProblem(known, known.y0, [0.0, 5.0], event=known.bounce()), Solver(max_events=100)
    )
    assert solution.status.tolist() == [Status.TOO_MANY_EVENTS]
    limit = math.sqrt(2 / 9.81) * (1 + restitution) / (1 - restitution)
    assert solution.stops[0].t == pytest.approx(limit, abs=1e-7)
    assert bool(solution.y[1].isnan().all())


def test_a_limit_of_steps_counts_the_whole_solve() -> None:
    """As without events."""
    wave = Event(lambda t, y: y[0] - 0.05, terminal=False)
    f = lambda t, y: torch.cos(10 * t) + 0 * y  # noqa: E731
    solution = solve(ODEProblem(f, 0 * ONE, [0.0, 50.0], event=wave), Solver(max_steps=60))
    assert solution.status.tolist() == [Status.MAX_STEPS]


def test_a_pole_before_the_event_is_a_failure_of_the_solve() -> None:
    """dy/dt = y^2 from 1.5 blows up at 2 / 3; from 0.3 it passes 0.4 before."""
    y0 = torch.tensor([[0.3], [1.5]], dtype=FLOAT)
    event = Event(lambda t, y: y[:, 0] - 0.4)
    f = lambda t, y: y * y  # noqa: E731
    solution = solve(ODEProblem(f, y0, [0.0, 0.5, 1.5], event=event, batched=True))
    assert int(solution.status[0]) == Status.OK
    assert int(solution.status[1]) in (Status.STEP_TOO_SMALL, Status.NON_FINITE)
    assert solution.event is not None
    expected = torch.tensor([1 / 0.3 - 1 / 0.4], dtype=FLOAT)
    check_close(solution.event.t[0], expected, rtol=0.0, atol=1e-6)


def nan_below(t: Tensor, y: Tensor) -> Tensor:
    """Defined on one side of its zero only."""
    return torch.sqrt(y[0] - 0.5)


def test_an_event_function_that_is_not_finite_is_a_status() -> None:
    """At its zero, and at the start."""
    y0 = torch.tensor([1.0, 0.0], dtype=FLOAT)
    for fn in (nan_below, lambda t, y: torch.nan * y[0]):
        with pytest.raises(SolveFailed, match="EVENT_NON_FINITE"):
            odeint_event(oscillator, y0, [0.0, 7.0], Event(fn))


def test_a_change_that_is_not_finite_is_a_status() -> None:
    """And no state behind it."""
    event = Event(lambda t, y: y[0] - 0.5, terminal=False, change=lambda t, y: y / 0)
    solution = solve(ODEProblem(oscillator, UP, [0.0, 1.0], event=event))
    assert solution.status.tolist() == [Status.NON_FINITE]
    assert bool(solution.y[1].isnan().all())
