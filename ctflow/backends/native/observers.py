"""What is kept of a solve: states at output times, and the steps themselves."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.control import blended
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.method import Method
from ctflow.backends.native.step import FlatField, Step, combine, extended, joined
from ctflow.errors import InvalidProblem

__all__ = ["Hits", "KeepCourse", "LocalError", "Observer", "RecordGrid", "Recorded", "SaveAt"]

_MOST_HELD = 2**13  # numbers of steps whose outputs are put off: 64 KiB of them
_LEAST_HELD = 2**8  # as many a step counts for at least


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
        field: dy/dt, for the stages that only the interpolant uses.
        tableau: The method.
        grid: Output times, [B, T], the start first.
        direction: +1 or -1, [B].
        y0: State at the start, [B, N].
    """

    def __init__(
        self, field: FlatField, tableau: Method, grid: Tensor, direction: Tensor, y0: Tensor
    ) -> None:
        self._field = field
        self._tableau = tableau
        self._n_f_evals = torch.zeros(grid.shape[0], dtype=torch.int64)
        self._grid = grid
        self._ahead = grid * direction.unsqueeze(1)
        self._direction = direction
        self._y0 = y0
        self._values: list[Tensor] = []
        self._seen: list[tuple[Step, Tensor]] = []
        self._held = 0  # numbers in them, and in what finds their output times
        self._hits: list[Hits] = []
        self._pending: list[tuple[Step, Hits]] = []

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Keep the states at the output times in (t0, t_new]."""
        self._seen.append((step, t_new))
        self._hold(step, self._ahead.numel())

    def save(self, step: Step, hits: Hits) -> None:
        """Keep the states at known output times of a step."""
        self._note(step, hits)
        self._hold(step, 0)

    @property
    def hits(self) -> list[Hits]:
        """For each step seen, the output times inside it."""
        self._flush()
        return self._hits

    @property
    def n_f_evals(self) -> Tensor:
        """Evaluations of stages for the interpolant alone, on behalf of each sample, int64 [B]."""
        self._flush()
        return self._n_f_evals

    def _hold(self, step: Step, more: int) -> None:
        """Wait for further steps, as long as they are small.

        A step of a small system takes less time than the thirty small operations that find its
        output times and interpolate there: these are done for several steps at once.
        """
        self._held += max(_LEAST_HELD, (len(step.k) + 2) * step.y0.numel() + more)
        if self._held > _MOST_HELD:
            self._flush()

    def _flush(self) -> None:
        """Do what was put off."""
        if self._seen:
            seen, self._seen = self._seen, []
            for (step, _), hits in zip(seen, self._found(seen), strict=True):
                self._note(step, hits)
        self._interpolate()
        self._held = 0

    def _found(self, seen: list[tuple[Step, Tensor]]) -> list[Hits]:
        """The output times in each of some steps."""
        start = torch.stack([step.t0 for step, _ in seen])
        end = torch.stack([t_new for _, t_new in seen])
        start, end = ((t * self._direction).unsqueeze(2) for t in (start, end))
        inside = (self._ahead > start) & (self._ahead <= end)
        which, row, column = inside.nonzero(as_tuple=True)
        hits = Hits(row, column, self._grid[row, column])
        if len(seen) == 1:
            return [hits]
        n_each = torch.bincount(which, minlength=len(seen)).cpu().tolist()
        return [Hits(*parts) for parts in zip(*(x.split(n_each) for x in hits), strict=True)]

    def _note(self, step: Step, hits: Hits) -> None:
        """Add to what is to be interpolated."""
        self._hits.append(hits)
        if not len(hits.row):
            return
        if self._tableau.further:
            inside = hits.row[hits.times != step.t1[hits.row]].unique().cpu()
            if len(inside):
                step = extended(self._field, self._tableau, step)
                self._n_f_evals[inside] += self._tableau.further
        if self._pending and len(self._pending[0][0].k) != len(step.k):
            self._interpolate()
        self._pending.append((step, hits))

    def _interpolate(self) -> None:
        """States at the output times of the steps that wait for it, all at once."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        step, (row, _, times) = pending[0]
        if len(pending) > 1:
            batch = len(step.t0)
            row = torch.cat([hits.row + i * batch for i, (_, hits) in enumerate(pending)])
            times = torch.cat([hits.times for _, hits in pending])
            step = joined([own for own, _ in pending])
        self._values.append(evaluate(self._tableau, step, row, times))

    def result(self) -> Tensor:
        """States at the output times, [T, B, N]; NaN at those that no step reached."""
        self._flush()
        batch, n_times = self._grid.shape
        values = torch.cat([self._y0, *self._values])
        places = [hits.column * batch + hits.row for hits in self._hits]
        start = torch.arange(batch, device=values.device)
        blank = values.new_full((n_times * batch, values.shape[1]), torch.nan)
        filled = blank.index_copy(0, torch.cat([start, *places]), values)
        filled = filled.reshape(n_times, batch, -1)
        if bool(self.at_rest.any()):
            filled = torch.where(self.at_rest.unsqueeze(1), self._y0, filled)
        return filled

    @property
    def at_rest(self) -> Tensor:
        """Samples whose times are all one, bool [B]: every output is their initial state."""
        return self._grid[:, -1] == self._grid[:, 0]


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


