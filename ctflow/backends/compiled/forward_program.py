"""The forward solve as phases, pure functions of tensors, and these as one program.

Native's own step, control and interpolation are called here, and followed once into a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from ctflow.backends.compiled.controls import judge, memory_before, with_values
from ctflow.backends.compiled.rewrite import in_turns, once, outputs_of
from ctflow.backends.compiled.trace import Traced, graph_of
from ctflow.backends.compiled.trial import Looped, loop
from ctflow.backends.native.control import Control, Span
from ctflow.backends.native.interpolate import at, coefficients
from ctflow.backends.native.loop import resolution, step_end
from ctflow.backends.native.step import FlatField, extended, rk_step
from ctflow.backends.native.stops import Stops
from ctflow.backends.tableau import Tableau
from ctflow.solution import Status

__all__ = ["Forward", "ForwardProgram", "Head", "Summary", "stops_from"]


class Head(NamedTuple):
    """Places of the whole numbers that a forward program is called with."""

    max_steps: int = 0
    room: int = 1
    steps: int = 2
    fresh: int = 3
    chunks: int = 4


class Summary(NamedTuple):
    """What the host has to know when a forward program returns; whole numbers in this order.

    Attributes:
        steps: Attempted steps so far.
        n: Records written.
        on_the_way: Samples that need another run.
        failed: Samples that were given up.
        widest: Largest number of outputs inside one step of one sample.
    """

    steps: int
    n: int
    on_the_way: int
    failed: int
    widest: int


@dataclass(frozen=True)
class Forward:
    """The phases of the forward solve.

    Args:
        tableau: The method.
        control: Step sizes; its values are replaced by inputs.
        traced: f as a graph.
        n_values: How many values the control takes.
        inside: Whether outputs inside steps are wanted.
        watch: Whether the largest |y| is wanted.
        carries: Whether a step's last stage is the first of the next.
        redone: Evaluations of one step.
        n_stops: How many inputs say where steps must end: 0, 1 (times) or 2 (and jumps).
        kept: f as a graph that also returns what its derivative needs; None where nothing of an
            evaluation is kept.
        probes: Filled with the evaluations that the first step's size takes.
    """

    tableau: Tableau
    control: Control
    traced: Traced
    n_values: int
    inside: bool
    watch: bool
    carries: bool
    redone: int
    n_stops: int = 0
    kept: fx.GraphModule | None = None
    probes: list[int] = field(default_factory=list[int], compare=False)

    def _split(self, rest: Sequence[Tensor]) -> tuple[Control, Stops | None, Sequence[Tensor]]:
        control, rest = with_values(self.control, rest[: self.n_values]), rest[self.n_values :]
        return control, stops_from(rest[: self.n_stops]), rest[self.n_stops :]

    def _field(self, tensors: Sequence[Tensor], saved: list[tuple[Tensor, ...]]) -> FlatField:
        """f with its tensors; what its derivative needs goes into `saved`."""

        def evaluate(t: Tensor, y: Tensor) -> Tensor:
            if self.kept is None:
                return self.traced.value(t, y, *tensors)
            f, *own = self.kept(t, y, *tensors)
            saved.append(tuple(own))
            return f

        return evaluate

    def start(
        self, head: Tensor, times: Tensor, clock: Tensor, ticks: Tensor, y: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """End of the interval, direction; then what the loop carries, bad starts dropped.

        Args:
            head: Whole numbers, as `Head` says.
            times: Output times, [B, T].
            clock: Time, step size, largest |y|, and what the control remembers, [3 + M, B]; read
                only if the run is not fresh.
            ticks: Status, attempted steps, rejected steps, [3, B]; likewise.
            y: State, [B, N].
            rest: The control's values, the stops and the tensors of f.
        """
        control, stops, tensors = self._split(rest)
        fresh = head[Head().fresh] != 0
        t1 = times[:, -1].clone()
        direction = torch.sign(t1 - times[:, 0])
        t = torch.where(fresh, times[:, 0], clock[0])
        ticks = torch.where(fresh, 0, ticks)
        saved: list[tuple[Tensor, ...]] = []
        field, probe = self._field(tensors, saved), self._field(tensors, [])
        span = Span(times[:, 0], t1, direction)
        if stops is not None:
            field, probe = stops.beside(field, direction), stops.beside(probe, -direction)
            span = stops.first_stretch(span)
        f = field(t.to(y.dtype), y)
        size, n_probes = control.first(probe, self.tableau, span, y, f)
        self.probes.append(n_probes)
        size = torch.where(fresh, size, clock[1])
        memory = memory_before(control, self.tableau, t, y)
        largest = y.abs().amax(1).to(t.dtype) if self.watch else torch.zeros_like(t)
        largest = torch.maximum(largest, torch.where(fresh, 0.0, clock[2]))
        bad = (ticks[0] == Status.OK) & ~torch.isfinite(f).all(dim=1)
        status = torch.where(bad, int(Status.NON_FINITE), ticks[0])
        done = torch.where(bad, 0, ticks[1])
        steps = head[Head().steps : Head().steps + 1]
        return (
            t1,
            direction,
            torch.cat((steps, torch.zeros_like(steps))),
            torch.cat((torch.stack((t, size, largest)), torch.where(fresh, memory, clock[3:]))),
            torch.stack((status, done, ticks[2])),
            y.clone(),
            f if self.carries else f.new_empty(0),
            *(x.clone() for x in (saved[0] if saved and self.carries else ())),
        )

    def going(
        self, head: Tensor, t1: Tensor, marks: Tensor, clock: Tensor, ticks: Tensor
    ) -> Tensor:
        """Whether another step is to be taken: someone is on the way, within the limits."""
        on_the_way = ((ticks[0] == Status.OK) & (clock[0] != t1)).any()
        return on_the_way & (marks < head[:2]).all()

    def step(
        self,
        carry: Sequence[Tensor],
        t1: Tensor,
        direction: Tensor,
        buffers: Sequence[Tensor],
        rest: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """One attempted step of every sample: native's loop, one turn of it.

        Args:
            carry: Marks (attempted steps, records), clock, ticks, state, f there if the last step
                knows it, and what its derivative needs.
            t1: End of the interval, [B].
            direction: +1 or -1, [B].
            buffers: Records, written in place: start and end of the step [2, B, C]; its state
                [C, B, N]; its interpolant [C, D, B, N]; what each stage's derivative needs. Those
                without elements are left alone.
            rest: The control's values, the stops and the tensors of f.
        """
        marks, clock, ticks, y, f, *saved_first = carry
        times, states, powers, *kept = buffers
        control, stops, tensors = self._split(rest)
        tableau = self.tableau
        t, size, largest, *_ = clock.unbind(0)
        status, done, n_rejected = ticks.unbind(0)
        span = Span(t, t1, direction)
        active = (status == Status.OK) & (t != t1)
        end = torch.where(active, step_end(control, stops, t, size, span), t)
        seen = None if stops is None else stops.seen(t, end, y.dtype)
        saved: list[tuple[Tensor, ...]] = [tuple(saved_first)] if saved_first else []
        field = self._field(tensors, saved)
        step = rk_step(field, tableau, t, end, y, f if self.carries else None, seen)
        last = saved[-1] if saved else ()
        verdict, memory = judge(control, tableau, step, size, clock[3:])
        moved = verdict.accepted & active & (end != t)
        t_new = torch.where(moved, end, t)
        column = moved.unsqueeze(1)
        y_new = torch.where(column, step.y1, y)
        f_new = torch.where(column, step.k[-1], f) if self.carries else f.clone()
        steps = marks[0] + 1
        stuck = active & ~moved & (verdict.size <= resolution(t_new, span))
        why = torch.where(verdict.finite, int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
        left = stuck | (moved & (t_new == t1))
        slot = marks[1:]
        if times.numel():
            times.index_copy_(2, slot, torch.stack((t, t_new)).unsqueeze(2))
        if states.numel():
            states.index_copy_(0, slot, y.unsqueeze(0))
        if powers.numel():
            step = extended(field, tableau, step)
            q = torch.stack(coefficients(tableau, step, powers.dtype))
            powers.index_copy_(0, slot, q.unsqueeze(0))
        flat = [x for stage in saved[: self.redone] for x in stage]
        for buffer, x in zip(kept, flat, strict=True):
            buffer.index_copy_(0, slot, x.unsqueeze(0))
        went = moved.any()
        carried = zip(last, saved_first, strict=True) if saved_first else ()
        if self.watch:
            seen = torch.where(moved, step.y1.abs().amax(1), 0.0).to(t.dtype)
            largest = torch.maximum(largest, seen)
        next_size = torch.where(stuck & (verdict.size == 0), size, verdict.size)
        return (
            torch.stack((steps, marks[1] + went.to(torch.int64))),
            torch.cat((torch.stack((t_new, next_size, largest)), memory)),
            torch.stack(
                (
                    torch.where(stuck, why, status),
                    torch.where(left, steps, done),
                    n_rejected + (active & ~moved),
                )
            ),
            y_new,
            f_new,
            *(torch.where(went, last, first) for last, first in carried),
        )

    def outputs(
        self,
        head: Tensor,
        times: Tensor,
        y0: Tensor,
        marks: Tensor,
        clock: Tensor,
        ticks: Tensor,
        y: Tensor,
        records: Tensor,
        states: Tensor,
        powers: Tensor,
    ) -> tuple[Tensor, ...]:
        """Summary, clock, ticks, counts [4, B], states at the output times [T, B, N], windows.

        States that the recorded steps do not hold are NaN; a fresh run's first is `y0`. Windows say
        which outputs lie in which step, from and to, [2, B, C].
        """
        t1 = times[:, -1]
        ok = ticks[0] == Status.OK
        ended = ok & (clock[0] != t1) & (marks[0] >= head[Head().max_steps])
        status = torch.where(ended, int(Status.MAX_STEPS), ticks[0])
        done, rejected = torch.where(ended, marks[0], ticks[1]), ticks[2]
        ticks = torch.stack((status, done, rejected))
        evals = head[Head().chunks] * (1 + self.probes[-1]) + done * self.redone
        counts = torch.stack((evals, done, done - rejected, rejected))
        first = torch.where(head[Head().fresh] != 0, y0, torch.nan).unsqueeze(0)
        out, windows, widest = self._found(times, marks[1:], clock, y, records, states, powers)
        ok = status == Status.OK
        on_the_way, failed = (ok & (clock[0] != t1)).sum(), (~ok).sum()
        summary = torch.stack((marks[0], marks[1], on_the_way, failed, widest))
        return summary, clock.clone(), ticks, counts, torch.cat((first, out)), windows

    def _found(
        self,
        times: Tensor,
        n: Tensor,
        clock: Tensor,
        y: Tensor,
        records: Tensor,
        states: Tensor,
        powers: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States at the output times after the first, windows, and the widest of these."""
        wanted, t1 = times[:, 1:].T, times[:, -1]
        if not self.inside:
            arrived = (clock[0] == t1).unsqueeze(1)
            none = n.new_empty(0)
            return torch.where(arrived, y, torch.nan).unsqueeze(0), none, torch.ones_like(n[0])
        direction = torch.sign(t1 - times[:, 0]).unsqueeze(1)
        ahead = times[:, 1:] * direction
        recorded = torch.arange(records.shape[2], device=y.device) < n
        ends = torch.where(recorded, records[1] * direction, torch.inf)
        now = (clock[0] * direction[:, 0]).unsqueeze(1)
        begun = torch.where(n > 0, records[0, :, :1] * direction, now)
        k, windows = _places(begun, ends, ahead)
        windows = torch.where(recorded, windows, 0)
        k = k.clamp(max=records.shape[2] - 1).T
        sample = torch.arange(y.shape[0], device=y.device).unsqueeze(0)
        start, end = records[0, sample, k], records[1, sample, k]
        there = ((ahead > begun) & (ahead <= now)).T
        s = torch.where(there, (wanted - start) / (end - start), 0.0)
        s = s.to(powers.dtype).unsqueeze(-1)
        q = [powers[k, j, sample] for j in range(powers.shape[1])]
        found = at(states[k, sample], q, s).to(y.dtype)
        found = torch.where((wanted == t1).unsqueeze(-1), y, found)
        widest = (windows[1] - windows[0]).amax()
        return torch.where(there.unsqueeze(-1), found, torch.nan), windows, widest


