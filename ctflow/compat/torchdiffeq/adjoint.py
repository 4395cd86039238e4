"""odeint_adjoint: the adjoint equation as one more request, walked as every backend walks it.

State, adjoint and parameters' gradients are one system, as in torchdiffeq, so that the options,
norms and callbacks of the backward pass mean what they mean there. What the dynamics read, the
jumps at outputs, and the doubts about the result are ctflow's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends.adjoint import conclude, walk
from ctflow.backends.adjoint_node import attach_adjoint
from ctflow.backends.captures import Autocast, Captures, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.protocol import Tolerances
from ctflow.backends.times import attach_times, shift
from ctflow.compat.torchdiffeq.backward import Augmented, Backward, Intervals
from ctflow.compat.torchdiffeq.events import EventFn, Found, find, implicit
from ctflow.compat.torchdiffeq.request import Request, State
from ctflow.compat.torchdiffeq.solving import beside, problem_of, solve
from ctflow.compat.torchdiffeq.trajectory import last, trajectory
from ctflow.errors import Unsupported
from ctflow.solution import GradientReport
from ctflow.state import leaves_of, widest
from ctflow.transforms import active

__all__ = ["solve_adjoint", "solve_adjoint_event"]


def solve_adjoint(request: Request, backward: Backward) -> State:
    """States at the output times; their gradient is the adjoint's.

    Args:
        request: The forward solve.
        backward: How the adjoint equation is solved.

    Raises:
        Unsupported: If `func` uses a tensor whose gradient would be lost.
        SolveFailed: If the last time was not reached; in the backward pass the first.
    """
    _refuse_transforms()
    if request.kind == "scipy" and backward.as_forward:
        like = cast("Any", backward.like)
        own = Tolerances(like.rtol, like.atol)
        return solve(request, "adjoint", params=backward.params, backward=own).y
    if not torch.is_grad_enabled():
        return trajectory(request)
    with _no_cache(request):
        with torch.no_grad():
            known = trajectory(request)
        return _attached(request, backward, request.t, known)


def solve_adjoint_event(request: Request, event_fn: EventFn, backward: Backward) -> Found:
    """Time and state of the first event; their gradient is the adjoint's.

    Args:
        request: The forward solve.
        event_fn: From `checked_event`.
        backward: How the adjoint equation is solved.
    """
    _refuse_transforms()
    with torch.no_grad():
        t, y = find(request, event_fn, "none")
    if not torch.is_grad_enabled():
        return t, y
    if bool(t == request.t[0].detach()):
        return implicit(request, event_fn, (t, request.y0), "adjoint")
    pairs = zip(leaves_of(request.y0), leaves_of(y), strict=True)
    both = tuple(torch.stack([a.detach(), b]) for a, b in pairs)
    times = torch.stack([request.t[0].double(), t])
    with _no_cache(request):
        out = _attached(request, backward, times, both[0] if isinstance(y, Tensor) else both)
    return implicit(request, event_fn, (t, last(out)), "adjoint")


def _no_cache(request: Request) -> AbstractContextManager[object]:
    """Autocast without its cache: a cast of a parameter that is kept would look like another."""
    autocast = Autocast.now(request.layout.device.type)
    return autocast.again() if autocast.enabled else nullcontext()


def _refuse_transforms() -> None:
    if active():
        raise Unsupported(
            "odeint_adjoint cannot be used under torch.func transforms or in forward mode: its "
            "backward pass is not a function of its inputs alone. Use odeint."
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """What forward and backward share.

    Args:
        request: The forward solve.
        backward: How the adjoint equation is solved.
        flat: dy/dt on flat tensors.
        captures: What it reads beside t and y.
        times: Output times, [1, T].
        report: Filled by the backward pass.
    """

    request: Request
    backward: Backward
    flat: Field
    captures: Captures
    times: Tensor
    report: GradientReport = field(default_factory=GradientReport)


def _attached(request: Request, backward: Backward, times: Tensor, known: State) -> State:
    """Known states at times with the adjoint as their gradient."""
    layout = request.layout
    if layout.is_complex:
        raise Unsupported(
            "odeint_adjoint does not take complex states, got "
            f"{layout.dtype}. Use odeint, or torch.view_as_real on the state."
        )
    problem = problem_of(request, backward.params)
    flat = Field(problem, layout)
    captures = Captures(problem, flat)
    y0 = layout.pack(cast("Any", request.y0))
    t = times.to(widest(times.device))
    marker, leaf = sequence_number(), y0.detach().requires_grad_()
    there = beside(request, flat, after=True)
    reached = there(t[:1].detach().to(y0.dtype), leaf)
    captures.discover(reached, leaf, marker)
    if not (captures.inputs or y0.requires_grad or times.requires_grad):
        return known
    moving = times.requires_grad
    start = shift(there, t[:1], y0, -1.0, reached.detach(), "adjoint") if moving else y0
    out = torch.cat([x.reshape(len(t), 1, -1) for x in leaves_of(known)], dim=-1)
    job = _Job(request, backward, flat, captures, t.detach().unsqueeze(0))
    out = attach_adjoint(partial(_pull_back, job), out, start, captures.inputs)
    before = beside(request, flat, after=False)
    return layout.unpack(attach_times(before, t, y0, out) if moving else out)


def _pull_back(job: _Job, out: Tensor, g: Tensor) -> list[Tensor]:
    """Gradient of y0 and of each captured tensor, from that of the outputs g [T, 1, N]."""
    inputs = job.captures.inputs
    if not bool(torch.isfinite(g).all()):
        return [torch.full_like(x, torch.nan) for x in (g[0], *inputs)]
    with job.captures.cut() as leaves:
        system = Augmented(job.flat, job.captures, leaves)
        intervals = Intervals(job.request, job.backward, system)
        a, found = walk(intervals, system, job.times, out, g)
    totals = intervals.totals
    conclude(job.report, job.times, found, totals, 0.0)
    return [a, *(q.to(x.dtype) for q, x in zip(totals, inputs, strict=True))]
