"""The phases of a solve as pure functions of tensors: start, one step, outputs; and back.

Native's own step, control and interpolation are called here, and followed once into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from ctflow.backends.compiled.trace import Traced
from ctflow.backends.native.control import Control, Span
from ctflow.backends.native.interpolate import at, coefficients, spread
from ctflow.backends.native.loop import cut, resolution
from ctflow.backends.native.step import FlatField, combine, rk_step
from ctflow.backends.native.tableau import Tableau
from ctflow.solution import Status

__all__ = [
    "Backward",
    "Forward",
    "Head",
    "Records",
    "Summary",
    "control_key",
    "control_values",
    "with_values",
]


def control_key(control: Control) -> tuple[object, ...]:
    """What of a control is part of the program."""
    values = _values_of(control)
    kind = type(control)
    if not values and not hasattr(kind, "__dataclass_fields__"):
        return (kind, control)
    named = cast("Any", fields(cast("Any", control)))
    others = [(f.name, _hashable(getattr(control, f.name))) for f in named if f.name not in values]
    return (kind, *others)


def control_values(control: Control, like: Tensor) -> tuple[Tensor, ...]:
    """What of a control is an input of the program, as tensors in time's dtype."""
    found: list[Tensor] = []
    for name in _values_of(control):
        value = getattr(control, name)
        found.append(
            value.detach().to(like) if isinstance(value, Tensor) else like.new_tensor(value)
        )
    return tuple(found)


def with_values(control: Control, values: Sequence[Tensor]) -> Control:
    """The control with other values: tensors in the place of numbers."""
    copy: Any = object.__new__(type(control))
    copy.__dict__.update(vars(control))
    copy.__dict__.update(zip(_values_of(control), values, strict=True))
    return copy


def _values_of(control: Control) -> tuple[str, ...]:
    return getattr(type(control), "VALUES", ())


