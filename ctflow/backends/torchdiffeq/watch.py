"""What torchdiffeq is given to integrate: the field, counted, kept inside its interval, stopped.

torchdiffeq reports failures by `assert`, which vanishes under `python -O`, limits the steps of each
output interval rather than of the solve, and evaluates f beyond the last time. Its callbacks come
before each attempted step: everything is checked there, and an exception of ours ends the solve.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.torchdiffeq.plan import Plan
from ctflow.solution import Counts, Status, Stop

__all__ = ["Inspect", "Stopped", "Tally", "Watch"]

Inspect = Callable[[Tensor, Tensor, int, Tensor], None]
"""Looks at an evaluation that has a graph: (dy, y, sequence number before it, t)."""

_OVERFLOWED = 1e4  # error ratio that stands for NaN: rejected and shrunk, yet no 0 or inf in a rule


class Stopped(Exception):
    """Leaves torchdiffeq from inside; the tally knows why."""


@dataclass
class Tally:
    """One solve under way: what it has cost, where it stands, why it stopped.

    Attributes:
        at: End of the last accepted step, in growing time.
        size: Size of the next step it wanted.
        trace: Ends of the accepted steps, the start first.
    """

    max_steps: int
    length: float
    eps: float
    at: float
    size: float = 0.0
    status: Status = Status.OK
    n_f_evals: int = 0
    n_steps: int = 0
    n_accepted: int = 0
    trace: list[float] = field(init=False)
    error_is_finite: bool = True
    f_is_finite: bool = True

    def __post_init__(self) -> None:
        """Start the trace."""
        self.trace = [self.at]

    def attempt(self, at: float, size: float, is_finite: bool) -> None:
        """Note that a step is about to be taken; called before each.

        Raises:
            Stopped: If it must not be.
        """
        rejected = self.n_steps > 0 and at == self.at
        if not is_finite:
            self.stop(Status.NON_FINITE)  # still at the start of the step that led here
        if self.n_steps > 0 and not rejected:
            self._arrive(at)
        self.size = size
        if self.n_steps == self.max_steps:
            self.stop(Status.MAX_STEPS)
        floor = max(16 * self.eps * abs(at), 1e-20 * self.length) if rejected else 0.0
        if not (size > floor and at - size < at < at + size):
            self.stop(Status.STEP_TOO_SMALL if self.error_is_finite else Status.NON_FINITE)
        self.n_steps += 1

    def finish(self, at: float) -> None:
        """Note that torchdiffeq came back by itself."""
        self._arrive(at)

    def lose_last(self) -> None:
        """Note that the last step led to something that is not finite."""
        self.trace.pop()
        self.n_accepted -= 1
        self.at, self.status = self.trace[-1], Status.NON_FINITE

    def stop(self, status: Status) -> None:
        """Leave torchdiffeq.

        Raises:
            Stopped: Always.
        """
        self.status = status
        raise Stopped

    def counts(self) -> Counts:
        """The costs as they are reported."""
        n_rejected = self.n_steps - self.n_accepted
        numbers = (self.n_f_evals, self.n_steps, self.n_accepted, n_rejected)
        return Counts(*(torch.tensor([n], dtype=torch.int64) for n in numbers))

    def stops(self, direction: float) -> tuple[Stop, ...]:
        """Where a failed solve stood, in the problem's own time."""
        if self.status == Status.OK:
            return ()
        return (Stop(0, self.at * direction, self.size, self.f_is_finite),)

    def _arrive(self, at: float) -> None:
        self.n_accepted += 1
        self.trace.append(at)
        self.at = at


class Watch:
    """The function that torchdiffeq integrates, with the callbacks that it looks for.

    Args:
        field: dy/dt on flat tensors [1, N].
        plan: Settings and times.
        uncontrolled: So many last leaves of the state stay out of the error norm.

    Attributes:
        tally: The solve under way, or the last one.
        known: f at the start, if it need not be evaluated again.
        inspect: Called after each evaluation that has a graph.
    """

    def __init__(self, field: Field, plan: Plan, uncontrolled: int) -> None:
        """Ready for the forward solve."""
        self._field = field
        self._plan = plan
        self._dtype = field.layout.dtype
        shapes = field.layout.shapes
        self._n_counted = sum(shape.numel() for shape in shapes[: len(shapes) - uncontrolled])
        self._first, self._last = float(plan.times[0]), float(plan.times[-1])
        self._autocast = Autocast.now(field.layout.device.type)
        self._looked = False
        self.known: Tensor | None = None
        self.inspect: Inspect | None = None
        self.tally = self.begin(self._first)

    def begin(self, at: float) -> Tally:
        """Start to count afresh, for a solve that starts at this (growing) time."""
        plan = self._plan
        eps = torch.finfo(plan.times.dtype).eps
        self.tally = Tally(plan.solver.max_steps, plan.length, eps, at)
        self._looked = False
        return self.tally

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        """dy/ds at a time s that grows; never outside the interval.

        No gradient passes through s: gradients of times are attached outside.

        Raises:
            Stopped: If f is not finite at the start.
        """
        known, self.known = self.known, None
        if known is None:
            inside = s.detach().to(self._dtype).clamp(self._first, self._last)
            known = self.evaluate(inside.reshape(1) * self._plan.direction, y)
        if not self._looked:
            self._looked = True
            self.tally.f_is_finite = bool(torch.isfinite(known).all())
            if not self.tally.f_is_finite:
                self.tally.stop(Status.NON_FINITE)
        return known if self._plan.direction > 0 else -known

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        """f at the problem's own time t [1] and state y [1, N], under the autocast of the start."""
        self.tally.n_f_evals += 1
        marker = sequence_number()
        with self._same_autocast():
            dy = self._field(t, y.to(self._dtype)).to(y.dtype)
        if self.inspect is not None and torch.is_grad_enabled():
            self.inspect(dy, y, marker, t)
            if not dy.requires_grad:  # torchdiffeq's adjoint cannot take a constant
                dy = dy.detach().requires_grad_()
        return dy

    def callback_step(self, s: Tensor, y: Tensor | tuple[Tensor, ...], size: Tensor) -> None:
        """Called by torchdiffeq before each attempted step."""
        parts = y if isinstance(y, tuple) else (y,)
        is_finite = all(bool(torch.isfinite(part).all()) for part in parts)
        self.tally.attempt(float(s), float(size), is_finite)

    callback_step_adjoint = callback_step

    def norm(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Root mean square; of several tensors the largest. Never NaN, infinite, or with a graph.

        torchdiffeq gives up at a NaN; this makes it reject the step and shrink it. Detached, it
        also keeps the gradient out of the choice of the first step.

        Args:
            x: The state [1, N]; backwards time, state, adjoint, and parameter gradients.
        """
        n = self._n_counted
        parts = (x[0], x[1][:, :n], x[2][:, :n], *x[3:]) if isinstance(x, tuple) else (x[:, :n],)
        wide = torch.promote_types(self._dtype, torch.float32)
        sizes = [
            torch.linalg.vector_norm(part.detach().to(wide)) * part.numel() ** -0.5
            for part in parts
            if part.numel()
        ]
        largest = torch.stack(sizes).amax()
        self.tally.error_is_finite = bool(torch.isfinite(largest))
        return largest if self.tally.error_is_finite else torch.full_like(largest, _OVERFLOWED)

    def _same_autocast(self) -> AbstractContextManager[object]:
        now = Autocast.now(self._autocast.device)
        if now == self._autocast and (torch.is_grad_enabled() or not now.enabled):
            return nullcontext()
        return self._autocast.again()  # without a cache: casts made under no_grad have no graph
