"""The phases put together: one loop, one program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.backends.compiled.phases import Backward, Forward, Records
from ctflow.backends.compiled.rewrite import improved, outputs_of, split_constant
from ctflow.backends.compiled.trace import graph_of

__all__ = ["BackwardProgram", "ForwardProgram"]


class ForwardProgram(nn.Module):
    """Start, loop, outputs.

    Takes head, times, clock, ticks, y (see `Forward.start`), the record buffers (see
    `Forward.step`; `n_buffers` of them), the control's values and the tensors of f.

    Args:
        phases: What they do.
        inputs: Examples of what `forward` takes.
        n_buffers: How many of them are written.
        exact: No approximations of elementary functions.
    """

    def __init__(
        self, phases: Forward, inputs: Sequence[Tensor], n_buffers: int, exact: bool
    ) -> None:
        super().__init__()
        self._n_buffers = n_buffers
        head, times, clock, ticks, y = inputs[:5]
        buffers, rest = inputs[5 : 5 + n_buffers], inputs[5 + n_buffers :]
        start = graph_of(phases.start, (head, times, clock, ticks, y, *rest))
        t1, direction, *carry = outputs_of(start)
        self._start = improved(start, exact)
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
        self._before, self._step = split_constant(
            improved(graph, exact), range(first, first + n_rest)
        )
        last = (head, times, y, *carry[:4], *buffers[:3])
        self._outputs = improved(graph_of(phases.outputs, last), exact)

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

            carry = torch.while_loop(going, step, tuple(carry))
            found = self._outputs(head, times, y0, *carry[:4], *buffers[:3])
            return (*found, carry[3])


class BackwardProgram(nn.Module):
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
            self._last = improved(graph, exact)
        self._going = graph_of(phases.going, (n,))

        def step(left: Tensor, a: Tensor, sums: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            records, rest = Records(*rest[:n_records]), rest[n_records:]
            kept, totals = rest[:n_kept], rest[n_kept : n_kept + self._n_totals]
            tensors = rest[n_kept + self._n_totals :]
            return phases.step(left, a, sums, records, kept, totals, tensors)

        graph = graph_of(step, (n, a, sums, *records, *kept, *totals, *tensors))
        first = 3 + n_records + n_kept + self._n_totals
        self._before, self._step = split_constant(
            improved(graph, exact), range(first, first + len(tensors))
        )

    def _parts(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        n, a, clock, y_end = inputs[:4]
        first = 4 + len(Records._fields)
        second = first + self._n_kept
        third = second + self._n_totals
        return (
            n, a, clock, y_end, inputs[4:first], inputs[first:second], inputs[second:third],
            inputs[third:],
        )  # fmt: skip

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

            _, a, _ = torch.while_loop(going, step, (n.clone(), a.clone(), sums.clone()))
            return (a, *shares)
