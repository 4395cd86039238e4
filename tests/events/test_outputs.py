"""States at output times through events, dense output, costs; and all kinds of states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, Solver, odeint, odeint_event, solve
from tests.checks import check_close, check_relative
from tests.events.known import FLOAT, TIGHT, Ball, oscillator

GRADIENTS = ["direct", "checkpointed", "adjoint"]


def ball(*heights: float) -> Ball:
    """A ball whose every number is a parameter."""
    height = torch.tensor(heights if len(heights) > 1 else heights[0], dtype=FLOAT)
    numbers = (torch.tensor(x, dtype=FLOAT).requires_grad_() for x in (9.81, 0.8, 0.1))
    return Ball(height.requires_grad_(), *numbers)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_course_through_bounces_is_right_with_every_gradient(gradient: Any) -> None:  # noqa: ANN401
    """Heights at times before, between and behind; times and all parameters are differentiated."""
    known = ball(1.3)
    t = torch.linspace(0.1, 1.9, 9, dtype=FLOAT).requires_grad_()
    found = solve(
        ODEProblem(known, known.y0, t, event=known.bounce()), Solver(gradient=gradient, **TIGHT)
    )
    exact = known.heights(t)
    check_close(found.y[:, 0], exact, rtol=0.0, atol=1e-9)
    wanted = [*vars(known).values(), t]
    weights = torch.linspace(0.5, 2.0, 9, dtype=FLOAT)
    ours, theirs = (
        torch.autograd.grad((weights * y).sum(), wanted) for y in (found.y[:, 0], exact)
    )
    check_relative(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_samples_with_times_of_their_own(gradient: Any) -> None:  # noqa: ANN401
    """[B, T]: two, one and two bounces; masked rows end early."""
    known = ball(1.3, 3.1, 0.6)
    t = torch.tensor(
        [[0.0, 0.3, 0.9, 1.3], [0.1, 0.5, 1.0, 9.0], [0.0, 0.4, 0.9, 9.0]], dtype=FLOAT
    )
    mask = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 3 + [False]])
    problem = ODEProblem(known, known.y0, t, event=known.bounce(), mask=mask)
    found = solve(problem, Solver(gradient=gradient, **TIGHT))
    assert found.event is not None
    assert found.event.counts.tolist() == [2, 1, 2]
    rows = [
        Ball(known.height[b], known.gravity, known.restitution, known.floor).heights(problem.t[b])
        for b in range(3)
    ]
    exact = torch.stack(rows, dim=1)
    check_close(found.y[..., 0], exact, rtol=0.0, atol=1e-9)
    wanted = list(vars(known).values())
    ours, theirs = (torch.autograd.grad((y * y).sum(), wanted) for y in (found.y[..., 0], exact))
    check_relative(ours, theirs, rtol=1e-8)


def test_behind_a_terminal_event_outputs_repeat_the_state_at_it() -> None:
    """Finite, and with the gradient of the event."""
    known = ball(1.3, 3.1)
    t = torch.linspace(0.0, 0.7, 8, dtype=FLOAT)
    problem = ODEProblem(known, known.y0, t, event=known.bounce(1), batched=True)
    found = solve(problem, Solver(**TIGHT))
    assert found.event is not None
    assert found.ok
    assert found.event.ended_by.tolist() == [0, -1]
    end = known.times(1)[0]
    clipped = torch.minimum(t[:, None], end)
    exact = known.height - known.gravity * clipped**2 / 2
    check_close(found.y[..., 0], exact, rtol=0.0, atol=1e-9)
    speed = -known.gravity * clipped
    wanted = [known.height, known.gravity, known.floor]
    ours, theirs = (torch.autograd.grad(v.sum(), wanted) for v in (found.y[..., 1], speed))
    check_relative(ours, theirs, rtol=1e-8)


def test_an_output_exactly_at_an_event_is_the_state_before_it() -> None:
    """Whichever way the time of the event is rounded: it is put on the output."""
    double = Event(lambda t, y: y[0], terminal=False, change=lambda t, y: 2 * y)
    y0 = torch.tensor([1.0, 0.0], dtype=FLOAT)
    clock = Event(lambda t, y: t * 3 - math.pi, terminal=False, change=lambda t, y: 2 * y)
    for event, place in ((clock, math.pi / 3), (double, None)):
        t = torch.tensor([0.0, place or math.pi / 2, 2.0], dtype=FLOAT)
        found = solve(ODEProblem(oscillator, y0, t, event=event), Solver(**TIGHT))
        assert found.event is not None
        exact = torch.stack([torch.cos(t[1]), -torch.sin(t[1])])
        if place is not None:
            assert float(found.event.t[0]) == place
        check_close(found.event.y[0], exact, rtol=0.0, atol=1e-8)
        check_close(found.event.y_after[0], 2 * exact, rtol=0.0, atol=1e-8)
        if place is not None:
            check_close(found.y[1], exact, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_the_solution_as_a_function_goes_through_events(gradient: Any) -> None:  # noqa: ANN401
    """At any time, and its gradient; at the time of an event the state before it."""
    known = ball(1.3)
    problem = ODEProblem(known, known.y0, [0.0, 1.9], event=known.bounce(), dense=True)
    found = solve(problem, Solver(gradient=gradient, **TIGHT))
    assert found.dense is not None
    assert found.event is not None
    t = torch.linspace(0.01, 1.9, 40, dtype=FLOAT).requires_grad_()
    exact = known.heights(torch.cat([torch.zeros(1, dtype=FLOAT), t]))[1:]
    ours = found.dense(t)[:, 0]
    check_close(ours, exact, rtol=0.0, atol=1e-9)
    wanted = [*vars(known).values(), t]
    pair = (torch.autograd.grad((y * y).sum(), wanted, retain_graph=True) for y in (ours, exact))
    check_relative(*pair, rtol=1e-8)
    at_event = found.dense(found.event.t.detach())
    check_close(at_event, found.event.y, rtol=0.0, atol=1e-12)


def test_a_running_cost_is_summed_through_events() -> None:
    """The integral of the speed's size: height before, and twice each height between."""
    known = ball(1.3)
    end = (known.times(3)[2]).detach()
    problem = ODEProblem(
        known, known.y0, torch.stack([0 * end, end]), event=known.bounce(),
        running_cost=lambda t, y: y[1] ** 2,
    )  # fmt: skip
    found = solve(problem, Solver(**TIGHT))
    assert found.event is not None
    speed = torch.sqrt(2 * known.gravity * (known.height - known.floor))
    thirds = [1.0, 2 * known.restitution**3, 2 * known.restitution**6]
    exact = sum(speed**3 / (3 * known.gravity) * x for x in thirds)
    check_close(found.cost[1], exact, rtol=0.0, atol=1e-9)
    fixed = torch.autograd.grad(found.cost[1], [known.height, known.restitution])
    assert all(bool(torch.isfinite(g)) for g in fixed)
    assert found.event.y.shape == (3, 2)


