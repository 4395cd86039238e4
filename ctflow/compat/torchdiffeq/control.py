"""torchdiffeq's step-size control and step grids, as controls of ctflow's native loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.backends.native.control import Adaptive, Span, Verdict, accept_finite, next_node
from ctflow.backends.native.method import Method
from ctflow.backends.native.step import FlatField, Step, combine
from ctflow.compat.torchdiffeq.calls import Calls
from ctflow.compat.torchdiffeq.warning import warn_caller
from ctflow.errors import SolveFailed

__all__ = ["AsTorchdiffeq", "GivenGrid", "Limit"]


@dataclass
class Limit:
    """`max_num_steps`: attempted steps from one output time to the next.

    Args:
        most: The limit.
        times: Output times, [T], on the CPU.
    """

    most: int
    times: Tensor
    used: int = 0
    passed: int = 1

    def count(self, t: float, direction: float) -> None:
        """Count a step that is about to be attempted at t.

        Raises:
            SolveFailed: If it is one too many.
        """
        while (
            self.passed < len(self.times) and (t - float(self.times[self.passed])) * direction >= 0
        ):
            self.passed += 1
            self.used = 0
        if self.used == self.most:
            raise SolveFailed(
                f"the limit of max_num_steps={self.most} steps from one output time to the next "
                f"was reached at t={t:.6g}. Raise it, or loosen `rtol` and `atol`."
            )
        self.used += 1


@dataclass(frozen=True, eq=False)
class AsTorchdiffeq(Adaptive):
    """Control of the local error by torchdiffeq's rule.

    With  r = norm(error / (atol + rtol max(|y0|, |y1|)))  a step counts where r <= 1, and the next
    one is  h min(grow, max(safety r^(-1/k), shrink))  long, shrink being 1 after a step with r < 1.
    A step of `least` or shorter always counts, as in torchdiffeq; here a warning says so.

    Args:
        norm: Of the flat state [1, N], to a 0-dim tensor; None for the root mean square.
        calls: Callbacks.
        limit: `max_num_steps`; None for no limit.
    """

    norm: Callable[[Tensor], Tensor] | None = None
    calls: Calls | None = None
    limit: Limit | None = None
    forced: list[float] = field(default_factory=list[float])

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """Hairer's starting step, or the size that was given."""
        if self.calls is not None:
            self.calls.begin(y0)
        return super().first(field, tableau, span, y0, f0)

    def expected_size(
        self, tableau: Method, d0: Tensor, d1: Tensor, d2: Tensor, usual: Tensor
    ) -> Tensor:
        """Hairer's."""
        return usual

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """One step of this size, after the callbacks were told."""
        if self.limit is not None:
            self.limit.count(float(t), float(span.direction))
        if self.calls is not None:
            self.calls.before(t, size)
        return super().end(t, size, span)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept by the error estimate; a non-finite one means reject and shrink."""
        scale = torch.maximum(step.y0.abs(), step.y1.abs()) * self.rtol + self.atol
        error = combine(tableau.e or (), step.k) * step.h
        ratio = float(self._rms(error / scale))
        taken = abs(float(step.t1 - step.t0))
        finite = ratio < torch.inf and bool(torch.isfinite(step.y1).all())
        shortest = taken <= float(self.least) * (1 + 1e-6)  # t + h - t is not quite h
        accepted = finite and (ratio <= 1 or shortest)
        if accepted and ratio > 1:
            self._warn(ratio, float(step.t0))
        if self.calls is not None:
            length = (step.t1 - step.t0).abs()
            self.calls.after(step.t0, step.y0, step.y1, length, accepted)
        suggested = taken * self._factor(tableau, ratio if finite else torch.inf)
        if accepted and taken * (1 + 1e-9) < float(size):  # cut at a stop: says nothing of others
            suggested = max(suggested, float(size))
        suggested = min(max(suggested, float(self.least)), float(self.most))
        given_up = shortest and not accepted
        return Verdict(
            torch.tensor([accepted], device=size.device),
            torch.full_like(size, 0.0 if given_up else suggested),
            torch.tensor([finite], device=size.device),
        )

    def _factor(self, tableau: Method, ratio: float) -> float:
        if ratio == 0:
            return self.grow
        least = 1.0 if ratio < 1 else self.shrink
        k = tableau.order if tableau.error_order is None else tableau.error_order + 1
        return min(self.grow, max(self.safety * ratio ** (-1 / k), least))

    def _rms(self, x: Tensor) -> Tensor:
        return super()._rms(x) if self.norm is None else self.norm(x).reshape(1)

    def _warn(self, ratio: float, t: float) -> None:
        """Say once in a solve that its error is out of control."""
        if not self.forced:
            warn_caller(
                f"a step of the least size min_step={float(self.least):g} at t={t:.6g} was "
                f"accepted with an error of {ratio:.3g} tolerances, as torchdiffeq does without a "
                "word. Leave `min_step` out to keep to the tolerances."
            )
        self.forced.append(ratio)


@dataclass(frozen=True, eq=False)
class GivenGrid:
    """Steps from node to node, whatever the error.

    Args:
        nodes: Times to step on, [K], both ends among them.
        calls: Callbacks.
    """

    nodes: Tensor
    calls: Calls | None = None

    GIVEN: ClassVar[bool] = True

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """Length of the interval: the grid alone decides."""
        if self.calls is not None:
            self.calls.begin(y0)
        return (span.t1 - span.t0).abs(), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """The next node after t."""
        end = next_node(self.nodes.unsqueeze(0), t, span)
        if self.calls is not None:
            self.calls.before(t, (end - t).abs())
        return end

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept whatever is finite."""
        verdict = accept_finite(step, size)
        if self.calls is not None:
            taken = (step.t1 - step.t0).abs()
            self.calls.after(step.t0, step.y0, step.y1, taken, bool(verdict.accepted))
        return verdict
