"""What is no event is refused by name, before any work where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import Event, InvalidProblem, ODEProblem, Solver, Unsupported, odeint_event, solve
from ctflow.backends import Feature, available, get
from tests.events.known import FLOAT, oscillator

Y0 = torch.tensor([1.0, 0.0], dtype=FLOAT)
ROWS = torch.tensor([[1.0, 0.0], [0.5, 0.2], [0.1, 0.9]], dtype=FLOAT)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda t, y: y, r"one number, of shape \[\], got \[2\]"),
        (lambda t, y: y[:1], r"one number, of shape \[\], got \[1\]"),
        (lambda t, y: y[0].float(), "must return torch.float64, got torch.float32"),
        (lambda t, y: y[0] > 0, "got torch.bool"),
        (lambda t, y: y[0] + 0j, "got torch.complex128"),
        (lambda t, y: y[0].item(), "must return a tensor, got float"),
        (lambda t, y: torch.ones((), dtype=FLOAT), "must depend on `t` or `y`"),
        (lambda t, y: y[0].detach(), "must depend on `t` or `y`"),
        (torch.no_grad()(lambda t, y: y[0]), "must depend on `t` or `y`"),
        (lambda t, y: y[0].detach() + 0 * y[1], "must have a derivative"),
        (lambda t, y: torch.sign(y[0] - 0.5), "must be continuous"),
        (lambda t, y: y[0] - 0.3 + torch.sign(y[0] - 0.5), "must be continuous"),
        (lambda t, y: y.mul_(2)[0], "must not change its input"),
        (lambda y: y[0], "must be callable as"),
        (None, "must be callable as"),
    ],
)
def test_what_is_no_event_function_is_refused(fn: Callable[..., Any], message: str) -> None:
    """Shape, dtype, type, a value that depends on nothing, a jump, a change of the input."""
    with pytest.raises(InvalidProblem, match=message):
        odeint_event(oscillator, Y0, [0.0, 7.0], Event(fn))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: y[:1], r"got Tensor with \[1\]"),
        (lambda t, y: (y, y), "got tuple with"),
        (lambda t, y: y.float(), "torch.float32"),
        (lambda t, y: None, "NoneType"),
        (lambda t, y: y.mul_(2), "in place"),
        (lambda y: y, "`change` of event 0 must be callable"),
    ],
)
def test_what_is_no_change_is_refused(change: Callable[..., Any], message: str) -> None:
    """It returns a state like y0."""
    with pytest.raises(InvalidProblem, match=message):
        odeint_event(oscillator, Y0, [0.0, 7.0], Event(lambda t, y: y[0], change=change))


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (None, "got None"),
        ([], "got none"),
        (3, "got int at index 0"),
        (lambda t, y: y[0], "got function at index 0"),
        ([Event(lambda t, y: y[0]), "y"], "got str at index 1"),
    ],
)
def test_what_is_no_event_is_refused(event: Any, message: str) -> None:  # noqa: ANN401
    """None of `odeint_event`, an empty list, a bare function."""
    with pytest.raises(InvalidProblem, match=message):
        odeint_event(oscillator, Y0, [0.0, 7.0], event)


@pytest.mark.parametrize(
    "settings",
    [
        {"direction": 2},
        {"direction": True},
        {"direction": None},
        {"terminal": -1},
        {"terminal": 1.5},
    ],
)
def test_settings_of_an_event_without_meaning_are_refused(settings: Any) -> None:  # noqa: ANN401
    """When it is made."""
    with pytest.raises(InvalidProblem):
        Event(lambda t, y: y[0], **settings)


@pytest.mark.parametrize("limit", [0, 1.5, True])
def test_a_limit_of_events_without_meaning_is_refused(limit: Any) -> None:  # noqa: ANN401
    """When the solver is made."""
    with pytest.raises(InvalidProblem, match="max_events"):
        Solver(max_events=limit)


@pytest.mark.parametrize(
    "fn", [lambda t, y: y[:, 0] - y[:, 0].mean(), lambda t, y: y[:, 0] - 0.1 * y[0, 0]]
)
def test_an_event_function_that_mixes_samples_is_refused(fn: Callable[..., Tensor]) -> None:
    """Under per-sample steps each sample has events of its own."""
    with pytest.raises(InvalidProblem, match="each sample by itself"):
        odeint_event(oscillator, ROWS, [0.0, 1.0], Event(fn), solver=Solver(coupling="per_sample"))


def test_the_shape_under_per_sample_steps_is_named() -> None:
    """One for each sample; the time has the rank of the state."""
    solver = Solver(coupling="per_sample")
    with pytest.raises(InvalidProblem, match=r"\[3\], got \[3, 1\].*reshape"):
        odeint_event(oscillator, ROWS, [0.0, 1.0], Event(lambda t, y: t - 0.5), solver=solver)


@pytest.mark.parametrize("name", sorted(set(available()) - {"torchsde"}))
def test_a_backend_without_events_refuses_and_names_one_that_has_them(name: str) -> None:
    """Nothing is left out in silence."""
    backend = pytest.importorskip("ctflow") and get(name)
    event = Event(lambda t, y: y[0])
    if Feature.EVENTS in backend.features:
        assert odeint_event(oscillator, Y0, [0.0, 2.0], event, backend=name).counts == 1
        return
    with pytest.raises(Unsupported, match=r"it finds no events.*backend='native'"):
        odeint_event(oscillator, Y0, [0.0, 2.0], event, backend=name)


def test_local_errors_through_events_are_refused() -> None:
    """By name."""
    problem = ODEProblem(
        oscillator, Y0, [0.0, 1.0], event=Event(lambda t, y: y[0]), local_error=True
    )
    with pytest.raises(Unsupported, match="local_error"):
        solve(problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """Its rounding would hide whether a sign changes."""
    with pytest.raises(Unsupported, match="half precision"):
        odeint_event(oscillator, Y0.to(dtype), [0.0, 2.0], Event(lambda t, y: y[0]))


def test_autocast_does_not_round_an_event_function() -> None:
    """The same time to the bit, and a gradient of its parameters."""
    weight = torch.tensor([[0.3, 1.1]], requires_grad=True)
    event = Event(lambda t, y: (weight @ y)[0])
    y0 = torch.tensor([1.0, 0.0])
    plain = odeint_event(oscillator, y0, [0.0, 4.0], event)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = odeint_event(oscillator, y0, [0.0, 4.0], event)
    assert torch.equal(plain.t, lowered.t)
    pair = (torch.autograd.grad(x.t.sum(), weight)[0] for x in (plain, lowered))
    torch.testing.assert_close(*pair)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on loading
def test_function_transforms_and_forward_mode_are_refused() -> None:
    """The place of an event is found with plain derivatives."""

    def end(height: Tensor) -> Tensor:
        y0 = torch.stack([height, 0 * height])
        event = Event(lambda t, y: y[0])
        return odeint_event(oscillator, y0, [0.0, 2.0], event, gradient="direct").y_end.sum()

    height = torch.ones((), dtype=FLOAT)
    with pytest.raises(Unsupported, match="transforms"):
        torch.func.grad(end)(height)
    with pytest.raises(Unsupported, match="forward mode"):
        torch.func.jvp(end, (height,), (height,))
