"""Watches the loop's steps for events: samples the interpolant, brackets, and solves for the time.

Each accepted step is looked at in a few places. Between two of them a zero shows by a change of
sign; or, where the function turns back on its way to zero, at the turning point. The earliest zero
is then found on the step itself: the step is taken again to a shorter end, until the event function
is zero at that end to rounding. So the state at an event is one of the solver, not of its
interpolant.

Source:
    Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.backends.events import EventFunctions, Look
from ctflow.backends.native.control import Span
from ctflow.backends.native.event_path import CLOSE, EventPath
from ctflow.backends.native.event_search import (
    BAD,
    GRAZE,
    NONE,
    STUCK,
    ZERO,
    Found,
    Known,
    search,
)
from ctflow.backends.native.loop import Integration, Seen
from ctflow.backends.native.step import FlatField, Step, extended
from ctflow.errors import InvalidProblem
from ctflow.solution import Status

__all__ = ["FindEvent"]

_MOST_NEWTON = 8
_SAME = 16.0  # units in the last place between times that are the same
_JUMP = 1e-3  # part of the change over a bracket that a continuous function does not keep at a zero
_AT_ZERO = 16.0  # roundings up to which a function is still zero behind its event
_FLAT = 1e-6  # part of the mean slope over a bracket below which a zero has no slope

_MEANS = {
    GRAZE: Status.GRAZING,
    BAD: Status.EVENT_NON_FINITE,
    STUCK: Status.TOO_MANY_EVENTS,
}


class FindEvent:
    """Ends the solve of each sample at its first event; one round of it.

    Args:
        functions: The event functions.
        outputs: Output times, [B, T]; an event within rounding of one is put on it.
        side: Sign of each function before the start, [E, B]; 0 where it is not known, or where the
            event has just happened.
        fired: Which events happened right at the start, bool [E, B].
        blur: How near zero the function of such an event was left, by rounding, [B].
        near: Up to where each function may be from zero if its event may be one at the start too,
            [E, B]; 0 where it is not.

    Attributes:
        which: The event that each sample ended at, int64 [B]; -1 for none.
        side: Sign of each function at the start of the step that ended the round, [E, B].
        slope: Derivative of its event function along the way, by time, [B]; 1 where there is none.
        blur: How near zero rounding left its event function, [B].
        near: As above, at the end of the round.
        ends: Where each step took each sample, [B] for each step; infinite where it did not.
        n_f_evals: Evaluations of f for the interpolant and the zeros, int64 [B].
    """

    def __init__(
        self,
        functions: EventFunctions,
        outputs: Tensor,
        side: Tensor,
        fired: Tensor,
        blur: Tensor,
        near: Tensor,
    ) -> None:
        self._functions = functions
        self._outputs = outputs
        self._began = self._fired = fired
        self._waits = torch.zeros_like(fired)
        self._last: list[Look] = []
        self.side = side
        self.blur = blur
        self.near = near
        self.which = torch.full_like(fired[0], -1, dtype=torch.int64)
        self.slope = torch.ones_like(outputs[:, 0])
        self.ends: list[Tensor] = []
        self.n_f_evals = torch.zeros_like(self.which)

    @torch.no_grad()
    def __call__(
        self, plan: Integration, field: FlatField, step: Step, moved: Tensor, span: Span
    ) -> Seen:
        """Look at a step that counts; shorten it where an event lies inside."""
        whole = extended(field, plan.tableau, step)
        self.n_f_evals += plan.tableau.further * moved
        path = EventPath(self._functions, plan, whole)
        if not self._last:
            self._last = [path.look(j, torch.zeros_like(step.t0)) for j in range(len(self.side))]
            self.side = self._first_side()
        stuck = self._stuck(step, moved)
        ends = [path.look(j, torch.ones_like(step.t0)) for j in range(len(self.side))]
        quiet = self._quiet(path, ends) & ~stuck
        if bool((quiet | ~moved).all()):
            self._remember(moved, ends)
            self._waits = self._waits & ~moved
            self.ends.append(torch.where(moved, step.t1, torch.inf))
            return Seen(step, span, torch.zeros_like(self.which), step.t1)
        loud = moved & ~quiet
        looks = [search(self._known(j), path, loud, end) for j, end in enumerate(ends)]
        self._waits = self._waits & ~moved
        found = Found(*(torch.stack(x) for x in zip(*(f for f, _ in looks), strict=True)))
        same = found.s == found.s.amin(dim=0, keepdim=True)
        first = same.to(torch.int8).argmax(dim=0, keepdim=True)  # in the order of the list
        mine = Found(*(x.gather(0, first)[0] for x in found))
        mine = mine._replace(kind=torch.where(stuck, STUCK, mine.kind))
        mine = mine._replace(s=torch.where(stuck, 0.0, mine.s))
        zero = mine.kind == ZERO
        if bool(zero.any()):
            step, mine = self._solve(plan, field, step, zero, first[0], mine)
            zero = mine.kind == ZERO
            span = span._replace(t1=torch.where(zero, step.t1, span.t1))
            self.which = torch.where(zero, first[0], self.which)
        on = moved & (mine.kind == NONE)
        self.side = torch.stack(
            [torch.where(on, new, old) for (_, new), old in zip(looks, self.side, strict=True)]
        )
        self._remember(on, ends)
        status = torch.zeros_like(mine.kind)
        for kind, means in _MEANS.items():
            status = torch.where(mine.kind == kind, int(means), status)
        self.ends.append(torch.where(moved & (status == 0), step.t1, torch.inf))
        where = torch.lerp(step.t0, step.t1, mine.s.clamp(max=1.0).to(step.t0))
        return Seen(step, span, status, where)

    def _known(self, j: int) -> Known:
        """What is known of function j at the start of the step."""
        direction = self._functions.events[j].direction
        state = self.side[j], self._last[j], self._waits[j], self._began[j]
        return Known(j, direction, *state)

    def _quiet(self, path: EventPath, ends: list[Look]) -> Tensor:
        """Samples none of whose functions comes near zero in the step, bool [B]."""
        known = zip(self.side, self._last, ends, strict=True)
        rows = [path.quiet(j, side, last, end) for j, (side, last, end) in enumerate(known)]
        return torch.stack(rows).all(dim=0)

    def _remember(self, rows: Tensor, ends: list[Look]) -> None:
        """Keep how the functions of some samples look at the end of the step."""
        self._last = [
            Look(*(torch.where(rows, a, b) for a, b in zip(new, old, strict=True)))
            for new, old in zip(ends, self._last, strict=True)
        ]

    def _first_side(self) -> Tensor:
        """On which side of zero each function starts, [E, B].

        A function that is zero there is on the side to which it goes; but if its event is still to
        come, because another one at the same time came first, on the side where it was.
        """
        sides, waiting = list[Tensor](), list[Tensor]()
        states = zip(self._last, self.side, self._fired, self.near, strict=True)
        for look, before, fired, near in states:
            limit = torch.where(fired, self._zero_of(look), torch.maximum(look.noise, near))
            clear = look.g.abs() > limit
            waits = (before != 0) & (near > 0) & ~fired
            known = torch.where(waits, before, torch.sign(look.slope))
            sides.append(torch.where(clear, torch.sign(look.g), known))
            waiting.append(waits & ~clear)
        self._waits = torch.stack(waiting)
        return torch.stack(sides)

    def _zero_of(self, look: Look) -> Tensor:
        """Up to where a function counts as zero whose event has just happened, [B]."""
        return _AT_ZERO * torch.maximum(look.rounding, self.blur)

    def _stuck(self, step: Step, moved: Tensor) -> Tensor:
        """Samples that an event left at its zero without a way to go, bool [B]."""
        if not bool(self._fired.any()):
            return torch.zeros_like(moved)
        length = (step.t1 - step.t0).abs().to(step.y0.dtype)
        events = self._functions.events
        rows: list[Tensor] = []
        for x, fired, event in zip(self._last, self._fired, events, strict=True):
            none = _AT_ZERO * torch.maximum(x.noise, self.blur)
            still = torch.maximum(x.g.abs(), x.slope.abs() * length) <= none
            if event.change is not None:  # which moved it by less than the time of it is known to
                far = x.g.abs() > 2 * torch.maximum(self.blur, x.rounding)
                still = torch.where(far, x.g.abs() <= self._zero_of(x), still)
            rows.append(fired & still)
        self._fired = self._fired & ~moved
        return torch.stack(rows).any(dim=0) & moved

    def _solve(
        self,
        plan: Integration,
        field: FlatField,
        step: Step,
        zero: Tensor,
        first: Tensor,
        mine: Found,
    ) -> tuple[Step, Found]:
        """The step taken again so that it ends where its event function is zero."""
        t = torch.lerp(step.t0, step.t1, torch.where(zero, mine.s, 0.0))
        t = torch.where(mine.s == 1.0, step.t1, t)
        ends = torch.minimum(step.t0, step.t1), torch.maximum(step.t0, step.t1)
        small = torch.maximum(t.abs(), ends[1] - ends[0]) * (4 * torch.finfo(step.y0.dtype).eps)
        trying = zero
        trial, dy, look = self._try(plan, field, step, t, trying, first)
        for _ in range(_MOST_NEWTON):
            slope = (look.slope * self._functions.direction).to(t.dtype)
            move = -look.g.to(t.dtype) / torch.where(slope == 0, torch.inf, slope)
            trying = trying & (move.abs() > small) & (look.g.abs() > look.noise / 16)
            if not bool(trying.any()):
                break
            t = torch.where(trying, torch.minimum(torch.maximum(t + move, ends[0]), ends[1]), t)
            trial, dy, look = self._try(plan, field, step, t, trying, first)
        slope = (look.slope * self._functions.direction).to(t.dtype)
        self.slope = torch.where(zero, slope, self.slope)
        near = self._at_once(zero, first, trial, dy, ends[1] - ends[0])
        self.near = torch.where(zero, near, self.near)
        self.blur = torch.where(zero, torch.maximum(look.g.abs(), look.rounding), self.blur)
        mine = mine._replace(kind=self._checked(first, zero, look, mine, step))
        zero = mine.kind == ZERO
        column = zero.unsqueeze(1)
        return Step(
            step.t0,
            torch.where(zero, trial.t1, step.t1),
            step.y0,
            torch.where(column, trial.y1, step.y1),
            torch.where(column, trial.h, step.h),
            tuple(torch.where(column, a, b) for a, b in zip(trial.k, step.k, strict=True)),
            step.seen,
        ), mine

    def _at_once(
        self, zero: Tensor, first: Tensor, trial: Step, dy: Tensor, length: Tensor
    ) -> Tensor:
        """How near zero the other functions are, where one may be zero at the same time, [E, B].

        Which of two came first is not known within the accuracy of bracket and interpolant.
        """
        rows = torch.zeros_like(self.side)
        if len(rows) > 1:
            for j in range(len(rows)):
                look = self._functions.look(j, trial.t1, trial.y1, dy)
                moved = 4 * CLOSE * look.slope.abs() * length.to(look.g.dtype)
                near = 4 * look.doubt + moved
                rows[j] = torch.where(zero & (first != j) & (look.g.abs() <= near), near, 0.0)
        return rows

    def _try(
        self,
        plan: Integration,
        field: FlatField,
        step: Step,
        t: Tensor,
        trying: Tensor,
        first: Tensor,
    ) -> tuple[Step, Tensor, Look]:
        """The step to other ends; f and each sample's own event function there."""
        nearest = (self._outputs - t.unsqueeze(1)).abs().min(dim=1)
        same = nearest.values <= _SAME * torch.finfo(t.dtype).eps * t.abs()
        output = self._outputs.gather(1, nearest.indices.unsqueeze(1))[:, 0]
        t = torch.where(same & (t != step.t0), output, t)
        method = plan.tableau
        trial = plan.step(field, step.t0, t, step.y0, None if method.implicit else step.k[0])
        dy = trial.k[-1] if method.fsal else field(t.to(trial.y1.dtype), trial.y1)
        self.n_f_evals += trying * (method.evaluations(not method.implicit) + (not method.fsal))
        lowest, *others = sorted(set(first.tolist()))
        look = self._functions.look(lowest, t, trial.y1, dy)
        for j in others:
            new = self._functions.look(j, t, trial.y1, dy)
            look = Look(*(torch.where(first == j, a, b) for a, b in zip(new, look, strict=True)))
        return trial, dy, look

    def _checked(self, first: Tensor, zero: Tensor, look: Look, mine: Found, step: Step) -> Tensor:
        """The kind of each sample's find, now that its zero is known; a jump is refused."""
        jumps = zero & (look.g.abs() > _JUMP * mine.change + 64 * look.noise)
        length = (mine.width * (step.t1 - step.t0).abs()).to(look.g.dtype)
        length = length.clamp(min=torch.finfo(length.dtype).tiny)
        mean = mine.change / length
        flat = zero & (look.slope.abs() < _FLAT * mean)
        detached = flat & (mine.steepest < _FLAT * mean)
        for broken, what in ((jumps, "be continuous"), (detached, "have a derivative")):
            if bool(broken.any()):
                b = int(broken.nonzero()[0])
                t = float(torch.lerp(step.t0, step.t1, mine.s)[b])
                raise InvalidProblem(
                    f"`fn` of event {int(first[b])} must {what} where it changes its sign, got "
                    f"{float(look.g[b]):.3g} with the slope {float(look.slope[b]):.3g} at its zero "
                    f"near t={t:.6g}. Use no rounding, sign, comparison or "
                    "`.detach()` in it; for a jump in time, ODEProblem(jump_t=...)."
                )
        bend = mine.bend / length
        turns = (bend > 0) & (look.slope.square() <= 2 * bend * look.doubt)
        kind = torch.where(zero & (flat | turns), GRAZE, mine.kind)
        return torch.where(zero & ~torch.isfinite(look.g + look.slope), BAD, kind)
