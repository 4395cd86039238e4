"""The gradient of the steps taken as phases, and these as one program: from last step to first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ctflow.backends.compiled.forward_program import stops_from
from ctflow.backends.compiled.rewrite import in_turns, once, outputs_of
from ctflow.backends.compiled.trace import Traced, graph_of
from ctflow.backends.compiled.trial import Looped, loop
from ctflow.backends.native.interpolate import coefficients, spread
from ctflow.backends.native.step import FlatField, combine, extended, rk_step
from ctflow.backends.tableau import Tableau

__all__ = ["Backward", "BackwardProgram", "Records"]


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
        carries: Whether the last stage of a step is the first of the next, and is pulled back
            there.
        redone: Stages that a step is charged for itself.
        dtype: That of the interpolant.
        n_stops: How many inputs say where steps must end; f sees one side of the jumps only.
        recalled: The vector-Jacobian product from what was kept of each evaluation; None where
            each step is redone.
    """

    tableau: Tableau
    traced: Traced
    inside: bool
    carries: bool
    redone: int
    dtype: torch.dtype
    n_stops: int = 0
    recalled: fx.GraphModule | None = None

    def last(
        self, n: Tensor, t_end: Tensor, y_end: Tensor, records: Records, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Cotangents of the last step's interpolant, [D + 1, B, N], and what its last stage adds.

        That stage is f at the end of the solve.
        """
        sums, tensors = self._sums(n - 1, records), tensors[self.n_stops :]
        cotangent = self._of_last_stage(n - 1, records, sums)
        t = t_end.to(y_end.dtype)
        if not self.carries:
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
        stops, tensors = stops_from(tensors[: self.n_stops]), tensors[self.n_stops :]
        t0, t1 = _pick(records.steps, here, 2).unbind(0)
        y0 = torch.zeros_like(a) if self.recalled else _pick(records.states, here)
        earlier = sums
        with torch.enable_grad():
            y = y0.detach().requires_grad_()
            leaves = [tensors[i].detach().requires_grad_() for i in self.traced.wanted]
            field: FlatField = _Differentiable(self.traced, tensors, leaves)
            if self.recalled:
                of_step = [_pick(buffer, here) for buffer in kept]
                field = _Recalled(self.recalled, of_step, self.redone, tensors, leaves)
            seen = None if stops is None else stops.seen(t0, t1, y.dtype)
            step = rk_step(field, tableau, t0, t1, y, None, seen)
            outputs, cotangents = [step.y1], [a]
            if self.inside:
                step = extended(field, tableau, step)
                outputs += coefficients(tableau, step, self.dtype, self.redone)
                cotangents += sums[1:].unbind(0)
                before = torch.clamp(here - 1, min=0)
                earlier = self._sums(before, records)
                earlier = torch.where(here > 0, earlier, 0.0)
                if self.carries:
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
        a_new = a_new + sums[0].to(a_new.dtype) if self.inside else a_new
        return (here, a_new, earlier.clone())

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
        s = torch.where(theirs, s.to(self.dtype).unsqueeze(-1), 0.0)
        return torch.stack(spread(chosen.to(self.dtype), s, len(self.tableau.p[0])))

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


class BackwardProgram(Looped):
    """The loop that redoes the recorded steps from last to first.

    Takes the number of steps [1], the cotangent of the state at their end [B, N], clock and state
    there, `Records`, what was kept of evaluations, the totals of the wanted tensors, and the
    tensors of f.

    Args:
        phases: What they do.
        inputs: Examples of what `forward` takes.
        n_kept: How many inputs were kept of evaluations.
        exact: No approximations of elementary functions.
    """

    RESULTS = (0,)  # the gradient of the initial state

    def __init__(
        self, phases: Backward, inputs: Sequence[Tensor], n_kept: int, exact: bool
    ) -> None:
        super().__init__()
        self._inside = phases.inside
        self._n_kept, self._n_totals = n_kept, len(phases.traced.wanted)
        n, a, clock, y_end, records, kept, totals, tensors = self._parts(inputs)
        n_records = len(records)

        def last(n: Tensor, t_end: Tensor, y_end: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            return phases.last(n, t_end, y_end, Records(*rest[:n_records]), *rest[n_records:])

        sums = a.new_empty(0)
        if self._inside:
            graph = graph_of(last, (n, clock[0], y_end, *records, *tensors))
            sums = outputs_of(graph)[0]
            self._last = once(graph, exact)
        self._going = graph_of(phases.going, (n,))

        def step(left: Tensor, a: Tensor, sums: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            records, rest = Records(*rest[:n_records]), rest[n_records:]
            kept, totals = rest[:n_kept], rest[n_kept : n_kept + self._n_totals]
            tensors = rest[n_kept + self._n_totals :]
            return phases.step(left, a, sums, records, kept, totals, tensors)

        graph = graph_of(step, (n, a, sums, *records, *kept, *totals, *tensors))
        first = 3 + n_records + n_kept + self._n_totals
        self._before, self._step = in_turns(graph, exact, range(first, first + len(tensors)))

    def _parts(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        n, a, clock, y_end = inputs[:4]
        first = 4 + len(Records._fields)
        second = first + self._n_kept
        third = second + self._n_totals
        return (
            n, a, clock, y_end, inputs[4:first], inputs[first:second], inputs[second:third],
            inputs[third:],
        )  # fmt: skip

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with another limit of steps."""
        return [inputs[0].clamp(max=n_steps), *inputs[1:]]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Cotangent of the initial state; and what the end of the solve adds to the totals."""
        n, a, clock, y_end, records, kept, totals, tensors = self._parts(inputs)
        with torch.no_grad():
            sums, shares = a.new_empty(0), ()
            if self._inside:
                sums, more, *shares = self._last(n, clock[0], y_end, *records, *tensors)
                a = a + more
            constant = self._before(*tensors)

            def going(left: Tensor, a: Tensor, sums: Tensor) -> Tensor:  # noqa: ARG001
                return self._going(left)

            def step(left: Tensor, a: Tensor, sums: Tensor) -> tuple[Tensor, ...]:
                return self._step(left, a, sums, *records, *kept, *totals, *constant)

            _, a, _ = loop(going, step, (n.clone(), a.clone(), sums.clone()))
            return (a, *shares)
