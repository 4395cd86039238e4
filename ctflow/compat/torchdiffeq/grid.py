"""On a given grid: Adams and implicit methods, which only torchdiffeq has, and events by signs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from ctflow.backends.field import Field
from ctflow.backends.native.step import rk_step
from ctflow.backends.native.stops import Stops
from ctflow.backends.times import shift
from ctflow.compat.torchdiffeq.adams import Adams
from ctflow.compat.torchdiffeq.calls import Calls
from ctflow.compat.torchdiffeq.implicit import TABLEAUS, ImplicitStep
from ctflow.compat.torchdiffeq.methods import on_grid
from ctflow.compat.torchdiffeq.options import GridOptions
from ctflow.compat.torchdiffeq.request import Request
from ctflow.compat.torchdiffeq.solving import (
    MOST_TO_EVENT,
    beside,
    grid_of,
    problem_of,
    size_to_event,
)
from ctflow.errors import SolveFailed, Unsupported
from ctflow.state import widest
from ctflow.transforms import active

__all__ = ["course", "first_sign_change"]

Stepper: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Value: TypeAlias = Callable[[Tensor, Any], Tensor]

_HALVINGS = 60  # of a step: down to the rounding of time


class _Piece(NamedTuple):
    """One step: its ends, [1], the states there, [1, N], and f at the start."""

    t0: Tensor
    t1: Tensor
    y0: Tensor
    y1: Tensor
    f0: Tensor


class _Window:
    """f on flat tensors, with times kept inside those that a step may see.

    Attributes:
        ends: Least and greatest time, [1] each; None for all.
    """

    def __init__(self, flat: Field) -> None:
        self._flat = flat
        self.ends: tuple[Tensor, Tensor] | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        return self._flat(t if self.ends is None else t.clamp(*self.ends), y)


def course(request: Request) -> Any:  # noqa: ANN401
    """States at the output times, in the structure of the request's.

    Raises:
        SolveFailed: If a step could not be taken, or led to something that is not finite.

    Cost:
        As autograd records it: memory of every evaluation.
    """
    if request.kind == "implicit" and active():
        raise Unsupported(
            f"method={request.method!r} differentiates `func` itself, which torch.func transforms "
            "and forward mode would not see. Use dopri5 or rk4; backward() works."
        )
    layout = request.layout
    flat = Field(problem_of(request), layout)
    y0 = layout.pack(cast("Any", request.y0))
    t = _own_dtype(request.t)
    moving = t.requires_grad and torch.is_grad_enabled()
    there, before = (beside(request, flat, after=after) for after in (True, False))
    start = shift(there, t[:1], y0, -1.0, None, "direct") if moving else y0
    nodes = _own_dtype(grid_of(request))
    field = _Window(flat)
    found, wanted = [start], list(t[1:].split(1))
    ends = zip(nodes[:-1].split(1), nodes[1:].split(1), strict=True)
    for piece in _pieces(request, field, start, ends, nodes):
        while wanted and bool((wanted[0] - piece.t1) * request.direction <= 0):
            found.append(_between(request, field, piece, wanted.pop(0).detach()))
    if moving:
        late = zip(t[1:].split(1), found[1:], strict=True)
        found = [y0, *(shift(before, at, y, 1.0, None, "direct") for at, y in late)]
    return layout.unpack(torch.stack(found))


def first_sign_change(request: Request, event_fn: Value) -> tuple[Tensor, Any]:
    """Time, 0-dim, at which an event function first changes sign, and the state there.

    Raises:
        SolveFailed: If it does not within as many steps as torchdiffeq takes.
    """
    layout = request.layout
    flat = Field(problem_of(request), layout)
    field, start = _Window(flat), layout.pack(cast("Any", request.y0))
    size = request.direction * size_to_event(cast("GridOptions", request.options))
    t0 = _own_dtype(request.t[:1].detach())
    if request.t.requires_grad and torch.is_grad_enabled():
        start = shift(flat, _own_dtype(request.t[:1]), start, -1.0, None, "direct")

    def side(t: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            at = layout.time(t.to(y.dtype))
            return float(torch.sign(event_fn(at, layout.unpack(y.detach()))))

    first = side(t0, start)
    ends = ((t0 + i * size, t0 + (i + 1) * size) for i in range(MOST_TO_EVENT))
    for piece in _pieces(request, field, start, ends, None):
        if side(piece.t1, piece.y1) != first:
            low, high = 0.0, 1.0
            for _ in range(_HALVINGS):
                middle = 0.5 * (low + high)
                at = torch.lerp(piece.t0, piece.t1, middle)
                with torch.no_grad():
                    same = side(at, _between(request, field, piece, at)) == first
                low, high = (middle, high) if same else (low, middle)
            at = torch.lerp(piece.t0, piece.t1, high)
            return at.reshape(()), layout.unpack(_between(request, field, piece, at))
    raise SolveFailed(
        f"`event_fn` has no sign change in {MOST_TO_EVENT} steps of {abs(size):g} from "
        f"t={float(t0):g}. Check the event, and the direction in which `t` points."
    )


def _pieces(
    request: Request,
    field: _Window,
    y0: Tensor,
    ends: Iterator[tuple[Tensor, Tensor]],
    nodes: Tensor | None,
) -> Iterator[_Piece]:
    """One step after the other."""
    options = cast("GridOptions", request.options)
    calls = Calls(request.callbacks, request.layout)
    calls.begin(y0)
    sides = Stops(nodes, nodes) if options.perturb and nodes is not None else None
    step = _stepper(request, field, options)
    for t0, t1 in ends:
        calls.before(t0, (t1 - t0).abs())
        field.ends = None if sides is None else sides.seen(t0, t1, y0.dtype)
        f0 = field(t0.to(y0.dtype), y0)
        y1 = step(t0, t1, y0, f0)
        if not bool(torch.isfinite(y1).all()):
            raise SolveFailed(
                f"the step of {request.method!r} from t={float(t0):.6g} to {float(t1):.6g} led to "
                "something that is not finite. Take smaller steps, or scipy_solver."
            )
        yield _Piece(t0, t1, y0, y1, f0)
        calls.after(t0, y0, y1, (t1 - t0).abs(), True)
        y0 = y1


def _stepper(request: Request, field: _Window, options: GridOptions) -> Stepper:
    if request.kind == "runge_kutta":  # on the way to an event that only signs can find
        tableau = on_grid(request.method, options.interp)
        return lambda t0, t1, y0, f0: rk_step(field, tableau, t0, t1, y0, f0).y1
    if request.kind == "implicit":
        return ImplicitStep(field, TABLEAUS[request.method], options.max_iters)
    implicit = request.method != "explicit_adams"
    return Adams(
        field, implicit, options.max_order, (request.rtol, request.atol), options.max_iters
    )


def _between(request: Request, field: _Window, piece: _Piece, t: Tensor) -> Tensor:
    """State at a time in (t0, t1], [1], by torchdiffeq's interpolation."""
    if bool(t == piece.t1):
        return piece.y1
    h = (piece.t1 - piece.t0).to(piece.y0.dtype)
    s = ((t - piece.t0) / (piece.t1 - piece.t0)).to(piece.y0.dtype)
    moved = piece.y1 - piece.y0
    if cast("GridOptions", request.options).interp == "linear":
        return piece.y0 + s * moved
    f1 = field(piece.t1.to(piece.y0.dtype), piece.y1)
    ends = (1 - s) * piece.f0 - s * f1
    return piece.y0 + s * moved + s * (1 - s) * ((1 - 2 * s) * (-moved) + h * ends)


def _own_dtype(t: Tensor) -> Tensor:
    """Times in their own dtype: float64 where the device has it."""
    return t.to(widest(t.device))