def _hashable(value: object) -> object:
    if isinstance(value, slice):
        return (value.start, value.stop)
    if isinstance(value, tuple):
        return tuple(_hashable(item) for item in cast("tuple[object, ...]", value))
    return value


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
    kept: fx.GraphModule | None = None
    probes: list[int] = field(default_factory=list[int], compare=False)

    def _split(self, rest: Sequence[Tensor]) -> tuple[Control, Sequence[Tensor]]:
        return with_values(self.control, rest[: self.n_values]), rest[self.n_values :]

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
            clock: Time, step size, largest |y|, [3, B]; read only if the run is not fresh.
            ticks: Status, attempted steps, rejected steps, [3, B]; likewise.
            y: State, [B, N].
            rest: The control's values and the tensors of f.
        """
        control, tensors = self._split(rest)
        fresh = head[Head().fresh] != 0
        t1 = times[:, -1].clone()
        direction = torch.sign(t1 - times[:, 0])
        t = torch.where(fresh, times[:, 0], clock[0])
        ticks = torch.where(fresh, 0, ticks)
        saved: list[tuple[Tensor, ...]] = []
        field = self._field(tensors, saved)
        f = field(t.to(y.dtype), y)
        span = Span(times[:, 0], t1, direction)
        size, n_probes = control.first(self._field(tensors, []), self.tableau, span, y, f)
        self.probes.append(n_probes)
        size = torch.where(fresh, size, clock[1])
        largest = y.abs().amax(1).to(t.dtype) if self.watch else torch.zeros_like(t)
        bad = (ticks[0] == Status.OK) & ~torch.isfinite(f).all(dim=1)
        status = torch.where(bad, int(Status.NON_FINITE), ticks[0])
        done = torch.where(bad, 0, ticks[1])
        steps = head[Head().steps : Head().steps + 1]
        fsal = self.tableau.fsal
        return (
            t1,
            direction,
            torch.cat((steps, torch.zeros_like(steps))),
            torch.stack((t, size, torch.maximum(largest, torch.where(fresh, 0.0, clock[2])))),
            torch.stack((status, done, ticks[2])),
            y.clone(),
            f if fsal else f.new_empty(0),
            *(x.clone() for x in (saved[0] if saved and fsal else ())),
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
            carry: Marks (attempted steps, records), clock, ticks, state, f there if the method is
                first-same-as-last, and what its derivative needs.
            t1: End of the interval, [B].
            direction: +1 or -1, [B].
            buffers: Records, written in place: start and end of the step [2, B, C]; its state
                [C, B, N]; its interpolant [C, D, B, N]; what each stage's derivative needs. Those
                without elements are left alone.
            rest: The control's values and the tensors of f.
        """
        marks, clock, ticks, y, f, *saved_first = carry
        times, states, powers, *kept = buffers
        control, tensors = self._split(rest)
        tableau = self.tableau
        t, size, largest = clock.unbind(0)
        status, done, n_rejected = ticks.unbind(0)
        span = Span(t, t1, direction)
        active = (status == Status.OK) & (t != t1)
        end = torch.where(active, cut(control.end(t, size, span), size, span), t)
        saved: list[tuple[Tensor, ...]] = [tuple(saved_first)] if saved_first else []
        field = self._field(tensors, saved)
        step = rk_step(field, tableau, t, end, y, f if tableau.fsal else None)
        verdict = control.judge(tableau, step, size)
        moved = verdict.accepted & active & (end != t)
        t_new = torch.where(moved, end, t)
        column = moved.unsqueeze(1)
        y_new = torch.where(column, step.y1, y)
        f_new = torch.where(column, step.k[-1], f) if tableau.fsal else f.clone()
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
            q = torch.stack(coefficients(tableau, step, tableau.stages))
            powers.index_copy_(0, slot, q.unsqueeze(0))
        flat = [x for stage in saved[: tableau.stages - tableau.fsal] for x in stage]
        for buffer, x in zip(kept, flat, strict=True):
            buffer.index_copy_(0, slot, x.unsqueeze(0))
        went = moved.any()
        carried = zip(saved[-1], saved_first, strict=True) if saved_first else ()
        if self.watch:
            seen = torch.where(moved, step.y1.abs().amax(1), 0.0).to(t.dtype)
            largest = torch.maximum(largest, seen)
        next_size = torch.where(stuck & (verdict.size == 0), size, verdict.size)
        return (
            torch.stack((steps, marks[1] + went.to(torch.int64))),
            torch.stack((t_new, next_size, largest)),
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
        per_run, per_step = 1 + self.probes[-1], self.tableau.stages - self.tableau.fsal
        evals = head[Head().chunks] * per_run + done * per_step
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
        s = torch.where(there, (wanted - start) / (end - start), 0.0).to(y.dtype).unsqueeze(-1)
        q = [powers[k, j, sample] for j in range(powers.shape[1])]
        found = at(states[k, sample], q, s)
        found = torch.where((wanted == t1).unsqueeze(-1), y, found)
        widest = (windows[1] - windows[0]).amax()
        return torch.where(there.unsqueeze(-1), found, torch.nan), windows, widest


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


class Records(NamedTuple):
    """What the backward pass reads of one run of the forward program.

    Attributes:
        grid: Output times, [B, T].
        g: Gradient that reaches each output, [T, B, N].
        steps: Start and end of each step, [2, B, C].
        states: State at the start of each step, [C, B, N]; empty where evaluations are kept.
        windows: Which outputs lie in each step, from and to, [2, B, C].
        window: 0, 1, 2, ... as far as the widest of them.
    """

    grid: Tensor
    g: Tensor
    steps: Tensor
    states: Tensor
    windows: Tensor
    window: Tensor


@dataclass(frozen=True)
class Backward:
    """The phases of the backward pass that redoes one recorded step after the other.

    Args:
        tableau: The method.
        traced: f and its vector-Jacobian product as graphs.
        inside: Whether gradients reach outputs inside steps.
        recalled: The vector-Jacobian product from what was kept of each evaluation; None where
            each step is redone.
    """

    tableau: Tableau
    traced: Traced
    inside: bool
    recalled: fx.GraphModule | None = None

    @property
    def _redone(self) -> int:
        """Stages that outputs inside a step are charged to in that step itself.

        The last of a first-same-as-last method is the first of the next step, and is pulled back
        there.
        """
        return self.tableau.stages - self.tableau.fsal

    def last(
        self, n: Tensor, t_end: Tensor, y_end: Tensor, records: Records, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Cotangents of the last step's interpolant, [D + 1, B, N], and what its last stage adds.

        That stage is f at the end of the solve.
        """
        sums = self._sums(n - 1, records)
        cotangent = self._of_last_stage(n - 1, records, sums)
        t = t_end.to(y_end.dtype)
        if not self.tableau.fsal:
            leaves = [torch.zeros_like(tensors[i]) for i in self.traced.wanted]
            return (sums, torch.zeros_like(y_end), *leaves)
        _, a, *shares = _graph(self.traced.pulled)(t, y_end, cotangent, *tensors)
        return (sums, a, *shares)

    def going(self, left: Tensor) -> Tensor:
        """Whether a step is left; [1] -> 0-dim."""
        return (left > 0).all()

    def step(
        self,
        left: Tensor,
        a: Tensor,
        sums: Tensor,
        records: Records,
        kept: Sequence[Tensor],
        totals: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Cotangent of a step's start from that of its end; adds the tensors' to `totals`."""
        tableau, here = self.tableau, left - 1
        t0, t1 = _pick(records.steps, here, 2).unbind(0)
        y0 = torch.zeros_like(a) if self.recalled else _pick(records.states, here)
        earlier = sums
        with torch.enable_grad():
            y = y0.detach().requires_grad_()
            leaves = [tensors[i].detach().requires_grad_() for i in self.traced.wanted]
            field: FlatField = _Differentiable(self.traced, tensors, leaves)
            if self.recalled:
                of_step = [_pick(buffer, here) for buffer in kept]
                field = _Recalled(self.recalled, of_step, self._redone, tensors, leaves)
            step = rk_step(field, tableau, t0, t1, y, None)
            outputs, cotangents = [step.y1], [a]
            if self.inside:
                outputs += coefficients(tableau, step, self._redone)
                cotangents += sums[1:].unbind(0)
                before = torch.clamp(here - 1, min=0)
                earlier = self._sums(before, records)
                earlier = torch.where(here > 0, earlier, 0.0)
                if tableau.fsal:
                    outputs.append(step.k[0])
                    cotangents.append(self._of_last_stage(before, records, earlier))
        found: list[Tensor | None] = list(
            torch.autograd.grad(outputs, (y, *leaves), cotangents, allow_unused=True)
        )
        da, *shares = found
        a_new = a.clone() if da is None else da.detach()
        for total, share in zip(totals, shares, strict=True):
            if share is not None:
                total.add_(share.detach())
        return (here, a_new + sums[0] if self.inside else a_new, earlier.clone())

    def _sums(self, at_step: Tensor, records: Records) -> Tensor:
        """Cotangents of one step's y0 and interpolant, [D + 1, B, N], from those of its outputs."""
        g, wanted = records.g[1:], records.grid.T[1:]
        t0, t1 = _pick(records.steps, at_step, 2).unbind(0)
        begin, stop = _pick(records.windows, at_step, 2).unbind(0)
        index = begin.unsqueeze(0) + records.window.unsqueeze(1)
        theirs = (index < stop).unsqueeze(-1)
        index = index.clamp(max=g.shape[0] - 1)
        sample = torch.arange(g.shape[1], device=g.device).unsqueeze(0)
        chosen = torch.where(theirs, g[index, sample], 0.0)
        s = (wanted[index, sample] - t0) / (t1 - t0)
        s = torch.where(theirs, s.to(g.dtype).unsqueeze(-1), 0.0)
        return torch.stack(spread(chosen, s, len(self.tableau.p[0])))

    def _of_last_stage(self, at_step: Tensor, records: Records, sums: Tensor) -> Tensor:
        """Cotangent of the last stage of a step, [B, N], from those of its interpolant."""
        t0, t1 = _pick(records.steps, at_step, 2).unbind(0)
        h = (t1 - t0).to(sums.dtype).unsqueeze(-1)
        return combine(self.tableau.p[-1], sums[1:].unbind(0)) * h


def _pick(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """Entry `index` [1] along a dimension; no host is asked for it."""
    return torch.index_select(x, dim, index).squeeze(dim)


def _graph(graph: fx.GraphModule | None) -> fx.GraphModule:
    if graph is None:
        raise RuntimeError("this program was traced without a derivative")
    return graph


class _Differentiable:
    """f whose derivative is the graph that was followed from the user's own autograd."""

    def __init__(self, traced: Traced, tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        self._traced = traced
        self._tensors = tuple(tensors)
        self._leaves = tuple(leaves)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        return _Evaluation.apply(self._traced, self._tensors, t, y, *self._leaves)  # pyright: ignore


class _Evaluation(torch.autograd.Function):
    """One evaluation, while a step is followed."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        traced: Traced,
        tensors: tuple[Tensor, ...],
        t: Tensor,
        y: Tensor,
        *leaves: Tensor,  # noqa: ARG004 - so that their gradients arrive
    ) -> Tensor:
        """The value."""
        ctx.traced, ctx.tensors = traced, tensors
        ctx.save_for_backward(t, y)
        return traced.value(t, y, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # noqa: ANN401
        """The vector-Jacobian product."""
        t, y = ctx.saved_tensors
        _, *found = _graph(ctx.traced.pulled)(t, y, cotangents[0], *ctx.tensors)
        return None, None, None, *found


class _Recalled:
    """f whose evaluations were kept: there is no value any more, only the derivative.

    Args:
        recalled: (cotangent, *saved, *tensors) -> products.
        kept: What was kept of one step's stages, one stage after the other.
        n_stages: How many stages these are.
        tensors: What f reads.
        leaves: Those that want a gradient.
    """

    def __init__(
        self,
        recalled: fx.GraphModule,
        kept: Sequence[Tensor],
        n_stages: int,
        tensors: Sequence[Tensor],
        leaves: Sequence[Tensor],
    ) -> None:
        self._recalled = recalled
        size = len(kept) // n_stages
        self._stages = [tuple(kept[i * size : (i + 1) * size]) for i in range(n_stages)]
        self._tensors = tuple(tensors)
        self._leaves = tuple(leaves)
        self._next = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The next stage; 0 stands in for its value, which nobody reads."""
        stage, self._next = self._next, self._next + 1
        if stage >= len(self._stages):
            return torch.zeros_like(y)
        inputs = (*self._stages[stage], *self._tensors)
        return _Recollection.apply(self._recalled, inputs, y, *self._leaves)  # pyright: ignore


class _Recollection(torch.autograd.Function):
    """One evaluation of which only the derivative is left."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        recalled: fx.GraphModule,
        inputs: tuple[Tensor, ...],
        y: Tensor,
        *leaves: Tensor,  # noqa: ARG004 - so that their gradients arrive
    ) -> Tensor:
        """Nothing."""
        ctx.recalled, ctx.inputs = recalled, inputs
        return torch.zeros_like(y)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # noqa: ANN401
        """The vector-Jacobian product."""
        return None, None, *ctx.recalled(cotangents[0], *ctx.inputs)
