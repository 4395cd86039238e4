"""The only loop: step, judge, observe, move on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.control import Control, Span, Verdict
from ctflow.backends.native.implicit import rosenbrock_step
from ctflow.backends.native.method import Method
from ctflow.backends.native.observers import KeepCourse, Observer, SaveAt
from ctflow.backends.native.step import FlatField, Step, rk_step
from ctflow.backends.native.stops import Stops
from ctflow.backends.native.transformed import plain_verdict, refuse_mapped
from ctflow.solution import Counts, Status, Stop
from ctflow.transforms import active, least, plain

__all__ = ["Integration", "Outcome", "Seen", "Watch", "integrate", "resolution", "step_end"]

_FULL = 1e-9  # a rest shorter than this part of a step is taken along with it


class Outcome(NamedTuple):
    """How a solve went.

    Attributes:
        status: `Status` of each sample, int64 [B].
        counts: What it cost.
        stops: Where failed samples stood.
        trace: Time after each step that moved a sample, the start first.
        size: Size of the next step that each sample would take, [B].
        local_error: What a `LocalError` among the observers came to, [B].
        course: What a `KeepCourse` kept: starts and ends of steps [n, B], states [n, B, N] and
            stages [n, S, B, N].
        stood: State of each of `stops`, [N].
    """

    status: Tensor
    counts: Counts
    stops: tuple[Stop, ...]
    trace: Sequence[Tensor]
    size: Tensor
    local_error: Tensor | None = None
    course: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    stood: tuple[Tensor, ...] = ()


class Seen(NamedTuple):
    """What a `Watch` makes of a step.

    Attributes:
        step: The step, which may end earlier for some samples.
        span: The time interval, which may end earlier for some.
        status: `Status` of samples to be given up before this step, int64 [B]; 0 for the others.
        t: Time at which they are given up, [B].
    """

    step: Step
    span: Span
    status: Tensor
    t: Tensor


class Watch(Protocol):
    """Looks at each step that counts before it is taken, and may end the solve of a sample."""

    def __call__(
        self, plan: Integration, field: FlatField, step: Step, moved: Tensor, span: Span
    ) -> Seen:
        """Look at a step of the samples that `moved`, bool [B]."""
        ...


class Integration(NamedTuple):
    """Everything about a solve but the field and the state: what gradient methods are handed.

    Attributes:
        tableau: The method.
        control: Step sizes.
        grid: Output times, [B, T], in time's own dtype, detached.
        max_steps: Limit of attempted steps.
        size: Size of the first step, [B]; None leaves it to the control.
        stops: Times at which steps must end, discontinuities of f among them.
        watch: Looks for events; None where there are none.
    """

    tableau: Method
    control: Control
    grid: Tensor
    max_steps: int
    size: Tensor | None = None
    stops: Stops | None = None
    watch: Watch | None = None

    @property
    def span(self) -> Span:
        """Time interval and direction of every sample."""
        t0, t1 = self.grid[:, 0], self.grid[:, -1]
        return Span(t0, t1, torch.sign(t1 - t0))

    def __call__(
        self, field: FlatField, y0: Tensor, f0: Tensor | None, observers: Sequence[Observer]
    ) -> Outcome:
        """Run the loop from y0 at the first time of the grid to the last."""
        outcome = integrate(self, field, y0, f0, observers)
        for observer in observers:
            if isinstance(observer, SaveAt | KeepCourse):
                outcome.counts.n_f_evals.add_(observer.n_f_evals)
        return outcome

    def step(self, field: FlatField, t0: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None) -> Step:
        """One step of every sample, explicit or implicit.

        f sees no other side of a jump at its ends.
        """
        seen = None if self.stops is None else self.stops.seen(t0, t1, y0.dtype)
        method = self.tableau
        if method.implicit is True:
            return rosenbrock_step(field, method, t0, t1, y0, seen)
        return rk_step(field, method, t0, t1, y0, f0, seen)

    def ends_in_jump(self, t0: Tensor, t1: Tensor) -> bool:
        """Whether a step of any sample does, so that the next cannot begin with its last stage."""
        if self.stops is None:
            return False
        return bool((self.stops.is_jump(t1) & (t1 != t0)).any())

    def beside(self, field: FlatField, after: bool) -> FlatField:
        """f, with times of jumps evaluated on the side after them, or before, on the way."""
        if self.stops is None:
            return field
        direction = self.span.direction
        return self.stops.beside(field, direction if after else -direction)

    def saver(self, field: FlatField, y0: Tensor) -> SaveAt:
        """What keeps the states at the output times of a solve from y0."""
        return SaveAt(field, self.tableau, self.grid, self.span.direction, y0)


@dataclass
class _Rows:
    """Who is still on the way, and what each has cost so far."""

    active: Tensor
    n_active: int
    status: Tensor
    n_rejected: Tensor
    n_steps: Tensor
    n_f_evals: Tensor
    steps_so_far: int
    f_evals_so_far: int
    stops: list[Stop]
    stood: list[Tensor]
    spared: Tensor | None = None
    to_spare: Tensor | None = None

    @classmethod
    def all(cls, like: Tensor, n_f_evals: int) -> _Rows:
        """Every sample on its way."""
        zeros = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
        active = torch.ones_like(zeros, dtype=torch.bool)
        return cls(active, like.shape[0], zeros, zeros, zeros, zeros, 0, n_f_evals, [], [])

    def charge(self, n_f_evals: int, n_moved: int, moved: Tensor) -> None:
        """Count one attempted step of the samples on their way."""
        self.steps_so_far += 1
        self.f_evals_so_far += n_f_evals
        if self.to_spare is not None:
            self.spared = self.to_spare + (0 if self.spared is None else self.spared)
            self.to_spare = None
        if n_moved < self.n_active:
            self.n_rejected = self.n_rejected + (self.active & ~moved)

    def charge_more(self, who: Tensor) -> None:
        """Count one more evaluation for some samples."""
        self.spared = -who.to(torch.int64) + (0 if self.spared is None else self.spared)

    def spare(self, who: Tensor) -> None:
        """Do not charge samples for their first stage in the next step, which they know."""
        self.to_spare = who.to(torch.int64)

    def retire(self, who: Tensor) -> None:
        """Take samples out of the loop."""
        self.n_steps = torch.where(who, self.steps_so_far, self.n_steps)
        spared = 0 if self.spared is None else self.spared
        self.n_f_evals = torch.where(who, self.f_evals_so_far - spared, self.n_f_evals)
        self.active = self.active & ~who
        self.n_active = int(self.active.sum())

    def counts(self) -> Counts:
        """The costs as they are reported, on the CPU; all samples have been retired."""
        columns = (self.n_f_evals, self.n_steps, self.n_steps - self.n_rejected, self.n_rejected)
        return Counts(*(column.cpu().clone() for column in columns))


class _Place(NamedTuple):
    """Where every sample stands.

    Attributes:
        t: Time, [B].
        y: State, [B, N].
        f0: f there, if it is known.
        size: Size of the next step, [B].
        memory: What the control remembers, [.., B]; None for nothing.
    """

    t: Tensor
    y: Tensor
    f0: Tensor | None
    size: Tensor
    memory: Tensor | None = None


def integrate(
    plan: Integration,
    field: FlatField,
    y0: Tensor,
    f0: Tensor | None,
    observers: Sequence[Observer],
) -> Outcome:
    """Step every sample from the first time of the grid to the last.

    A gradient flows through accepted steps where grad mode is on; control and masks are detached.
    A sample that has finished takes steps of length 0. One that has failed does so too, in the
    place of a healthy one, so that nothing non-finite is evaluated on its behalf.

    Args:
        plan: Method, control, times, limit.
        field: dy/dt on flat tensors.
        y0: Initial state, [B, N].
        f0: `field` there, where it is known already.
        observers: Called after each step that moved a sample.

    Returns:
        How it went; observers hold the states.

    Cost:
        One synchronisation with the device for each step, two for a step that moves a sample.
    """
    span, tableau = plan.span, plan.tableau
    f0 = plan.beside(field, after=True)(span.t0.to(y0.dtype), y0) if f0 is None else f0
    size, n_probes = _first_size(plan, field, span, y0, f0)
    rows = _Rows.all(y0, 1 + n_probes)
    place = _Place(span.t0, y0, f0, size)
    trace = [place.t]
    at_rest = span.t0 == span.t1
    if bool(at_rest.any()):
        rows.retire(at_rest)
    place = _drop_bad_starts(rows, place)
    for _ in range(plan.max_steps):
        if not rows.n_active:
            break
        end = _end(plan, span, rows, place)
        step = plan.step(field, place.t, end, place.y, place.f0)
        verdict = _judge(plan, step, place)
        moved = verdict.accepted & rows.active & (end != place.t)
        seen = None
        if plan.watch is not None and bool(moved.any()):
            seen = plan.watch(plan, field, step, moved, span)
            step, span, end, moved = seen.step, seen.span, seen.step.t1, moved & (seen.status == 0)
        n_moved = int(moved.sum())
        rows.charge(tableau.evaluations(place.f0 is not None), n_moved, moved)
        n_before, tried = rows.n_active, place.size
        place = _move(tableau, step, moved, n_moved, rows, place)
        place = place._replace(size=verdict.size, memory=verdict.memory)
        if n_moved:
            place = _restart(plan, field, span, rows, place, moved)
            trace.append(place.t)
            for observe in observers:
                observe(step, place.t)
            arrived = moved & (end == span.t1)
            if bool(arrived.any()):
                rows.retire(arrived)
        if seen is not None and bool(seen.status.any()):
            place = place._replace(t=torch.where(seen.status != 0, seen.t, place.t))
            place = _fail(rows, seen.status != 0, seen.status, place)
        if n_moved < n_before:
            place = _drop_stuck(rows, verdict, moved, span, place, tried)
    if rows.n_active:
        _fail(rows, rows.active, torch.full_like(rows.status, Status.MAX_STEPS), place)
    status, stops = rows.status.cpu(), tuple(rows.stops)
    found = Outcome(status, rows.counts(), stops, tuple(trace), place.size)
    return found._replace(stood=tuple(rows.stood)) if stops else found


@torch.no_grad()
def _first_size(
    plan: Integration, field: FlatField, span: Span, y0: Tensor, f0: Tensor
) -> tuple[Tensor, int]:
    if plan.size is not None:
        return plan.size, 0
    if plan.stops is not None:  # its probe stays before the first jump
        span, field = plan.stops.first_stretch(span), plan.stops.beside(field, -span.direction)
    refuse_mapped(plan.control, (y0, f0))
    size, n_probes = plan.control.first(field, plan.tableau, span, y0, f0)
    return plain(size), n_probes


@torch.no_grad()
def _judge(plan: Integration, step: Step, place: _Place) -> Verdict:
    known = () if place.memory is None else (place.memory,)
    verdict = plan.control.judge(plan.tableau, step, place.size, *known)
    # `no_grad` lets the tangents of forward mode through.
    return plain_verdict(verdict, plan.control) if active() else verdict


def _end(plan: Integration, span: Span, rows: _Rows, place: _Place) -> Tensor:
    """End of the next step, never beyond t1; the present time for samples that have finished."""
    end = step_end(plan.control, plan.stops, place.t, place.size, span)
    return end if rows.n_active == len(rows.active) else torch.where(rows.active, end, place.t)


def _move(
    tableau: Method, step: Step, moved: Tensor, n_moved: int, rows: _Rows, place: _Place
) -> _Place:
    """Time, state and f after a step; samples at rest have t1 = t0 and y1 = y0 anyway."""
    if n_moved == rows.n_active:
        return _Place(step.t1, step.y1, step.k[-1] if tableau.fsal else None, place.size)
    if not n_moved:
        return place if tableau.implicit else place._replace(f0=step.k[0])
    if not (tableau.fsal or tableau.implicit):  # some know it, but all are evaluated together
        rows.spare(rows.active & ~moved)
    column = moved.unsqueeze(1)
    return _Place(
        torch.where(moved, step.t1, step.t0),
        torch.where(column, step.y1, step.y0),
        torch.where(column, step.k[-1], step.k[0]) if tableau.fsal else None,
        place.size,
    )


def _restart(
    plan: Integration, field: FlatField, span: Span, rows: _Rows, place: _Place, moved: Tensor
) -> _Place:
    """Evaluate f on the far side of jumps that samples have just come to."""
    if plan.stops is None or place.f0 is None:
        return place
    crossed = moved & plan.stops.is_jump(place.t) & (place.t != span.t1)
    if not bool(crossed.any()):
        return place
    f = plan.beside(field, after=True)(place.t.to(place.y.dtype), place.y)
    rows.charge_more(crossed)
    if len(crossed) > 1:
        f = torch.where(crossed.unsqueeze(1), f, place.f0)
    return place._replace(f0=f)


@torch.no_grad()
def _drop_bad_starts(rows: _Rows, place: _Place) -> _Place:
    """Give up samples whose f is not finite at the start: no step could help."""
    if place.f0 is None:
        return place
    bad = ~least(torch.isfinite(place.f0).all(dim=1))
    if not bool(bad.any()):
        return place
    return _fail(rows, bad, torch.full_like(rows.status, Status.NON_FINITE), place)


@torch.no_grad()
def _drop_stuck(
    rows: _Rows, verdict: Verdict, moved: Tensor, span: Span, place: _Place, tried: Tensor
) -> _Place:
    """Give up samples whose next step would be below the resolution of time."""
    stuck = rows.active & ~moved & (verdict.size <= resolution(place.t, span))
    if not bool(stuck.any()):
        return place
    status = torch.where(verdict.finite, int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
    size = torch.where(verdict.size > 0, verdict.size, tried)  # 0 only says to give up
    return _fail(rows, stuck, status, place._replace(size=size))


def step_end(control: Control, stops: Stops | None, t: Tensor, size: Tensor, span: Span) -> Tensor:
    """Where a step of this size from t ends, [B]: at the latest at the next stop, or at t1."""
    end = control.end(t, size, span)
    if stops is not None:
        end = _cut(end, size, span._replace(t1=stops.next_after(t, span)))
    return _cut(end, size, span)


def _cut(end: Tensor, size: Tensor, span: Span) -> Tensor:
    """The end of a step, [B]: t1 instead of anything beyond it or hardly before it."""
    rest = (span.t1 - end) * span.direction
    return torch.where(rest <= _FULL * size, span.t1, end)


def resolution(t: Tensor, span: Span) -> Tensor:
    """Step size below which time hardly moves, [B]."""
    eps = torch.finfo(t.dtype).eps
    return torch.maximum(16 * eps * t.abs(), 1e-20 * (span.t1 - span.t0).abs())


@torch.no_grad()
def _fail(rows: _Rows, who: Tensor, status: Tensor, place: _Place) -> _Place:
    """Retire failed samples and put each in the place of one that is well, if there is one."""
    rows.status = torch.where(who, status, rows.status)
    for sample in who.nonzero().flatten().tolist():
        f_is_finite = place.f0 is None or bool(least(torch.isfinite(place.f0[sample]).all()))
        rows.stood.append(place.y[sample].detach().clone())
        rows.stops.append(
            Stop(sample, float(place.t[sample]), float(place.size[sample]), f_is_finite)
        )
    rows.retire(who)
    well = (rows.status == Status.OK).nonzero().flatten()
    if not len(well):
        return place
    source = torch.where(who, well[0], torch.arange(len(who), device=who.device))
    f0 = None if place.f0 is None else place.f0[source]
    memory = None if place.memory is None else place.memory[..., source]
    return _Place(place.t[source], place.y[source], f0, place.size[source], memory)
