"""A running cost as part of the state, so that every backend integrates it in the same solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.event import Event, checked_events
from ctflow.problem import ODEProblem
from ctflow.solution import Solution
from ctflow.state import Layout, leaves_of, map_leaves

__all__ = ["split_cost", "with_cost"]


def with_cost(problem: ODEProblem, per_sample: bool) -> ODEProblem:
    """The same problem with the integral of its running cost as a second part of the state.

    Args:
        problem: With a `running_cost`.
        per_sample: Whether dimension 0 is a batch of systems with steps of their own.

    Returns:
        A problem with state (y, cost) and no running cost.

    Raises:
        InvalidProblem: If the cost at the start is not made of finite-size tensors of the state's
            dtype and device, with the batch first under per-sample steps.

    Cost:
        One evaluation of the running cost.
    """
    cost = problem.running_cost
    if cost is None:
        return problem
    y0: Any = problem.y0
    layout = Layout.of(y0, per_sample)
    start = problem.t.detach()[..., 0].expand(layout.batch).to(layout.real_dtype)
    with torch.enable_grad():
        first = _Both(problem.f, cost, problem.args is not None).cost_of(
            layout.time(start), y0, problem.args
        )
    zero = map_leaves(lambda leaf: _zero_like(leaf, layout), first)
    return replace(
        problem,
        f=_Both(problem.f, cost, problem.args is not None),
        y0=(y0, zero),
        running_cost=None,
        cost_in_norm=True,
        uncontrolled=0 if problem.cost_in_norm else len(leaves_of(zero)),
        event=[_beside_cost(event) for event in checked_events(problem.event)] or None,
    )


def split_cost(solution: Solution) -> Solution:
    """The solution with `y` and `cost` apart again."""
    y, cost = solution.y
    found = solution.event
    if found is not None:
        found = replace(found, y=found.y[0], y_after=found.y_after[0], y_end=found.y_end[0])
    return replace(solution, y=y, cost=cost, event=found)


def _beside_cost(event: Event) -> Event:
    """The event of a state that has the integral of a cost beside it, which it leaves alone."""

    def fn(t: Tensor, state: Any, *args: Any) -> Tensor:  # noqa: ANN401
        return event.fn(t, state[0], *args)

    def change(t: Tensor, state: Any, *args: Any) -> Any:  # noqa: ANN401
        return event.change(t, state[0], *args) if event.change else state[0], state[1]

    return replace(event, fn=fn, change=None if event.change is None else change)


@dataclass(frozen=True, eq=False)
class _Both:
    """d(y, cost)/dt = (f, running cost)."""

    f: Callable[..., Any]
    cost: Callable[..., Any]
    has_args: bool

    def __call__(self, t: Tensor, state: Any, args: Any = None) -> Any:  # noqa: ANN401
        """Evaluate both at one place."""
        y = state[0]
        dy = self.f(t, y, args) if self.has_args else self.f(t, y)
        return dy, self.cost_of(t, y, args)

    def cost_of(self, t: Tensor, y: Any, args: Any) -> Any:  # noqa: ANN401
        """Evaluate the running cost alone."""
        return self.cost(t, y, args) if self.has_args else self.cost(t, y)


def _zero_like(leaf: object, layout: Layout) -> Tensor:
    if not isinstance(leaf, Tensor) or leaf.device != layout.device:
        raise InvalidProblem(
            f"`running_cost` must return tensors on {layout.device}, got {leaf!r:.80}. "
            "Return a tensor computed from `y`."
        )
    if leaf.dtype != layout.dtype and not torch.is_autocast_enabled(layout.device.type):
        raise InvalidProblem(
            f"`running_cost` must return the dtype of `y`, got {leaf.dtype} for {layout.dtype}. "
            "Cast inside it."
        )
    if layout.per_sample and (leaf.dim() == 0 or leaf.shape[0] != layout.batch):
        raise InvalidProblem(
            "`running_cost` must return one value for each sample under coupling='per_sample', got "
            f"shape {list(leaf.shape)} for {layout.batch} samples. Sum over all but dimension 0."
        )
    return torch.zeros_like(leaf, dtype=layout.dtype, requires_grad=False)
