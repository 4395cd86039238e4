"""Counting how often a vector field is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.state import State

__all__ = ["CountCalls"]


class CountCalls(nn.Module):
    """A field that counts its evaluations and is otherwise the field it wraps.

    Every evaluation counts, one for a whole batch: those of rejected steps, and those that a
    gradient method repeats in the backward pass. (`Solution.stats` counts sample by sample.)

    The count is a buffer, so that it is right in a compiled graph and under `torch.func` too, and
    reading it waits for the device. It is no part of `state_dict`, whose other keys stand under
    `field.`, as for any module that holds another.

    Args:
        field: `f(t, y)` or `f(t, y, args)`: a module or a function.

    Example:
        >>> import torch
        >>> from ctflow import Solver, odeint
        >>> f = CountCalls(lambda t, y: -y)
        >>> y = odeint(f, torch.ones(3), [0.0, 0.5], solver=Solver(method="rk4", step=0.25))
        >>> f.n_calls
        8
    """

    _count: Tensor

    def __init__(self, field: Callable[..., State]) -> None:
        """Start at zero."""
        super().__init__()
        self.field = field
        self.register_buffer("_count", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def n_calls(self) -> int:
        """Evaluations since construction or the last `reset`."""
        return int(self._count)

    def reset(self) -> None:
        """Start again from zero."""
        self._count.zero_()

    def forward(self, t: Tensor, y: State, *args: Any) -> Any:  # noqa: ANN401
        """Evaluate the field, and count it; arguments and result are the field's own."""
        # A Python integer would be a constant of a compiled graph (one recompilation a call), and
        # torch.func refuses `add_` on a captured tensor; `out=` passes both, and while_loop too.
        torch.add(self._count, 1, out=self._count)
        return self.field(t, y, *args)
