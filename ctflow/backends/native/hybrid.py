"""Solves through events: from one to the next, each stretch a solve with gradients of its own.

A round finds, without a graph, where every sample's next event is, and on which steps the solver
came there. The same steps are then taken by the gradient method, up to the event or the end, as a
solve with outputs inside like any other. Time and state of the event get their derivatives from the
event function, the state is changed, and the next round begins. Nothing of this needs a gradient
method to know of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.events import EventFunctions
from ctflow.backends.native.control import Span, Verdict, accept_finite, next_node
from ctflow.backends.native.find_event import FindEvent
from ctflow.backends.native.hybrid_rows import Hybrid, Rows, together
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.method import Method
from ctflow.backends.native.step import FlatField, Step
from ctflow.backends.native.stiffness import explained
from ctflow.backends.times import event_time, shift
from ctflow.solution import Stats, Status
from ctflow.state import Layout

__all__ = ["Journey", "OnSteps", "Stretch", "through_events"]


class Stretch(Protocol):
    """A solve without events, with its gradient method."""

    def __call__(
        self, plan: Integration, y0: Tensor, times: Tensor
    ) -> tuple[Tensor, Outcome, list[Stats]]:
        """States [T, B, N] at times [B, T], how it went, and where the backward pass tells."""
        ...


@dataclass(frozen=True, eq=False)
class OnSteps:
    """Steps that were taken before: each sample's own, whatever the error.

    Args:
        ends: Their ends, [B, n]; infinite where there is none.
    """

    ends: Tensor

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """None: the ends alone decide, however short a step they leave."""
        return torch.zeros_like(span.t0), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """The next end after t."""
        return next_node(self.ends, t, span)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept whatever is finite."""
        return accept_finite(step, size)


class Journey(NamedTuple):
    """What stays the same from one event to the next.

    Attributes:
        functions: The problem's events.
        plan: Method, control, output times and limit of the whole solve.
        flat: f on flat tensors.
        layout: How the flat state maps to the user's.
        times: Output times, [B, T], with their history.
        stretch: Solves between two events.
        gradient: Name of the gradient method.
        max_events: Limit of events of one sample.
    """

    functions: EventFunctions
    plan: Integration
    flat: FlatField
    layout: Layout
    times: Tensor
    stretch: Stretch
    gradient: str
    max_events: int


def through_events(journey: Journey, y0: Tensor) -> Hybrid:
    """Solve from y0, [B, N], through every event.

    Returns:
        What it found out.

    Cost:
        Each step twice: once to find the event, once with the gradient method; for each event some
        steps more, and the first step's size anew.
    """
    functions, plan = journey.functions, journey.plan
    rows = Rows.at_start(y0, journey.times, len(functions))
    if bool(rows.going.any()):
        functions.check_rows(rows.t.detach(), y0.detach())
    while bool(rows.going.any()):
        source = rows.source
        rows.t, rows.y = rows.t[source], rows.y[source]
        finder = FindEvent(functions, plan.grid, rows.side, rows.fired, rows.blur, rows.near)
        reached = _find(journey, rows, finder)
        y = _cross(journey, rows, finder, reached)
        _happen(journey, rows, finder, reached, y)
    return together(rows, journey.layout, y0, plan)


def _find(journey: Journey, rows: Rows, finder: FindEvent) -> Tensor:
    """Time up to which every sample comes in this round, [B]: an event, the end, or a failure."""
    plan, flat = journey.plan, journey.flat
    t, y = rows.t.detach(), rows.y.detach()
    grid = torch.stack([t, torch.where(rows.going, plan.grid[:, -1], t)], dim=1)
    with torch.no_grad():
        again = plan._replace(grid=grid, watch=finder)
        outcome = again(flat, y, None, [])
    counts, on = outcome.counts, rows.going.cpu()
    device = t.device
    rows.n_f_evals = rows.n_f_evals + (on * counts.n_f_evals).to(device) + finder.n_f_evals
    rows.n_steps = rows.n_steps + (on * counts.n_steps).to(device)
    rows.n_rejected = rows.n_rejected + (on * counts.n_rejected).to(device)
    failed = (outcome.status != 0).to(device) & rows.going
    by_solver = bool((outcome.status <= Status.NON_FINITE).all())
    stops = explained(flat, again, y, outcome) if by_solver else outcome.stops
    stopped = {stop.sample: stop for stop in stops}
    rows.stops += [stopped[b] for b in failed.nonzero().flatten().tolist()]
    rows.status = torch.where(failed, outcome.status.to(device), rows.status)
    reached = torch.where(failed, t, grid[:, 1])
    early = failed | (finder.which >= 0)
    for ends in finder.ends:
        moved = torch.isfinite(ends)
        reached = torch.where(early & moved, ends, reached)
        rows.trace.append(torch.where(moved, ends, rows.trace[-1]))
    over = rows.going & (rows.n_steps > plan.max_steps) & ~failed
    if bool(over.any()):
        rows.fail(over, Status.MAX_STEPS, reached)
    rows.going = rows.going & ~failed
    return reached


