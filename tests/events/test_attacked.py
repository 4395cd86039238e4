"""Events that accelerate, at one time, on stiff problems, and between fixed steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, SolveFailed, Solver, Status, odeint_event, solve
from tests.problems import FLOAT


def numbers(*values: float) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=FLOAT)


def test_events_that_accelerate_end_in_too_many_and_not_beyond_the_floor() -> None:
    """The gaps shrink by 1.1; some time they are below what time resolves."""
    kick = Event(
        lambda t, y: y[0] - 1, direction=-1, terminal=False,
        change=lambda t, y: torch.stack([y[0] + 0.1, 1.1 * y[1]]),
    )  # fmt: skip
    problem = ODEProblem(
        lambda t, y: torch.stack([-y[1], 0 * y[1]]), numbers(1.1, 1.0), [0.0, 2.0], event=kick
    )
    assert solve(problem, Solver()).status.tolist() == [Status.TOO_MANY_EVENTS]


def test_events_some_hundred_units_of_time_apart_are_all_found() -> None:
    """At t = 1e6 a period is 450 units in the last place."""
    reset = Event(
        lambda t, y: y[0] - 1, direction=1, terminal=False, change=lambda t, y: 0 * y
    )  # fmt: skip
    found = odeint_event(lambda t, y: 1e7 + 0 * y, numbers(0.0), [1e6, 1e6 + 1e-6], reset)
    assert int(found.counts) in (9, 10)
    assert float(found.y_end) <= 1.01


def test_of_two_events_by_the_same_function_the_first_of_the_list_comes_first() -> None:
    """And a terminal one ends it there."""
    reset = Event(lambda t, y: y[0] - 1.0, terminal=False, change=lambda t, y: y + 1)
    last = Event(lambda t, y: y[0] - 1.0)
    for events, ended_by in (([last, reset], 0), ([reset, last], -1)):
        found = odeint_event(lambda t, y: 1 + 0 * y, numbers(0.0), [0.0, 2.0], events)
        assert int(found.which[0]) == 0
        assert int(found.ended_by) == ended_by


def test_a_stiff_problem_with_events_is_told_so() -> None:
    """As without."""
    with pytest.raises(SolveFailed, match="stiff here") as failed:
        odeint_event(
            lambda t, y: -1e5 * (y - torch.cos(t)), numbers(1.0), [0.0, 100.0],
            Event(lambda t, y: y[0] - 5), solver=Solver(max_steps=1000),
        )  # fmt: skip
    assert "rodas5p" in str(failed.value)


@pytest.mark.parametrize("step", [0.1, 0.0314])
def test_grazing_is_reported_with_fixed_steps_too(step: float) -> None:
    """The tolerance is then the default one of the dtype."""
    problem = ODEProblem(
        lambda t, y: torch.stack([y[1], -y[0]]), numbers(0.0, 1.0), [0.0, 9.0],
        event=Event(lambda t, y: y[0] - 1),
    )  # fmt: skip
    solution = solve(problem, Solver(method="dop853", step=step))
    assert solution.status.tolist() == [Status.GRAZING]