def test_states_in_dicts_with_arguments() -> None:
    """`args` reach the event's functions too, and get their gradient; the order of keys is free."""
    restitution = torch.tensor(0.8, dtype=FLOAT, requires_grad=True)
    event = Event(
        lambda t, y, args: y["x"].sum(), direction=-1, terminal=2,
        change=lambda t, y, args: {"v": -args["e"] * y["v"], "x": y["x"]},
    )  # fmt: skip
    y0 = {"x": torch.ones(1, dtype=FLOAT), "v": torch.zeros(1, dtype=FLOAT)}
    f = lambda t, y, args: {"x": y["v"], "v": -9.81 + 0 * y["v"]}  # noqa: E731
    found = odeint_event(f, y0, [0.0, 3.0], event, args={"e": restitution}, **TIGHT)
    fall = math.sqrt(2 / 9.81)
    exact = fall * torch.stack([torch.ones((), dtype=FLOAT), 1 + 2 * restitution])
    check_close(found.t, exact, rtol=0.0, atol=1e-9)
    check_close(found.y_after["v"], -restitution * found.y["v"], rtol=0.0, atol=1e-12)
    (slope,) = torch.autograd.grad(found.t[1], restitution)
    check_close(slope, torch.tensor(2 * fall, dtype=FLOAT), rtol=0.0, atol=1e-9)


def test_complex_states_have_events() -> None:
    """Where the real part of exp(i t) is zero."""
    y0 = torch.ones(1, dtype=torch.complex128)
    event = Event(lambda t, y: y[0].real, terminal=False)
    found = odeint_event(lambda t, y: 1j * y, y0, [0.0, 5.0], event, **TIGHT)
    exact = torch.pi * torch.tensor([0.5, 1.5], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-8)


def test_without_gradients_the_numbers_are_the_same() -> None:
    """no_grad and inference mode; `odeint` returns what `solve` does."""
    known = ball(1.3)
    t = [0.0, 0.4, 1.9]
    y = odeint(known, known.y0, t, event=known.bounce())
    found = odeint_event(known, known.y0, t, known.bounce())
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(odeint(known, known.y0, t, event=known.bounce()), y)
            again = odeint_event(known, known.y0, t, known.bounce())
        assert torch.equal(again.t, found.t)
        assert not again.t.requires_grad


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_what_a_solve_cost_is_counted(gradient: Any) -> None:  # noqa: ANN401
    """All stretches together, forward and backward; step_times run through the events."""
    known = ball(1.3)
    calls: list[int] = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return known(t, y)

    problem = ODEProblem(counted, known.y0, [0.0, 1.9], event=known.bounce())
    found = solve(problem, Solver(gradient=gradient))
    assert found.event is not None
    assert len(calls) == int(found.stats.forward.n_f_evals)
    ends = found.stats.step_times[0]
    assert bool((ends.diff() > 0).all())
    assert all(bool((ends == t).any()) for t in found.event.t.detach())
    found.y[-1].sum().backward()
    assert found.stats.backward is not None
    assert (int(found.stats.backward.n_f_evals) > 0) == (gradient != "direct")


def test_the_cost_of_the_backward_pass_is_that_of_all_stretches_once() -> None:
    """Asked for a second time it is the same, and not twice as much."""
    y0 = torch.tensor([1.0, 0.0], dtype=FLOAT, requires_grad=True)
    bounce = Event(
        lambda t, y: y[0], direction=-1, terminal=False,
        change=lambda t, y: torch.stack([y[0], -0.8 * y[1]]),
    )  # fmt: skip
    problem = ODEProblem(
        lambda t, y: torch.stack([y[1], -9.81 + 0 * y[1]]), y0, [0.0, 2.0], event=bounce
    )
    solution = solve(problem, Solver(gradient="checkpointed"))
    assert solution.event is not None
    total, steps = solution.event.t.sum(), list[list[int]]()
    for again in (True, False):
        total.backward(retain_graph=again)
        assert solution.stats.backward is not None
        steps.append(solution.stats.backward.n_steps.tolist())
    assert steps[0] == steps[1]
    assert steps[0][0] >= int(solution.event.counts)
