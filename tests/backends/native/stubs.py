"""Fields, controls and observers whose every move is written down beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.backends.native.control import Span, Verdict
from ctflow.backends.native.loop import Integration, Outcome, integrate
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.observers import Observer
from ctflow.backends.native.step import FlatField, Step
from ctflow.backends.tableau import Tableau

__all__ = ["CountObserver", "Script", "SeenField", "run_loop"]


class SeenField:
    """dy/dt = 1, and a record of every time [B] and state [B, N] it was evaluated at."""

    def __init__(self) -> None:
        self.times: list[list[float]] = []
        self.states: list[Tensor] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(t.tolist())
        self.states.append(y.clone())
        return torch.ones_like(y)


class Script:
    """A control that reads its verdicts from a list, one row for each attempted step.

    Args:
        size: Size of every step, unless `sizes` says another.
        accepted: For each attempt, whether each sample's step counts; attempts beyond: all do.
        sizes: For each attempt, the next size of each sample.
        finite: For each attempt, whether each sample was finite.
    """

    def __init__(
        self,
        size: float = 1.0,
        accepted: Sequence[Sequence[bool]] = (),
        sizes: Sequence[Sequence[float]] = (),
        finite: Sequence[Sequence[bool]] = (),
    ) -> None:
        self._size = size
        self._accepted, self._sizes, self._finite = accepted, sizes, finite
        self.n_judged = 0

    def first(
        self, field: FlatField, tableau: Tableau, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        return torch.full_like(span.t0, self._size), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        return t + span.direction * size

    def judge(self, tableau: Tableau, step: Step, size: Tensor) -> Verdict:
        i = self.n_judged
        self.n_judged += 1
        yes = torch.ones_like(size, dtype=torch.bool)
        return Verdict(
            torch.tensor(self._accepted[i]) if i < len(self._accepted) else yes,
            torch.tensor(self._sizes[i], dtype=size.dtype) if i < len(self._sizes) else size,
            torch.tensor(self._finite[i]) if i < len(self._finite) else yes,
        )


class CountObserver:
    """Keeps the time [B] after each step it was shown."""

    def __init__(self) -> None:
        self.times: list[list[float]] = []

    def __call__(self, step: Step, t_new: Tensor) -> None:
        self.times.append(t_new.tolist())


def run_loop(
    control: Script,
    ends: Sequence[float],
    *,
    field: FlatField | None = None,
    method: str = "euler",
    max_steps: int = 100,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Integrate one variable for each sample from time and state 0 to its end."""
    t1 = torch.tensor(ends, dtype=torch.float64)
    grid = torch.stack([torch.zeros_like(t1), t1], dim=1)
    plan = Integration(METHODS[method], control, grid, max_steps)
    y0 = torch.zeros(len(ends), 1, dtype=torch.float64)
    return integrate(plan, field or SeenField(), y0, None, observers)
