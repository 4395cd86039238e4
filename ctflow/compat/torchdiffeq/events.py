"""Solves up to an event, as torchdiffeq asks for them: no end but the first sign change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from ctflow.backends.field import Field
from ctflow.backends.times import event_time
from ctflow.compat.torchdiffeq.grid import first_sign_change
from ctflow.compat.torchdiffeq.request import Request, State
from ctflow.compat.torchdiffeq.solving import problem_of, solve
from ctflow.compat.torchdiffeq.trajectory import last, trajectory
from ctflow.dense import DenseSolution
from ctflow.errors import InvalidProblem, SolveFailed
from ctflow.event import Event
from ctflow.state import leaves_of, map_leaves

__all__ = ["EventFn", "Found", "checked_event", "find", "implicit", "stacked"]

EventFn: TypeAlias = Callable[[Tensor, Any], Any]
Found: TypeAlias = tuple[Tensor, State]
"""Time of an event, 0-dim in float64, and the state there."""

_HALVINGS = 60  # of a step: down to the rounding of time
_HORIZON = 1e7  # how far from the start an event is looked for, in units of `t`


def checked_event(request: Request, event_fn: EventFn) -> EventFn:
    """The event function as one number that changes sign where any of its own does.

    Raises:
        InvalidProblem: If it, or the request, does not fit an event.
    """
    if len(request.t) != 2:
        raise InvalidProblem(
            f"an event needs two times, the start and one that shows the direction, got "
            f"{len(request.t)}. Pass t=torch.tensor([t0, t0 + 1])."
        )
    if not callable(event_fn):
        raise InvalidProblem(
            f"`event_fn` must be callable as (t, y), got {type(event_fn).__name__}."
        )
    with torch.no_grad():
        signs = torch.sign(_values(event_fn, *_start(request)))

    def combined(t: Tensor, y: State) -> Tensor:
        values = _values(event_fn, t, y)
        wanted = t.requires_grad or any(part.requires_grad for part in leaves_of(y))
        if wanted and torch.is_grad_enabled() and not values.requires_grad:
            raise _Constant
        return values[0] if len(signs) == 1 else (values * signs).amin()

    return combined


class _Constant(Exception):
    """The event function returned a constant: it ends the solve in a branch of its own."""


def _start(request: Request) -> tuple[Tensor, State]:
    t0 = request.t[0].detach().to(request.layout.real_dtype)
    return t0, map_leaves(torch.detach, request.y0)


def _values(event_fn: EventFn, t: Tensor, y: State) -> Tensor:
    """What the event function returns, [K]."""
    values = event_fn(t, y)
    if not isinstance(values, Tensor) or values.is_complex() or not values.numel():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InvalidProblem(f"`event_fn` must return a real tensor, got {kind}.")
    return values.reshape(-1)


def find(request: Request, event_fn: EventFn, gradient: str) -> Found:
    """Time and state of the first event.

    Args:
        request: Its second time shows the direction alone.
        event_fn: From `checked_event`.
        gradient: "direct", or "none" for values alone.

    Raises:
        SolveFailed: If there is no event within reach.
    """
    t0 = request.t[0]
    start, y = _start(request)
    with torch.no_grad():
        if bool(event_fn(start, y) == 0):
            if gradient == "none":
                return t0.detach().double(), y
            return implicit(request, event_fn, (t0.double(), request.y0), "direct")
    if request.kind in ("adams", "implicit"):
        found = first_sign_change(request, event_fn)
        return found if gradient == "none" else implicit(request, event_fn, found, "direct")
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient != "none"):
            return _on_the_way(request, event_fn)
    except _Constant:
        with torch.no_grad():
            t, y = _by_signs(request, event_fn)
    if gradient == "none":
        return t, y
    if bool(t != t0.detach()):
        y = last(trajectory(replace(request, t=torch.stack([t0.double(), t]))))
    return implicit(request, event_fn, (t, y), "direct")


def _on_the_way(request: Request, event_fn: EventFn) -> Found:
    """The first event as the native solver finds it: continuous functions, between steps too."""
    t0 = request.t[0]
    far = t0.detach() + request.direction * _HORIZON
    whole = replace(request, t=torch.stack([t0.double(), far.double()]))
    record = solve(whole, "direct", event=Event(event_fn)).event
    if record is None or int(record.ended_by) < 0:
        raise _never(float(t0), float(far))
    return record.t_end, record.y_end


def _by_signs(request: Request, event_fn: EventFn) -> Found:
    """The first event as torchdiffeq finds it: by the sign at the ends of steps, then halving.

    For functions that return a constant somewhere, such as zero behind a last time.
    """
    if request.kind != "adaptive":
        return first_sign_change(request, event_fn)
    t, y = _start(request)
    first, length = float(torch.sign(event_fn(t, y))), abs(float(request.t[1] - request.t[0]))
    at = request.t[0].detach().double()
    while length < _HORIZON:
        ends = torch.stack([at, at + request.direction * length])
        dense = cast(
            "DenseSolution", solve(replace(request, y0=y, t=ends), "direct", dense=True).dense
        )

        def same(t: Tensor, dense: DenseSolution = dense) -> bool:
            seen = t.to(request.layout.real_dtype)
            return float(torch.sign(event_fn(seen, dense(t)))) == first

        for low, high in zip(dense.t0[:, 0], dense.t1[:, 0], strict=True):
            if not same(high):
                for _ in range(_HALVINGS):
                    middle = 0.5 * (low + high)
                    low, high = (middle, high) if same(middle) else (low, middle)
                return high, dense(high)
        at, y, length = ends[1], dense(ends[1]), 2 * length
    raise _never(float(request.t[0]), float(at))


def _never(start: float, end: float) -> SolveFailed:
    return SolveFailed(
        f"`event_fn` has no sign change from t={start:g} to t={end:g}: torchdiffeq would go on for "
        "ever. Check the event, and the direction in which `t` points."
    )


def implicit(request: Request, event_fn: EventFn, found: Found, gradient: str) -> Found:
    """Time and state of an event with what they depend on, by the implicit function theorem.

    Args:
        request: Whose dynamics go through the event.
        event_fn: From `checked_event`.
        found: Time, and the state with the history of the solve up to the fixed time.
        gradient: Name of the gradient method.
    """
    layout = request.layout
    flat = Field(problem_of(request), layout)
    t, y = found[0].detach().reshape(1), layout.pack(cast("Any", found[1]))

    def value(t: Tensor, y: Tensor) -> Tensor:
        return event_fn(layout.time(t.to(y.dtype)), layout.unpack(y)).reshape(1).to(y.dtype)

    with torch.enable_grad():
        if not _depends(value, t, y):  # in a branch of its own, at a time that nothing moves
            return t.reshape(()), found[1]
        at, state = t.clone().requires_grad_(), y.detach().requires_grad_()
        parts = torch.autograd.grad(value(at, state).sum(), (at, state), allow_unused=True)
    with torch.no_grad():
        f = flat(t.to(y.dtype), y.detach())
        dg_dt, dg_dy = (
            torch.zeros_like(x) if g is None else g  # pyright: ignore[reportUnnecessaryComparison]
            for g, x in zip(parts, (at, state), strict=True)
        )
        slope = dg_dt + (dg_dy * f).sum(dim=1).to(t.dtype)
    if float(slope) == 0:
        raise SolveFailed(
            f"the event at t={float(t):g} grazes: `event_fn` does not change along the solution, "
            "so that its time has no derivative. Move the event function."
        )
    moved_t, moved_y = event_time(value, flat, t, y, slope.to(y.dtype), gradient)
    return moved_t.reshape(()), layout.unpack(moved_y)


def _depends(value: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> bool:
    """Whether an event function depends on time or state there."""
    try:
        return value(t.clone().requires_grad_(), y.detach().requires_grad_()).requires_grad
    except _Constant:
        return False


def stacked(y0: State, y1: State) -> State:
    """Both ends of a solve, [2, ...] in each part."""
    pairs = zip(leaves_of(y0), leaves_of(y1), strict=True)
    both = tuple(torch.stack(pair) for pair in pairs)
    return both[0] if isinstance(y0, Tensor) else both
