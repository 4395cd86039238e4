"""Which zeros count as events, in which order, and that a sample's do not depend on its batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, Solver, odeint_event, solve
from tests.checks import check_close
from tests.events.known import FLOAT, TIGHT, oscillator, steady

ZERO = torch.zeros(1, dtype=FLOAT)
UP = torch.tensor([0.0, 1.0], dtype=FLOAT)


def passes(level: float, **settings: object) -> Event:
    """The first variable passes a level."""
    return Event(lambda t, y: y[0] - level, terminal=False, **settings)  # pyright: ignore


def test_a_zero_at_the_start_does_not_fire() -> None:
    """Neither with a slope (sin t at 0), nor without one (a state at rest, which stays there)."""
    found = odeint_event(oscillator, UP, [0.0, 4.0], passes(0.0), **TIGHT)
    check_close(found.t, torch.tensor([math.pi], dtype=FLOAT), rtol=0.0, atol=1e-9)
    at_rest = odeint_event(oscillator, 0 * UP, [0.0, 4.0], passes(0.0), **TIGHT)
    assert at_rest.t.shape == (0,)


def test_a_zero_behind_a_change_does_not_fire() -> None:
    """A reset puts the state on the zero of another function, from which it leaves either way."""
    reset = Event(lambda t, y: y[0] - 1.0, terminal=False, change=lambda t, y: 0 * y)
    for slope in (-0.5, 0.5):
        f = lambda t, y, slope=slope: torch.stack([1 + 0 * y[0], slope + 0 * y[1]])  # noqa: E731
        second = Event(lambda t, y: y[1], terminal=False)
        found = odeint_event(f, UP, [0.0, 2.4], [reset, second])
        assert found.which.tolist() == [0, 0]
        check_close(found.t, torch.tensor([1.0, 2.0], dtype=FLOAT), rtol=0.0, atol=1e-12)


def test_several_events_in_one_step_come_in_the_order_of_time() -> None:
    """dy/dt = 1 is one step: two functions pass, and a third twice, 0.01 apart."""
    pair = Event(lambda t, y: (y[0] - 5) * (y[0] - 5.01), terminal=False)
    solver = Solver(first_step=10.0)
    found = odeint_event(steady, ZERO, [0.0, 10.0], [pair, passes(3.2), passes(3.1)], solver=solver)
    assert found.which.tolist() == [2, 1, 0, 0]
    exact = torch.tensor([3.1, 3.2, 5.0, 5.01], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("direction", [-1, 1])
def test_of_two_zeros_in_one_step_the_direction_chooses(direction: int) -> None:
    """It falls through zero at 5, and rises again at 5.01."""
    pair = Event(lambda t, y: (y[0] - 5) * (y[0] - 5.01), direction=direction)
    found = odeint_event(steady, ZERO, [0.0, 10.0], pair, solver=Solver(first_step=10.0))
    exact = torch.tensor([5.0 if direction < 0 else 5.01], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("apart", [1e-6, 1e-9, 1e-10, 1e-13, -1e-10])
def test_events_closer_than_the_tolerance_are_both_found(apart: float) -> None:
    """Two functions of other shape, zero at nearly one time: neither hides the other."""
    other = Event(lambda t, y: torch.exp(3 * y[0]) - math.exp(3 * (0.7 + apart)), terminal=False)
    found = odeint_event(oscillator, UP, [0.0, 3.0], [passes(0.7), other])
    first, last = math.asin(0.7), math.pi - math.asin(0.7)
    exact = torch.tensor([first, first, last, last], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=2 * abs(apart) + 1e-7)
    order = [0, 1, 1, 0] if apart > 0 else [1, 0, 0, 1]
    assert found.which.tolist() == order
    assert bool((found.t.diff() >= 0).all())


def test_events_at_the_same_time_both_happen_one_after_the_other() -> None:
    """A ball in a corner: both walls turn it round, at one time, and it goes back as it came."""
    f = lambda t, y: torch.cat([y[2:], 0 * y[2:]])  # noqa: E731
    walls = [
        Event(lambda t, y, i=i: y[i], terminal=False,
              change=lambda t, y, i=i: torch.where(torch.arange(4) == 2 + i, -y, y))
        for i in (0, 1)
    ]  # fmt: skip
    y0 = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=FLOAT)
    found = odeint_event(f, y0, [0.0, 3.0], walls)
    assert found.which.tolist() == [0, 1]
    check_close(found.t, torch.ones(2, dtype=FLOAT), rtol=0.0, atol=1e-12)
    exact = torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=FLOAT)
    check_close(found.y_end, exact, rtol=0.0, atol=1e-12)


def test_samples_of_a_batch_have_their_corners_at_their_own_times() -> None:
    """What one sample does in a round leaves the others' events at the same time alone."""
    f = lambda t, y: torch.cat([y[:, 2:], 0 * y[:, 2:]], dim=1)  # noqa: E731
    walls = [
        Event(lambda t, y, i=i: y[:, i], terminal=False,
              change=lambda t, y, i=i: torch.where(torch.arange(4) == 2 + i, -y, y))
        for i in (0, 1)
    ]  # fmt: skip
    place = torch.tensor([1.0, 2.0, 1.5], dtype=FLOAT).unsqueeze(1).expand(-1, 2)
    y0 = torch.cat([place, -torch.ones(3, 2, dtype=FLOAT)], dim=1)
    for method in ("dopri5", "rk4"):
        step = 0.3 if method == "rk4" else None
        solver = Solver(method=method, step=step, coupling="per_sample")
        found = odeint_event(f, y0, [0.0, 4.0], walls, solver=solver)
        assert found.which.tolist() == [[0, 1]] * 3
        check_close(found.t, place, rtol=0.0, atol=1e-12)
        exact = torch.cat([4 - place, torch.ones(3, 2, dtype=FLOAT)], dim=1)
        check_close(found.y_end, exact, rtol=0.0, atol=1e-12)