def stops_from(inputs: Sequence[Tensor]) -> Stops | None:
    """The stops from what a program is given of them: nothing, times, or times and jumps."""
    if not inputs:
        return None
    times, *jumps = inputs
    return Stops(times, jumps[0] if jumps else times[:0])


def _places(begun: Tensor, ends: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
    """For each output its step, [B, T]; for each step its outputs but the last one, [2, B, C].

    Args:
        begun: Where the first step starts, [B, 1].
        ends: Where each step ends, [B, C], not decreasing.
        ahead: Output times, [B, T], increasing.
    """
    if ends.shape[0] == 1:
        before = ends.unsqueeze(2) < ahead.unsqueeze(1)  # [B, C, T]
        k, stop = before.sum(1), (~before).sum(2)
        begin = (ahead <= begun).sum(1, keepdim=True)
    else:
        k = torch.searchsorted(ends, ahead)
        stop = torch.searchsorted(ahead, ends, right=True)
        begin = torch.searchsorted(ahead, begun, right=True)
    begin = torch.cat((begin, stop[:, :-1]), dim=1)
    return k, torch.stack((begin, stop)).clamp(max=ahead.shape[1] - 1)


class ForwardProgram(Looped):
    """Start, loop, outputs.

    Takes head, times, clock, ticks, y (see `Forward.start`), the record buffers (see
    `Forward.step`; `n_buffers` of them), the control's values and the tensors of f.

    Args:
        phases: What they do.
        inputs: Examples of what `forward` takes.
        n_buffers: How many of them are written.
        exact: No approximations of elementary functions.
    """

    RESULTS = (4, 6)  # states at the output times, and at the end
    GUESSES = (1,)  # clock, with the size of the next step
    COUNTS = (2, 3)
    SAMPLES: ClassVar[Mapping[int, int]] = {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 0}
    WRITTEN_SAMPLES: ClassVar[Mapping[int, int]] = {5: 1, 6: 1, 7: 2}  # ends, states, slopes

    def __init__(
        self, phases: Forward, inputs: Sequence[Tensor], n_buffers: int, exact: bool
    ) -> None:
        super().__init__()
        self._n_buffers = n_buffers
        head, times, clock, ticks, y = inputs[:5]
        buffers, rest = inputs[5 : 5 + n_buffers], inputs[5 + n_buffers :]
        start = graph_of(phases.start, (head, times, clock, ticks, y, *rest))
        t1, direction, *carry = outputs_of(start)
        self._start = once(start, exact)
        self._going = graph_of(phases.going, (head, t1, *carry[:3]))
        n_carry, n_rest = len(carry), len(rest)

        def step(*flat: Tensor) -> tuple[Tensor, ...]:
            carry, (t1, direction), more = (
                flat[:n_carry],
                flat[n_carry : n_carry + 2],
                flat[n_carry + 2 :],
            )
            return phases.step(carry, t1, direction, more[:n_buffers], more[n_buffers:])

        graph = graph_of(step, (*carry, t1, direction, *buffers, *rest))
        first = n_carry + 2 + n_buffers
        self._before, self._step = in_turns(graph, exact, range(first, first + n_rest))
        last = (head, times, y, *carry[:4], *buffers[:3])
        self._outputs = once(graph_of(phases.outputs, last), exact)

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with another limit of steps."""
        head = inputs[0].clone()
        places = Head()
        limit = head[places.max_steps], head[places.steps] + n_steps
        head[places.max_steps] = torch.minimum(*limit)
        return [head, *inputs[1:]]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Summary, clock, ticks, counts, outputs, windows; and the state at the end."""
        head, times, clock, ticks, y0 = inputs[:5]
        buffers, rest = inputs[5 : 5 + self._n_buffers], inputs[5 + self._n_buffers :]
        with torch.no_grad():
            t1, direction, *carry = self._start(head, times, clock, ticks, y0, *rest)
            constant = self._before(*rest)

            def going(*carry: Tensor) -> Tensor:
                return self._going(head, t1, *carry[:3])

            def step(*carry: Tensor) -> tuple[Tensor, ...]:
                return self._step(*carry, t1, direction, *buffers, *constant)

            carry = loop(going, step, tuple(carry))
            found = self._outputs(head, times, y0, *carry[:4], *buffers[:3])
            return (*found, carry[3])