def _cross(journey: Journey, rows: Rows, finder: FindEvent, reached: Tensor) -> Tensor:
    """States at the times reached, [B, N], with the gradient method; outputs inside are kept."""
    plan, flat, gradient = journey.plan, journey.flat, journey.gradient
    t, y = rows.t.detach(), rows.y
    if rows.t.requires_grad and torch.is_grad_enabled():
        after = plan.beside(flat, after=True)
        f = None
        if gradient != "direct":
            with torch.no_grad():
                f = after(t.to(y.dtype), y)
        y = shift(after, rows.t, y, -1.0, f, gradient)
        rows.n_f_evals = rows.n_f_evals + (reached != t)
    if bool((reached == t).all()):
        return y
    direction = plan.span.direction.unsqueeze(1)
    ahead, grid = (plan.grid - t.unsqueeze(1)) * direction, plan.grid
    inside = (ahead > 0) & ((reached.unsqueeze(1) - grid) * direction >= 0)
    n_inside = inside.sum(dim=1, keepdim=True)
    order = torch.arange(int(n_inside.max()), device=t.device).unsqueeze(0)
    first = (ahead <= 0).sum(dim=1, keepdim=True)
    column = (first + order).clamp(max=grid.shape[1] - 1)
    inner = torch.where(order < n_inside, journey.times.gather(1, column), reached.unsqueeze(1))
    asked = torch.cat([t.unsqueeze(1), inner, reached.unsqueeze(1)], dim=1)
    ends = torch.stack(finder.ends, dim=1)
    again = plan._replace(grid=asked.detach(), control=OnSteps(ends))
    out, outcome, unfinished = journey.stretch(again, y, asked)
    rows.unfinished.append(unfinished)
    again_evals = outcome.counts.n_f_evals.to(t.device)
    rows.n_f_evals = rows.n_f_evals + torch.where(reached == t, 0, again_evals)
    if outcome.course is not None:
        rows.courses.append(outcome.course)
    row, k = (order < n_inside).nonzero(as_tuple=True)
    rows.places.append(column[row, k] * len(t) + row)
    rows.values.append(out[1 + k, row])
    return out[-1]


def _happen(journey: Journey, rows: Rows, finder: FindEvent, reached: Tensor, y: Tensor) -> None:
    """Note the events of a round, change the states, and see who has ended."""
    functions, gradient = journey.functions, journey.gradient
    hit = (finder.which >= 0) & rows.going
    t = reached
    rows.side, rows.blur, rows.near = finder.side, finder.blur, finder.near
    rows.fired = torch.zeros_like(rows.fired)
    y_after = y
    if bool(hit.any()):
        own = torch.arange(len(hit), device=hit.device)
        source = torch.where(hit, own, hit.nonzero()[0, 0])
        which = finder.which[source]
        t, y = _timed(journey, finder, (hit, source, which), reached, y)
        rows.n_f_evals = rows.n_f_evals + hit * (t.requires_grad * (1 + (gradient == "direct")))
        numbers = torch.arange(len(functions), device=hit.device).unsqueeze(1)
        rows.fired = hit & (finder.which == numbers)
        y_after = _changed(functions, rows.fired, t, y)
    n_of = rows.n_of + rows.fired
    too_many = hit & (n_of.sum(dim=0) > journey.max_events)
    rows.fail(too_many, Status.TOO_MANY_EVENTS, reached)
    lost = hit & ~too_many & ~torch.isfinite(y_after.detach()).all(dim=1)
    rows.fail(lost, Status.NON_FINITE, reached)
    hit = hit & rows.going
    rows.n_of = torch.where(hit, n_of, rows.n_of)
    if bool(hit.any()):
        rows.found.append((t, y, y_after, finder.which, hit))
    limits = torch.tensor([e.limit for e in functions.events], device=hit.device).unsqueeze(1)
    terminal = (rows.fired & (limits > 0) & (rows.n_of == limits)).any(dim=0) & hit
    rows.ended_by = torch.where(terminal, finder.which, rows.ended_by)
    arrived = rows.going & ~terminal & (reached == journey.plan.grid[:, -1])
    rows.t_end = torch.where(terminal, t, rows.t_end)
    rows.y_end = torch.where((terminal | arrived).unsqueeze(1), y, rows.y_end)
    rows.t = torch.where(hit, t, reached)
    rows.y = torch.where(hit.unsqueeze(1), y_after, y)
    rows.going = rows.going & ~terminal & ~arrived


def _timed(
    journey: Journey,
    finder: FindEvent,
    hits: tuple[Tensor, Tensor, Tensor],
    reached: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Times and states of events with their histories, [B] and [B, N]; others as they are."""
    hit, source, which = hits
    functions = journey.functions
    if not torch.is_grad_enabled():
        return reached, y

    def value(t: Tensor, y: Tensor) -> Tensor:
        """Each sample's own event function; 0 where none happened."""
        total = torch.zeros_like(y[:, 0])
        for j in sorted(set(which.tolist())):
            total = torch.where(hit & (which == j), functions.value(j, t[source], y[source]), total)
        return total

    before = journey.plan.beside(journey.flat, after=False)
    t, moved = event_time(value, before, reached, y, finder.slope, journey.gradient)
    return torch.where(hit, t, reached), torch.where(hit.unsqueeze(1), moved, y)


def _changed(functions: EventFunctions, fired: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """States right after the events that fired, bool [E, B]: [B, N]; others keep theirs.

    A sample without the event takes the place of one with it: a change need not make sense there.
    """
    after, own = y, torch.arange(len(t), device=t.device)
    for j, here in enumerate(fired):
        if functions.events[j].change is not None and bool(here.any()):
            source = torch.where(here, own, here.nonzero()[0, 0])
            changed = functions.change(j, t[source], y[source])
            after = torch.where(here.unsqueeze(1), changed, after)
    return after