def test_an_event_of_time_alone_needs_no_state() -> None:
    """A clock; and the n-th event ends the solve."""
    clock = Event(lambda t, y: torch.sin(math.pi * t), terminal=3)
    found = odeint_event(oscillator, UP, [0.5, 9.0], clock)
    check_close(found.t, torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT), rtol=0.0, atol=1e-12)
    check_close(found.t_end, found.t[-1], rtol=0.0)


def test_a_terminal_event_ends_the_solve_and_one_never_reached_is_told() -> None:
    """`ended_by` says which; -1 and the last time where none did, with all states finite."""
    ends = odeint_event(oscillator, UP, [0.0, 9.0], [passes(0.2), Event(lambda t, y: y[0] - 0.5)])
    assert int(ends.ended_by) == 1
    check_close(ends.t_end, ends.t[-1], rtol=0.0)
    never = odeint_event(oscillator, UP, [0.0, 9.0], Event(lambda t, y: y[0] - 5.0))
    assert int(never.ended_by) == -1
    assert never.t.shape == (0,)
    assert never.y.shape == (0, 2)
    assert float(never.t_end) == 9.0
    check_close(never.y_end[0], torch.sin(torch.tensor(9.0, dtype=FLOAT)), rtol=0.0, atol=1e-5)


def test_an_event_at_the_last_time_is_found_whichever_way_its_sign_is_rounded() -> None:
    """sin is zero at pi only to rounding; two functions of opposite sign agree on it."""
    for factor in (1.0, -1.0):
        event = Event(lambda t, y, factor=factor: factor * (t - math.pi), terminal=False)
        for end in (math.pi, math.nextafter(math.pi, 0.0), math.nextafter(math.pi, 4.0)):
            assert odeint_event(oscillator, UP, [0.0, end], event).counts == 1


def test_an_event_on_a_declared_jump_sees_the_side_before_it() -> None:
    """dy/dt is 1 up to t = 1 and 2 behind: the event there doubles y, and the next is at 2."""
    f = lambda t, y: torch.where(t < 1, 1.0, 2.0) + 0 * y  # noqa: E731
    events = [passes(1.0, change=lambda t, y: y + 1), passes(4.0)]
    level = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
    events[0] = Event(lambda t, y: y[0] - level, terminal=False, change=lambda t, y: y + 1)
    found = odeint_event(f, ZERO, [0.0, 3.0], events, jump_t=[1.0])
    check_close(found.t, torch.tensor([1.0, 2.0], dtype=FLOAT), rtol=0.0, atol=1e-12)
    (slope,) = torch.autograd.grad(found.t[0], level)
    check_close(slope, torch.ones((), dtype=FLOAT), rtol=0.0, atol=1e-12)


def stiffening(t: Tensor, y: Tensor) -> Tensor:
    """A hard spring, by operations whose bits do not depend on the place in a tensor."""
    return torch.stack([y[:, 1], -y[:, 0] * y[:, 0] * y[:, 0] - y[:, 0]], dim=1)


def test_a_samples_events_do_not_depend_on_its_batch() -> None:
    """Bits of outputs, times and states; and what it cost."""
    torch.manual_seed(0)
    y0 = torch.rand(3, 2, dtype=FLOAT)
    event = Event(lambda t, y: y[:, 0] - 0.1, terminal=False, change=lambda t, y: y * 0.9)
    solver = Solver(coupling="per_sample")

    def run(rows: list[int]) -> tuple[list[Tensor], int]:
        problem = ODEProblem(stiffening, y0[rows], torch.linspace(0, 4, 5), event=event)
        found = solve(problem, solver)
        assert found.event is not None
        n = int(found.event.mask[0].sum())
        parts = [found.y[:, 0], found.event.t[0, :n], found.event.y_after[:n, 0]]
        costs = (found.stats.forward.n_f_evals, found.stats.forward.n_steps)
        return [*parts, *(x[0] for x in costs)], n

    counts = set()
    for b in range(3):
        alone, n = run([b])
        together, _ = run([b, *(i for i in range(3) if i != b)])
        counts.add(n)
        assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))
    assert len(counts) > 1
