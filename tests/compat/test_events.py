"""Solves up to an event, and the solution as a function, as torchdiffeq asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchdiffeq as theirs
from torch import Tensor

from ctflow import InvalidProblem, SolveFailed, Unsupported
from ctflow.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from tests.compat.fields import DOUBLE, GRID, IMPLICIT, Network, start, times

_ADAPTIVE = ("dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")


def _fall(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return y[1], -9.81 * torch.ones_like(y[1])


def _ball(height: float = 4.905) -> tuple[Tensor, Tensor]:
    y0 = torch.tensor([[height], [0.0]], dtype=DOUBLE).requires_grad_()
    return y0[0], y0[1]


def _floor(t: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
    return y[0]


def _now(grad: bool = False) -> Tensor:
    return torch.zeros((), dtype=DOUBLE).requires_grad_(grad)


@pytest.mark.parametrize("method", [*_ADAPTIVE, *GRID, *IMPLICIT])
def test_a_ball_lands_when_it_should(method: str) -> None:
    """sqrt(2 h / g), at the speed -sqrt(2 h g)."""
    options = None if method in _ADAPTIVE else {"step_size": 0.01, "interp": "cubic"}
    t = torch.stack([_now(), _now() + 1])
    settings: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8, "method": method, "options": options}
    event_t, (height, speed) = odeint(_fall, _ball(), t, event_fn=_floor, **settings)
    tol = 1e-2 if "euler" in method else 1e-4
    assert abs(float(event_t.detach()) - 1) < tol
    assert abs(float(speed[-1].detach()) + 9.81) < 9.81 * tol
    assert event_t.shape == ()
    assert height.shape == speed.shape == (2, 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_an_event_are_those_of_torchdiffeq(reverse: bool, adjoint: bool) -> None:
    """Its time and state, with respect to the state and the time at the start."""
    found: list[list[Tensor]] = []
    for lib in (theirs, odeint_event.__globals__):  # both libraries' own functions
        get: Callable[[str], Any] = lib.get if isinstance(lib, dict) else partial(getattr, lib)
        interface = get("odeint_adjoint" if adjoint else "odeint")
        y0 = torch.tensor([[1.0], [-3.0 if reverse else 2.0]], dtype=DOUBLE).requires_grad_()
        t0 = _now(grad=True)
        settings: dict[str, Any] = {"odeint_interface": interface, "rtol": 1e-9, "atol": 1e-10}
        settings |= {"adjoint_params": ()} if adjoint else {}
        event_t, y = get("odeint_event")(
            _fall, (y0[0], y0[1]), t0, event_fn=_floor, reverse_time=reverse, **settings
        )
        (event_t + 0.3 * y[1][-1].sum()).backward()
        found.append([event_t.detach(), y[1].detach(), y0.grad, t0.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_the_time_of_an_event_has_its_gradient_without_odeint_event() -> None:
    """torchdiffeq returns a constant there, or one whose gradient is zero."""
    for interface in (odeint, partial(odeint_adjoint, adjoint_params=())):
        y0 = torch.tensor([[4.905], [0.0]], dtype=DOUBLE).requires_grad_()
        t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
        event_t, _ = interface(_fall, (y0[0], y0[1]), t, event_fn=_floor)
        event_t.backward()
        torch.testing.assert_close(y0.grad[0].item(), 1 / 9.81, rtol=1e-5, atol=0)


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_parameters_of_the_event_function_get_their_gradient(interface: Callable[..., Any]) -> None:
    """torchdiffeq wants them in the state."""
    floor = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    event_t, _ = odeint_event(
        _fall, _ball(), _now(), event_fn=lambda t, y: y[0] - floor, odeint_interface=interface
    )
    event_t.backward()
    speed = math.sqrt(2 * 9.81 * (4.905 - 1))
    torch.testing.assert_close(floor.grad.item(), -1 / speed, rtol=1e-5, atol=0)


def test_the_first_of_several_events_ends_the_solve() -> None:
    """Each value of the event function has a side of its own."""

    def both(t: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([y[0] - 1.0, y[1] + 2.0])

    event_t, (_, speed) = odeint_event(_fall, _ball(), _now(), event_fn=both)
    torch.testing.assert_close(speed[-1].item(), -2.0, rtol=1e-9, atol=0)
    torch.testing.assert_close(event_t.item(), 2 / 9.81, rtol=1e-6, atol=0)


def test_two_crossings_in_one_step_are_seen() -> None:
    """torchdiffeq compares the signs at the ends of steps, and misses both."""

    def dip(t: Tensor, y: Tensor) -> Tensor:
        return (t - 1.0) ** 2 - 1e-4 + 0 * y[0]

    y0, t = torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    constant = lambda t, y: torch.zeros_like(y)  # noqa: E731
    event_t, _ = odeint(constant, y0, t, event_fn=dip)
    torch.testing.assert_close(event_t.item(), 0.99, rtol=1e-9, atol=0)


def test_an_event_at_the_start_ends_the_solve_there() -> None:
    """As in torchdiffeq, where the function is zero there exactly."""
    y0 = (torch.zeros(1, dtype=DOUBLE), -torch.ones(1, dtype=DOUBLE))
    for interface in (odeint, partial(odeint_adjoint, adjoint_params=())):
        event_t, _ = odeint_event(_fall, y0, _now(), event_fn=_floor, odeint_interface=interface)
        assert float(event_t) == 0.0


@pytest.mark.parametrize("interface", [odeint, partial(odeint_adjoint, adjoint_params=())])
@pytest.mark.parametrize("last", [0.5, 3.0])
def test_a_last_time_may_end_the_solve(interface: Callable[..., Any], last: float) -> None:
    """As torchdiffeq's example has it: zero behind it, a constant; before it a real event."""
    y0 = torch.tensor([[4.905], [0.0]], dtype=DOUBLE).requires_grad_()

    def floor_or_end(t: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        return torch.zeros_like(t) if t > last else y[0]

    event_t, (height, _) = odeint_event(
        _fall, (y0[0], y0[1]), _now(), event_fn=floor_or_end, odeint_interface=interface
    )
    assert abs(float(event_t.detach()) - min(last, 1.0)) < 1e-6
    (event_t + height[-1].sum()).backward()
    expected = 1.0 if last < 1 else 1 / 9.81  # the state at a time that stays; or the time alone
    torch.testing.assert_close(y0.grad[0].item(), expected, rtol=1e-5, atol=0)


def test_what_cannot_be_an_event_is_refused() -> None:
    """By name, before the solve or when it is clear."""
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    with pytest.raises(InvalidProblem, match="two times"):
        odeint(_fall, _ball(), times(3), event_fn=_floor)
    with pytest.raises(InvalidProblem, match="must return a real tensor"):
        odeint(_fall, _ball(), t, event_fn=lambda t, y: 1.0)
    with pytest.raises(InvalidProblem, match="step_size"):
        odeint(_fall, _ball(), t, event_fn=_floor, method="rk4")
    options: dict[str, Any] = {"step_size": 0.1, "perturb": True}
    with pytest.raises(Unsupported, match="perturb"):
        odeint(_fall, _ball(), t, event_fn=_floor, method="rk4", options=options)
    with pytest.raises(Unsupported, match="no events"):
        odeint(_fall, _ball(), t, event_fn=_floor, method="scipy_solver")
    settings: dict[str, Any] = {"odeint_interface": theirs.odeint}
    with pytest.raises(Unsupported, match="must end in"):
        odeint_event(_fall, _ball(), _now(), event_fn=_floor, **settings)


def test_an_event_that_never_comes_is_a_failure() -> None:
    """torchdiffeq goes on for ever."""
    y0, t = torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    with pytest.raises(SolveFailed, match="no sign change"):
        odeint(lambda t, y: torch.zeros_like(y), y0, t, event_fn=lambda t, y: y[0] + 1)
    options = {"max_num_steps": 20}
    with pytest.raises(SolveFailed, match="max_num_steps=20"):
        odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] + 1, options=options)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_the_dense_solution_is_that_of_torchdiffeq(ends: tuple[float, float]) -> None:
    """In shape and value; also at its end, and backwards, where theirs raises."""
    t0, t1 = (torch.tensor(x, dtype=DOUBLE) for x in ends)
    y0 = start().detach()
    sol = odeint_dense(Network(), y0, t0, t1, rtol=1e-8, atol=1e-8)
    if ends[0] == 0:
        other = theirs.odeint_dense(Network(), y0, t0, t1, rtol=1e-8, atol=1e-8)
        at = torch.tensor(0.7, dtype=DOUBLE)
        torch.testing.assert_close(sol(at), other(at), rtol=1e-6, atol=1e-6)
    y = odeint(Network(), y0, torch.stack([t0, t1]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol(t1), y[-1], rtol=1e-9, atol=1e-9)
    assert sol(times(4)).shape == (4, 2, 3)
    with pytest.raises(InvalidProblem, match="must lie within"):
        sol(3.0)
    with pytest.raises(Unsupported, match="adapt their steps"):
        odeint_dense(Network(), y0, t0, t1, method="rk4")


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_a_constant_event_function_is_met_on_the_methods_own_steps(method: str) -> None:
    """The time is torchdiffeq's, and the state the one that its same method comes to there."""

    def late(t: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(1.0 if t < 2.6 else -1.0)

    y0, t0 = torch.ones(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    settings: dict[str, Any] = {"method": method, "options": {"step_size": 0.25}}
    t, y = odeint_event(lambda t, y: -y, y0, t0, event_fn=late, **settings)
    wanted, _ = theirs.odeint_event(lambda t, y: -y, y0, t0, event_fn=late, **settings)
    torch.testing.assert_close(t, wanted, rtol=1e-6, atol=0.0)
    there = theirs.odeint(lambda t, y: -y, y0, torch.stack([t0, t]), **settings)
    torch.testing.assert_close(y, there, rtol=1e-12, atol=0.0)
