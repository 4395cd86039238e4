"""The phases of a solve as pure functions of tensors: start, one step, outputs; and back.

Native's own step, control and interpolation are called here, and followed once into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

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


@dataclass(frozen=True)
class Forward:
    """The phases of the forward solve.

    Args:
        tableau: The method.
        control: Step sizes; its values are replaced by inputs.
        value: f as a graph: (t, y, *tensors) -> f.
        n_values: How many values the control takes.
        keep_states: Whether steps are recorded so that they can be redone.
        inside: Whether outputs inside steps are wanted.
        probes: Filled with the evaluations that the first step's size takes.
    """

    tableau: Tableau
    control: Control
    value: fx.GraphModule
    n_values: int
    keep_states: bool
    inside: bool
    probes: list[int] = field(default_factory=list[int], compare=False)

    def field(self, tensors: Sequence[Tensor]) -> FlatField:
        """f with its tensors."""
        return lambda t, y: self.value(t, y, *tensors)

    def _split(self, rest: Sequence[Tensor]) -> tuple[Control, FlatField]:
        control = with_values(self.control, rest[: self.n_values])
        return control, self.field(rest[self.n_values :])

    def start(
        self,
        fresh: Tensor,
        limits: Tensor,
        t1: Tensor,
        direction: Tensor,
        clock: Tensor,
        ticks: Tensor,
        y: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Derivative at the start, and size of the first step where `fresh`; drops bad starts."""
        control, field = self._split(rest)
        t, given = clock.unbind(0)
        f = field(t.to(y.dtype), y)
        size, n_probes = control.first(field, self.tableau, Span(t, t1, direction), y, f)
        self.probes.append(n_probes)
        size = torch.where(fresh, size, given)
        bad = (ticks[0] == Status.OK) & ~torch.isfinite(f).all(dim=1)
        status = torch.where(bad, int(Status.NON_FINITE), ticks[0])
        done = torch.where(bad, 0, ticks[1])
        marks = torch.stack((limits[2], torch.zeros_like(limits[2])))
        return (
            marks,
            torch.stack((t, size)),
            torch.stack((status, done, ticks[2])),
            y.clone(),
            f if self.tableau.fsal else f.new_empty(0),
        )

    def going(
        self,
        marks: Tensor,
        clock: Tensor,
        ticks: Tensor,
        y: Tensor,
        f: Tensor,
        limits: Tensor,
        t1: Tensor,
    ) -> Tensor:
        """Whether another step is to be taken: someone is on the way, within the limits."""
        del y, f
        on_the_way = ((ticks[0] == Status.OK) & (clock[0] != t1)).any()
        return on_the_way & (marks < limits[:2]).all()

    def step(
        self,
        marks: Tensor,
        clock: Tensor,
        ticks: Tensor,
        y: Tensor,
        f: Tensor,
        t1: Tensor,
        direction: Tensor,
        times: Tensor,
        states: Tensor,
        powers: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """One attempted step of every sample: native's loop, one turn of it."""
        control, field = self._split(rest)
        tableau = self.tableau
        t, size = clock.unbind(0)
        status, done, n_rejected = ticks.unbind(0)
        span = Span(t, t1, direction)
        active = (status == Status.OK) & (t != t1)
        end = torch.where(active, cut(control.end(t, size, span), size, span), t)
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
            times.index_copy_(0, slot, torch.stack((t, t_new)).unsqueeze(0))
        if states.numel():
            states.index_copy_(0, slot, y.unsqueeze(0))
        if powers.numel():
            q = torch.stack(coefficients(tableau, step, tableau.stages))
            powers.index_copy_(0, slot, q.unsqueeze(0))
        next_size = torch.where(stuck & (verdict.size == 0), size, verdict.size)
        return (
            torch.stack((steps, marks[1] + moved.any().to(torch.int64))),
            torch.stack((t_new, next_size)),
            torch.stack(
                (
                    torch.where(stuck, why, status),
                    torch.where(left, steps, done),
                    n_rejected + (active & ~moved),
                )
            ),
            y_new,
            f_new,
        )

    def outputs(
        self,
        n: Tensor,
        y: Tensor,
        clock: Tensor,
        wanted: Tensor,
        t1: Tensor,
        direction: Tensor,
        times: Tensor,
        states: Tensor,
        powers: Tensor,
    ) -> Tensor:
        """States at the wanted times [T, B] that the recorded steps hold, NaN at others."""
        arrived = clock[0] == t1
        if not self.inside:
            return torch.where(arrived.unsqueeze(1), y, torch.nan).unsqueeze(0)
        ahead = wanted * direction
        row = torch.arange(times.shape[0], device=y.device)
        recorded = (row < n).unsqueeze(1)
        ends = torch.where(recorded, times[:, 1] * direction, torch.inf)
        first = torch.where(n > 0, times[0, 0], clock[0]) * direction
        k = (ends.unsqueeze(1) < ahead.unsqueeze(0)).sum(0).clamp(max=times.shape[0] - 1)
        sample = torch.arange(y.shape[0], device=y.device).unsqueeze(0)
        start, end = times[k, 0, sample], times[k, 1, sample]
        there = (ahead > first) & (ahead <= clock[0] * direction)
        s = torch.where(there, (wanted - start) / (end - start), 0.0).to(y.dtype).unsqueeze(-1)
        q = [powers[k, j, sample] for j in range(powers.shape[1])]
        found = at(states[k, sample], q, s)
        found = torch.where((wanted == t1).unsqueeze(-1), y, found)
        return torch.where(there.unsqueeze(-1), found, torch.nan)


@dataclass(frozen=True)
class Backward:
    """The phases of the backward pass that redoes one recorded step after the other.

    Args:
        tableau: The method.
        traced: f and its vector-Jacobian product as graphs.
        inside: Whether gradients reach outputs inside steps.
    """

    tableau: Tableau
    traced: Traced
    inside: bool

    @property
    def _redone(self) -> int:
        """Stages that outputs inside a step are charged to in that step itself.

        The last of a first-same-as-last method is the first of the next step, and is pulled back
        there.
        """
        return self.tableau.stages - self.tableau.fsal

    def last(
        self,
        n: Tensor,
        t_end: Tensor,
        y_end: Tensor,
        times: Tensor,
        g: Tensor,
        wanted: Tensor,
        begin: Tensor,
        stop: Tensor,
        window: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Cotangents of the last step's interpolant, [D + 1, B, N], and what its last stage adds.

        That stage is f at the end of the solve.
        """
        sums = self._sums(n - 1, times, g, wanted, begin, stop, window)
        cotangent = self._of_last_stage(n - 1, times, sums)
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
        times: Tensor,
        states: Tensor,
        g: Tensor,
        wanted: Tensor,
        begin: Tensor,
        stop: Tensor,
        window: Tensor,
        totals: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Cotangent of a step's start from that of its end; adds the tensors' to `totals`."""
        tableau, here = self.tableau, left - 1
        t0, t1 = _pick(times, here).unbind(0)
        y0 = _pick(states, here)
        earlier = sums
        with torch.enable_grad():
            y = y0.detach().requires_grad_()
            leaves = [tensors[i].detach().requires_grad_() for i in self.traced.wanted]
            field = _Differentiable(self.traced, tensors, leaves)
            step = rk_step(field, tableau, t0, t1, y, None)
            outputs, cotangents = [step.y1], [a]
            if self.inside:
                outputs += coefficients(tableau, step, self._redone)
                cotangents += sums[1:].unbind(0)
                before = torch.clamp(here - 1, min=0)
                earlier = self._sums(before, times, g, wanted, begin, stop, window)
                earlier = torch.where(here > 0, earlier, 0.0)
                if tableau.fsal:
                    outputs.append(step.k[0])
                    cotangents.append(self._of_last_stage(before, times, earlier))
        found: list[Tensor | None] = list(
            torch.autograd.grad(outputs, (y, *leaves), cotangents, allow_unused=True)
        )
        da, *shares = found
        a_new = a.clone() if da is None else da.detach()
        for total, share in zip(totals, shares, strict=True):
            if share is not None:
                total.add_(share.detach())
        return (here, a_new + sums[0] if self.inside else a_new, earlier.clone())

    def _sums(
        self,
        at_step: Tensor,
        times: Tensor,
        g: Tensor,
        wanted: Tensor,
        begin: Tensor,
        stop: Tensor,
        window: Tensor,
    ) -> Tensor:
        """Cotangents of one step's y0 and interpolant, [D + 1, B, N], from those of its outputs."""
        t0, t1 = _pick(times, at_step).unbind(0)
        index = _pick(begin, at_step).unsqueeze(0) + window.unsqueeze(1)
        theirs = (index < _pick(stop, at_step)).unsqueeze(-1)
        index = index.clamp(max=g.shape[0] - 1)
        sample = torch.arange(g.shape[1], device=g.device).unsqueeze(0)
        chosen = torch.where(theirs, g[index, sample], 0.0)
        s = (wanted[index, sample] - t0) / (t1 - t0)
        s = torch.where(theirs, s.to(g.dtype).unsqueeze(-1), 0.0)
        return torch.stack(spread(chosen, s, len(self.tableau.p[0])))

    def _of_last_stage(self, at_step: Tensor, times: Tensor, sums: Tensor) -> Tensor:
        """Cotangent of the last stage of a step, [B, N], from those of its interpolant."""
        t0, t1 = _pick(times, at_step).unbind(0)
        h = (t1 - t0).to(sums.dtype).unsqueeze(-1)
        return combine(self.tableau.p[-1], sums[1:].unbind(0)) * h


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Entry `index` [1] along the first dimension; no host is asked for it."""
    return torch.index_select(x, 0, index)[0]


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
