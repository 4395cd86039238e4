"""torchdiffeq's odeint_adjoint behind a node of autograd's graph that knows every captured tensor.

The inner solve sees leaves alone: the initial state, and for each captured tensor what stands in
its place. The node outside hands their gradients on to the tensors themselves, with the histories
these may have, and turns what torchdiffeq leaves unsaid into errors.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends.adjoint import scale_of
from ctflow.backends.captures import Captures, refuse_second, refuse_several, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.protocol import is_absolute
from ctflow.backends.times import shift
from ctflow.backends.torchdiffeq.forward import complete, plain
from ctflow.backends.torchdiffeq.library import odeint_adjoint
from ctflow.backends.torchdiffeq.plan import Plan
from ctflow.backends.torchdiffeq.watch import Stopped, Tally, Watch
from ctflow.errors import SolveFailed, Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, Stats, Status, raise_if_failed

__all__ = ["run"]


def run(
    problem: ODEProblem, field: Field, watch: Watch, plan: Plan, y0: Tensor, t0: Tensor
) -> tuple[Tensor, list[Stats]]:
    """Solve without a graph; the backward pass lets torchdiffeq solve the adjoint equation.

    Args:
        problem: Whose captured tensors are found.
        field: Its dynamics on flat tensors.
        watch: What torchdiffeq integrates.
        plan: Settings and times.
        y0: Initial state, [1, N].
        t0: Its time, [1], perhaps with a gradient.

    Returns:
        States at the output times, [T, 1, N], and a list into which the caller puts the `Stats`
        that the backward pass shall complete.

    Raises:
        Unsupported: If `f` uses a tensor whose gradient would be lost.

    Cost:
        Memory of the outputs. Backward: a solve of state, adjoint and parameter gradients that
        starts anew at every output time.
    """
    captures = Captures(problem, field)
    leaf = y0.detach().requires_grad_()
    marker = sequence_number()
    reached = watch.evaluate(t0.detach().to(y0.dtype), leaf)
    captures.discover(reached, leaf, marker)
    watch.known = f0 = reached.detach()
    start = shift(watch.evaluate, t0, y0, -1.0, f0, "adjoint") if t0.requires_grad else y0
    if not (start.requires_grad or captures.inputs):
        out = plain(watch, plan, y0)  # recorded, which costs nothing if nothing is reached
        captures.recheck_none(out)
        return out, []
    with captures.cut() as leaves, torch.enable_grad():
        _check_leaves(leaves)
        inner = _Inner(watch, plan, start.detach().requires_grad_(), leaves)
        out = complete(inner.solve, watch, plan, start)
        inner.keep(captures, problem, field)
    if watch.tally.status != Status.OK:
        return out, []
    inner.out = out
    return _Adjoint.apply(inner, start, *captures.inputs), inner.stats  # pyright: ignore


def _check_leaves(leaves: tuple[Tensor, ...]) -> None:
    for x in leaves:
        if x.is_complex():
            raise Unsupported(
                "gradient='adjoint' on torchdiffeq cannot differentiate with respect to a complex "
                f"tensor, got one of shape {list(x.shape)} in `f`. Use gradient='direct'."
            )


@dataclass
class _Inner:
    """The solve on leaves, kept for the backward pass.

    Attributes:
        y0: Leaf for the initial state, [1, N].
        leaves: What stood in the place of each captured tensor.
        out: States with torchdiffeq's graph, [T, 1, N].
        stats: Completed by the backward pass.
    """

    watch: Watch
    plan: Plan
    y0: Tensor
    leaves: tuple[Tensor, ...]
    out: Tensor = field(init=False)
    stats: list[Stats] = field(default_factory=list[Stats])

    def solve(self) -> Tensor:
        """Call torchdiffeq."""
        watch, plan = self.watch, self.plan
        return odeint_adjoint(
            watch,
            self.y0,
            plan.times,
            adjoint_params=[leaf for leaf in self.leaves if leaf.numel()],
            **plan.forward(watch.norm),
            **plan.backward(watch.norm),
        )

    def keep(self, captures: Captures, problem: ODEProblem, field: Field) -> None:
        """Remember, inside `cut`, where the leaves stand; another `cut` would make new ones."""
        same = all(x is leaf for x, leaf in zip(captures.inputs, self.leaves, strict=True))
        self._captures = captures if same else Captures(problem, field)
        self._field, self._args = field, field.args

    @contextmanager
    def put_back(self) -> Generator[Captures]:
        """Let every place hold the leaf that it held in the forward pass."""
        with self._captures.cut():
            self._field.args = self._args  # `cut` puts back what was there before it
            yield self._captures

    @torch.no_grad()
    def pull_back(self, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of y0 and of each leaf, from that of the outputs g [T, 1, N].

        Raises:
            SolveFailed: If the backward solve did not get to the start.
            Unsupported: If `f` used a tensor that the forward pass could not name.
        """
        inputs, times = (self.y0, *self.leaves), self.plan.times
        size = g.abs().amax()
        if not bool(torch.isfinite(size)):
            return tuple(torch.full_like(x, torch.nan) for x in inputs)
        scale = scale_of(size, is_absolute(self.plan.solver.backward))
        tally = self.watch.begin(float(times[-1]))
        with self.put_back() as captures:
            self.watch.inspect = partial(_inspect, captures, self.leaves)
            try:
                found = torch.autograd.grad(
                    self.out, inputs, g / scale, retain_graph=True, allow_unused=True
                )
            except Stopped:
                raise self._failure(tally) from None
            finally:
                self.watch.inspect = None
        tally.finish(float(times[0]))
        for stats in self.stats:
            stats.backward = tally.counts()
        gradients = cast("tuple[Tensor | None, ...]", found)  # None for one without elements
        return tuple(None if x is None else x * scale.to(x.dtype) for x in gradients)

    def _failure(self, tally: Tally) -> SolveFailed:
        own = self.plan.solver.backward or self.plan.solver
        settings = replace(self.stats[0].solver, rtol=own.rtol, atol=own.atol)
        stats = Stats(settings, tally.counts())
        t = (self.plan.times * self.plan.direction).flip(0)
        status = torch.tensor([int(tally.status)])
        backward = Solution(t, None, status, stats, tally.stops(self.plan.direction))
        message = "the adjoint's backward solve failed"
        try:
            raise_if_failed(backward)
        except SolveFailed as error:
            message = f"in the adjoint's backward pass {error}"
        return SolveFailed(f"{message} gradient='checkpointed' needs no backward solve.")


def _inspect(
    captures: Captures, leaves: tuple[Tensor, ...], dy: Tensor, y: Tensor, marker: int, t: Tensor
) -> None:
    """Refuse what the forward pass could not have known."""
    captures.recheck(dy, y, marker, leaves, t)


class _Adjoint(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, inner: _Inner, y0: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        """Hand on what the inner solve found."""
        ctx.save_for_backward(y0, *inputs)
        ctx.inner = inner
        ctx.set_materialize_grads(False)
        return inner.out.detach().clone()  # torchdiffeq keeps its own, which nobody may change

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # noqa: ANN401
        """Let torchdiffeq solve the adjoint equation."""
        refuse_several(gradients, "adjoint")
        saved = ctx.saved_tensors  # also checks that nothing was changed in place
        (g,) = gradients
        if g is None:
            return (None,) * (1 + len(saved))
        found = ctx.inner.pull_back(g)
        asked = [
            x if need else None for x, need in zip(found, ctx.needs_input_grad[1:], strict=True)
        ]
        return None, *refuse_second(asked, "adjoint", (g, *saved))
