"""The phases put together: one loop, one program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctflow.backends.compiled.phases import Backward, Forward
from ctflow.backends.compiled.rewrite import improved, outputs_of, split_constant
from ctflow.backends.compiled.trace import graph_of

__all__ = ["BackwardProgram", "ForwardProgram"]


class ForwardProgram(nn.Module):
    """Start, loop, outputs.

    Args:
        phases: What they do.
        inputs: Examples of what `forward` takes.
        exact: No approximations of elementary functions.
    """

    def __init__(self, phases: Forward, inputs: Sequence[Tensor], exact: bool) -> None:
        super().__init__()
        fresh, limits, t1, direction, clock, ticks, y, wanted, times, states, powers, *rest = inputs
        start = graph_of(phases.start, (fresh, limits, t1, direction, clock, ticks, y, *rest))
        carry = outputs_of(start)
        self._start = improved(start, exact)
        self._going = graph_of(phases.going, (*carry, limits, t1))
        step = graph_of(phases.step, (*carry, t1, direction, times, states, powers, *rest))
        step = improved(step, exact)
        self._before, self._step = split_constant(
            step, range(len(carry) + 5, len(carry) + 5 + len(rest))
        )
        last = (carry[0][1:], carry[3], carry[1], wanted, t1, direction, times, states, powers)
        self._outputs = improved(graph_of(phases.outputs, last), exact)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Marks, clock, ticks, y; and the outputs."""
        fresh, limits, t1, direction, clock, ticks, y, wanted, times, states, powers, *rest = inputs
        with torch.no_grad():
            carry = self._start(fresh, limits, t1, direction, clock, ticks, y, *rest)
            constant = self._before(*rest)

            def going(*carry: Tensor) -> Tensor:
                return self._going(*carry, limits, t1)

            def step(*carry: Tensor) -> tuple[Tensor, ...]:
                return self._step(*carry, t1, direction, times, states, powers, *constant)

            carry = torch.while_loop(going, step, tuple(carry))
            marks, clock, ticks, y, _ = carry
            found = self._outputs(marks[1:], y, clock, wanted, t1, direction, times, states, powers)
            return marks, clock, ticks, y, found


class BackwardProgram(nn.Module):
    """The loop that redoes the recorded steps from last to first.

    Args:
        phases: What they do.
        inputs: Examples of what `forward` takes.
        exact: No approximations of elementary functions.
    """

    def __init__(self, phases: Backward, inputs: Sequence[Tensor], exact: bool) -> None:
        super().__init__()
        self._inside = phases.inside
        self._n_totals = len(phases.traced.wanted)
        n, a, t_end, y_end, times, states, g, wanted, begin, stop, window, *rest = inputs
        totals, tensors = rest[: self._n_totals], rest[self._n_totals :]
        of_steps = (times, g, wanted, begin, stop, window)
        if self._inside:
            last = graph_of(phases.last, (n, t_end, y_end, *of_steps, *tensors))
            sums = outputs_of(last)[0]
            self._last = improved(last, exact)
        else:
            sums = g.new_empty(0)
        self._going = graph_of(phases.going, (n,))

        def step(*everything: Tensor) -> tuple[Tensor, ...]:
            left, a, sums, times, states, g, wanted, begin, stop, window, *rest = everything
            totals, tensors = rest[: self._n_totals], rest[self._n_totals :]
            return phases.step(
                left, a, sums, times, states, g, wanted, begin, stop, window, totals, tensors
            )

        graph = graph_of(
            step, (n, a, sums, times, states, g, wanted, begin, stop, window, *totals, *tensors)
        )
        start = 10 + self._n_totals
        self._before, self._step = split_constant(
            improved(graph, exact), range(start, start + len(tensors))
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Cotangent of the initial state; and what the end of the solve adds to the totals."""
        n, a, t_end, y_end, times, states, g, wanted, begin, stop, window, *rest = inputs
        with torch.no_grad():
            totals, tensors = rest[: self._n_totals], rest[self._n_totals :]
            sums, shares = g.new_empty(0), ()
            if self._inside:
                sums, more, *shares = self._last(
                    n, t_end, y_end, times, g, wanted, begin, stop, window, *tensors
                )
                a = a + more
            constant = self._before(*tensors)

            def going(left: Tensor, a: Tensor, sums: Tensor) -> Tensor:  # noqa: ARG001
                return self._going(left)

            def step(left: Tensor, a: Tensor, sums: Tensor) -> tuple[Tensor, ...]:
                return self._step(
                    left, a, sums, times, states, g, wanted, begin, stop, window, *totals, *constant
                )

            _, a, _ = torch.while_loop(going, step, (n.clone(), a.clone(), sums.clone()))
            return (a, *shares)
