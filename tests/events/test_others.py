"""The same events as SciPy and torchdiffeq find; and what only ours have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import Event, odeint_event
from tests.checks import check_close
from tests.events.known import FLOAT, TIGHT, Ball, oscillator


def test_scipy_finds_the_same_zeros() -> None:
    """Of a function without closed form, in both directions; its accuracy is its interpolant's."""
    integrate = pytest.importorskip("scipy.integrate")

    def surface(t: float, y: Tensor) -> Tensor:
        return y[0] ** 3 - y[1] + 0.3 * y[0] * y[1]

    y0 = torch.tensor([1.0, 0.2], dtype=FLOAT)
    found = odeint_event(oscillator, y0, [0.0, 9.0], Event(surface, terminal=False), **TIGHT)
    theirs = integrate.solve_ivp(
        lambda t, y: [y[1], -y[0]], (0.0, 9.0), y0.numpy(), method="DOP853", events=[surface],
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    assert len(theirs.t_events[0]) == found.counts > 1
    check_close(found.t, torch.as_tensor(theirs.t_events[0]), rtol=0.0, atol=1e-8)


def test_scipy_bounces_at_the_same_times_started_anew_at_each() -> None:
    """The third bounce: SciPy changes no state, so that each is a solve of its own."""
    integrate = pytest.importorskip("scipy.integrate")
    known = Ball(*(torch.tensor(x, dtype=FLOAT) for x in (1.3, 9.81, 0.8, 0.0)))
    found = odeint_event(known, known.y0, [0.0, 9.0], known.bounce(3), **TIGHT)

    def floor(t: float, y: list[float]) -> float:
        return y[0]

    floor.terminal, floor.direction = True, -1  # type: ignore[attr-defined]
    t, y = 0.0, [1.3, 0.0]
    for n in range(3):
        theirs = integrate.solve_ivp(lambda t, y: [y[1], -9.81], (t, 9.0), y, events=floor,
                                     rtol=1e-10, atol=1e-12)  # fmt: skip
        t, y = float(theirs.t[-1]), [0.0, -0.8 * float(theirs.y[1, -1])]
        assert float(found.t[n]) == pytest.approx(t, abs=1e-9)


def test_torchdiffeq_bounces_at_the_same_times_started_anew_at_each() -> None:
    """Likewise; a little above the floor, for it would end where its function begins at zero."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    known = Ball(*(torch.tensor(x, dtype=FLOAT) for x in (1.3, 9.81, 0.8, 0.0)))
    found = odeint_event(known, known.y0, [0.0, 9.0], known.bounce(3), **TIGHT)
    t, y = torch.zeros((), dtype=FLOAT), known.y0
    fall = lambda t, y: torch.stack([y[1], -9.81 + 0 * y[1]])  # noqa: E731
    for n in range(3):
        t, states = torchdiffeq.odeint_event(
            fall, y, t, event_fn=lambda t, y: y[0] + 1e-9,
            odeint_interface=torchdiffeq.odeint, rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        y = states[-1] * torch.tensor([0.0, -0.8], dtype=FLOAT)
        check_close(found.t[n], t, rtol=0.0, atol=1e-8)


def test_torchdiffeq_finds_the_same_time_but_no_gradient_of_the_event_function() -> None:
    """Ours has it: dt/dlevel of y = exp(-t) at the level is -1 / level."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    level = torch.tensor(0.4, dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(1, dtype=FLOAT, requires_grad=True)
    event = lambda t, y: y[0] - level  # noqa: E731
    found = odeint_event(lambda t, y: -y, y0, [0.0, 5.0], Event(event), **TIGHT)
    theirs, _ = torchdiffeq.odeint_event(
        lambda t, y: -y, y0, torch.zeros((), dtype=FLOAT), event_fn=event,
        odeint_interface=torchdiffeq.odeint, rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    check_close(found.t[0], theirs, rtol=0.0, atol=1e-8)
    assert math.isclose(float(found.t[0].detach()), -math.log(0.4), abs_tol=1e-9)
    (ours,) = torch.autograd.grad(found.t[0], level)
    check_close(ours, -1 / level.detach(), rtol=0.0, atol=1e-8)
    (none,) = torch.autograd.grad(theirs, level, allow_unused=True)
    assert none is None  # if this fails, torchdiffeq has it too by now: say so in docs/events.md


def test_torchdiffeq_ends_where_it_starts_if_the_function_is_zero_there() -> None:
    """A ball thrown up from the floor: ours comes down again."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    y0 = torch.tensor([0.0, 2.0], dtype=FLOAT)
    fall = lambda t, y: torch.stack([y[1], -9.81 + 0 * y[1]])  # noqa: E731
    found = odeint_event(fall, y0, [0.0, 5.0], Event(lambda t, y: y[0]), **TIGHT)
    check_close(found.t[0], torch.tensor(4 / 9.81, dtype=FLOAT), rtol=0.0, atol=1e-9)
    theirs, _ = torchdiffeq.odeint_event(
        fall, y0, torch.zeros((), dtype=FLOAT), event_fn=lambda t, y: y[0],
        odeint_interface=torchdiffeq.odeint,
    )  # fmt: skip
    assert float(theirs) < 1e-6


def test_scipy_counts_the_start_and_passes_over_what_does_not_change_a_sign() -> None:
    """A zero at the start, two zeros inside a step, a contact: what docs/events.md says of it."""
    integrate = pytest.importorskip("scipy.integrate")
    fall = integrate.solve_ivp(
        lambda t, y: [y[1], -9.81], (0, 1), [0.0, 2.0], events=lambda t, y: y[0]
    )
    assert fall.t_events[0][0] == 0
    assert len(fall.t_events[0]) == 2
    pair = lambda t, y: (y[0] - 5) * (y[0] - 5.01)  # noqa: E731
    straight = integrate.solve_ivp(lambda t, y: [1.0], (0, 10), [0.0], events=pair)
    assert len(straight.t_events[0]) == 0
    touch = integrate.solve_ivp(
        lambda t, y: [y[1], -y[0]], (0, 3), [0.0, 1.0], events=lambda t, y: y[0] - 1, rtol=1e-9
    )
    assert len(touch.t_events[0]) == 0