class KeepCourse:
    """Keeps whole steps, as `ctflow.dense` wants them.

    Args:
        field: dy/dt, for the stages that only the interpolant uses.
        tableau: The method.

    Attributes:
        steps: Start, end, state and stages of each step seen.
        n_f_evals: Evaluations of stages for the interpolant alone, on behalf of each sample [B].
    """

    def __init__(self, field: FlatField, tableau: Method) -> None:
        self._field = field
        self._tableau = tableau
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.n_f_evals: Tensor | int = 0

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Keep a step; of a sample that it did not move, a step of no length."""
        self.steps.append((step.t0, t_new, step.y0, self.stages(step)))
        moved = (t_new != step.t0).cpu()
        self.n_f_evals = self.n_f_evals + self._tableau.further * moved.to(torch.int64)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Starts and ends [n, B], states [n, B, N] and stages [n, S, B, N]; None for no step."""
        if not self.steps:
            return None
        t0, t1, y0, k = (torch.stack(column) for column in zip(*self.steps, strict=True))
        return t0, t1, y0, k

    def stages(self, step: Step) -> Tensor:
        """The stages that the interpolant uses, [S, B, N]."""
        k = extended(self._field, self._tableau, step).k
        return torch.stack([x for x, row in zip(k, self._tableau.p, strict=True) if any(row)])


class LocalError:
    """Adds up what the method estimates of its own error:  sum over steps of  |h| rms(error).

    Differentiable where the steps are; step sizes are constants.

    Args:
        tableau: The method; it must have an error estimate.
        n_counted: So many first variables of a sample are counted, the rest are left out.

    Attributes:
        total: The sum so far, [B]; None before the first step.

    Source:
        Pal et al. 2021 (arXiv 2105.03918), the regulariser of ERNODE.
    """

    def __init__(self, tableau: Method, n_counted: int) -> None:
        self._tableau = tableau
        self._n_counted = n_counted
        self.total: Tensor | None = None

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Count a step where it moved its sample."""
        own = self.of(step)
        if len(own) > 1:
            own = torch.where(t_new != step.t0, own, 0.0)
        self.add(own)

    def add(self, own: Tensor) -> None:
        """Count what is known, [B]."""
        self.total = own if self.total is None else self.total + own

    def of(self, step: Step) -> Tensor:
        """Step size times estimated error of each sample, [B]; 0 for a step of length 0."""
        if self._tableau.e is None:
            raise InvalidProblem(
                f"method {self._tableau.name!r} has no error estimate, got local_error=True. "
                "Take bosh3, dopri5 or tsit5."
            )
        h = step.h[:, 0]
        error = self._rms(self._tableau.e, step)
        if self._tableau.e_low is not None:
            error = blended(error, self._rms(self._tableau.e_low, step))
        return error * (h * h)

    def _rms(self, weights: tuple[float, ...], step: Step) -> Tensor:
        error = combine(weights, step.k)[:, : self._n_counted]
        return torch.linalg.vector_norm(error, dim=1) * error.shape[1] ** -0.5
