"""What is kept of a solve: states at output times, and the steps themselves."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.step import Step
from ctflow.backends.native.tableau import Tableau

__all__ = ["Hits", "Observer", "RecordGrid", "Recorded", "SaveAt"]


class Observer(Protocol):
    """Called by the loop after each step that moved a sample."""

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """See a step; `t_new` [B] is `step.t1` where it counts and `step.t0` elsewhere."""
        ...


class Hits(NamedTuple):
    """Output times that lie in one step.

    Attributes:
        row: Sample of each, [M].
        column: Index of the output time, [M].
        times: The times, [M].
    """

    row: Tensor
    column: Tensor
    times: Tensor


class SaveAt:
    """Keeps the state at the output times, by the method's interpolant.

    Args:
        tableau: The method.
        grid: Output times, [B, T], the start first.
        direction: +1 or -1, [B].
        y0: State at the start, [B, N].

    Attributes:
        hits: For each step seen, the output times inside it.
    """

    def __init__(self, tableau: Tableau, grid: Tensor, direction: Tensor, y0: Tensor) -> None:
        self._tableau = tableau
        self._grid = grid
        self._ahead = grid * direction.unsqueeze(1)
        self._direction = direction
        self._y0 = y0
        self._values: list[Tensor] = []
        self.hits: list[Hits] = []

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Interpolate at the output times in (t0, t_new]."""
        start = (step.t0 * self._direction).unsqueeze(1)
        end = (t_new * self._direction).unsqueeze(1)
        inside = (self._ahead > start) & (self._ahead <= end)
        row, column = inside.nonzero(as_tuple=True)
        hits = Hits(row, column, self._grid[row, column])
        self.save(step, hits)

    def save(self, step: Step, hits: Hits) -> None:
        """Interpolate at known output times of a step."""
        self.hits.append(hits)
        if len(hits.row):
            self._values.append(evaluate(self._tableau, step, hits.row, hits.times))

    def result(self) -> Tensor:
        """States at the output times, [T, B, N]; NaN at those that no step reached."""
        batch, n_times = self._grid.shape
        values = torch.cat([self._y0, *self._values])
        places = [hits.column * batch + hits.row for hits in self.hits]
        start = torch.arange(batch, device=values.device)
        blank = values.new_full((n_times * batch, values.shape[1]), torch.nan)
        filled = blank.index_copy(0, torch.cat([start, *places]), values)
        return filled.reshape(n_times, batch, -1)


class Recorded(NamedTuple):
    """One step as it is kept: enough to take it again.

    Attributes:
        t0: Start, [B].
        t1: End, [B]; equal to t0 for a sample that did not move.
        y0: State at the start, [B, N].
    """

    t0: Tensor
    t1: Tensor
    y0: Tensor


class RecordGrid:
    """Keeps every step that counted: one state each."""

    def __init__(self) -> None:
        self.steps: list[Recorded] = []

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Keep start, end and state."""
        self.steps.append(Recorded(step.t0, t_new, step.y0))
