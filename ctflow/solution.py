"""What comes back from a solve: the states, how each sample ended, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ctflow.dense import DenseSolution
from ctflow.errors import InvalidProblem, SolveFailed, Unsupported
from ctflow.event import EventRecord

__all__ = [
    "Counts",
    "GradientReport",
    "Resolved",
    "Solution",
    "Stats",
    "Status",
    "Stop",
    "raise_if_failed",
]


class Status(IntEnum):
    """How the solve of one sample ended; `Solution.status` holds one for each sample."""

    OK = 0
    """It reached the end of its time interval."""
    MAX_STEPS = 1
    """It attempted `max_steps` steps without reaching the end."""
    STEP_TOO_SMALL = 2
    """The tolerance asked for a step below the resolution of time."""
    NON_FINITE = 3
    """`f` or the state became NaN or infinite, and no smaller step helped."""
    GRAZING = 4
    """An event function touched zero, or so nearly that the tolerance cannot tell if it crossed."""
    TOO_MANY_EVENTS = 5
    """More than `max_events` events, or events that follow each other faster than time resolves."""
    EVENT_NON_FINITE = 6
    """An event function became NaN or infinite."""


@dataclass(frozen=True)
class Counts:
    """What one pass cost, for each sample (one entry under shared steps).

    Args:
        n_f_evals: Evaluations of `f`, int64 [B].
        n_steps: Attempted steps, int64 [B].
        n_accepted: Accepted steps, int64 [B].
        n_rejected: Rejected steps, int64 [B].
    """

    n_f_evals: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    n_rejected: Tensor

    @classmethod
    def zeros(cls, batch: int) -> Counts:
        """Counts of a pass that evaluated nothing."""
        return cls(*(torch.zeros(batch, dtype=torch.int64) for _ in range(4)))


@dataclass(frozen=True)
class Resolved:
    """The settings a solve ran with: every None of the `Solver` replaced by what it became."""

    backend: str
    method: str
    rtol: float | None
    atol: float | None
    step: float | None
    coupling: str
    gradient: str
    max_steps: int


class GradientReport:
    """What the backward pass of a solve found out about its own gradient.

    A handle: the backward pass fills it, and reading it before raises. With `gradient="direct"` and
    "checkpointed" there is nothing to doubt (the gradient is that of the steps taken): `available`
    is False. A backend that does not know says so in the same way.

    Attributes:
        available: Whether a backward pass can fill it.
        filled: Whether one has.
    """

    def __init__(self, unavailable: str | None = None) -> None:
        self._unavailable = unavailable
        self._values: dict[str, Any] | None = None

    @property
    def available(self) -> bool:
        """Whether a backward pass can fill it."""
        return self._unavailable is None

    @property
    def filled(self) -> bool:
        """Whether a backward pass has filled it."""
        return self._values is not None

    @property
    def drift(self) -> Tensor:
        """Distance between the state rebuilt backwards and the stored one, [B, T - 1].

        Entry i belongs to the interval from t[i + 1] back to t[i]; root mean square over the
        sample's variables, relative to that of its largest stored state.
        """
        return self._read("drift")

    @property
    def error(self) -> Tensor:
        """Estimated relative error of the adjoint that the drift caused, [B, T - 1]."""
        return self._read("error")

    @property
    def quadrature_error(self) -> float:
        """Estimated error of the parameters' gradient as a quadrature, in units of tolerance.

        Norm of the summed local estimates over  atol + rtol |gradient|, root mean square.
        """
        return self._read("quadrature_error")

    @property
    def messages(self) -> tuple[str, ...]:
        """The warnings that were given."""
        return self._read("messages")

    def fill(
        self, drift: Tensor, error: Tensor, quadrature_error: float, messages: tuple[str, ...]
    ) -> None:
        """Record what a backward pass found; called by backends."""
        self._values = {
            "drift": drift,
            "error": error,
            "quadrature_error": quadrature_error,
            "messages": messages,
        }

    def __repr__(self) -> str:
        """Its state, and the largest figures."""
        if self._unavailable is not None:
            return f"GradientReport(UNAVAILABLE: {self._unavailable})"
        if self._values is None:
            return "GradientReport(PENDING: no backward pass has run)"
        return (
            f"GradientReport(drift={float(self.drift.max()):.2g}, "
            f"error={float(self.error.max()):.2g}, "
            f"quadrature_error={self.quadrature_error:.2g} tolerances)"
        )

    def _read(self, name: str) -> Any:  # noqa: ANN401
        if self._unavailable is not None:
            raise Unsupported(
                f"`gradient_report.{name}` is UNAVAILABLE: {self._unavailable}. "
                "Only gradient='adjoint' on a backend that reports has one."
            )
        if self._values is None:
            raise InvalidProblem(
                f"`gradient_report.{name}` cannot be read yet: no backward pass has run. "
                "Call backward() on something computed from `y` first."
            )
        return self._values[name]


@dataclass
class Stats:
    """What a solve ran with and what it cost.

    Args:
        solver: The settings, nothing left open.
        forward: Counts of the forward pass.
        backward: Counts of the backward pass; None until one has run.
        trace: Time of every sample after each step that moved one, first the start; [B] each.
    """

    solver: Resolved
    forward: Counts
    backward: Counts | None = None
    trace: Sequence[Tensor] = field(default=(), repr=False)

    @property
    def step_times(self) -> Tensor:
        """Ends of the accepted steps, the start first: [B, n_accepted + 1], padded with NaN.

        NaN throughout where the backend does not tell.
        """
        batch = self.forward.n_steps.shape[0]
        if not self.trace:
            return torch.full((batch, 1), torch.nan, dtype=torch.float64)
        times = torch.stack(list(self.trace), dim=1).cpu()
        ends = (self.forward.n_accepted + 1).tolist()
        rows = [
            row[torch.cat([row.new_ones(1), row.diff()]) != 0][:end]
            for row, end in zip(times, ends, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)


@dataclass(frozen=True)
class Stop:
    """Where the solve of a failed sample stood.

    Args:
        sample: Row of the batch.
        t: Time it had reached.
        step: Size of the next step it wanted (under fixed steps: the step).
        f_is_finite: Whether `f` at the last state was finite.
        stiffness: Length of the last steps times the fastest decay of `f`, over the largest
            product for which the method is stable: near 1 where stability and not accuracy bounds
            the steps. 0 where nothing speaks for it (few steps, an implicit method); None where
            it was not estimated.
    """

    sample: int
    t: float
    step: float
    f_is_finite: bool
    stiffness: float | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """Everything a solve found out.

    Args:
        t: The output times as they were asked for, [T] or [B, T].
        y: The state at each of them: the structure of `y0`, every leaf with T as a new first
            dimension. NaN where a failed sample did not arrive.
        status: A `Status` for each sample, int64 [B]; one entry under shared steps.
        stats: Settings and costs.
        stops: One entry for each failed sample: where it stood.
        cost: Integral of the running cost from `t[0]` to each output time: its structure, with T
            as a new first dimension; None if the problem has none.
        gradient_report: Filled by the backward pass of `gradient="adjoint"`.
        local_error: Sum over the accepted steps of step size times estimated local error (root mean
            square over a sample's variables), [B], in units of `y` times `t`; differentiable. None
            unless the problem asks for it.
        dense: The solution as a function of time, if the problem asks for it; None where a sample
            failed.
        event: What was found of the problem's events; None if it has none.

    A failed sample is a constant of the gradient: it sends none, so that it cannot spoil what the
    others send to shared parameters.
    """

    t: Tensor
    y: Any
    status: Tensor
    stats: Stats
    stops: tuple[Stop, ...] = ()
    cost: Any = None
    gradient_report: GradientReport = field(
        default_factory=lambda: GradientReport("this backend does not report")
    )
    local_error: Tensor | None = None
    dense: DenseSolution | None = None
    event: EventRecord | None = None

    @property
    def ok(self) -> bool:
        """Whether every sample reached the end."""
        return not self.stops


_CAUSES = {
    Status.MAX_STEPS: (
        "The step limit was reached: the tolerance is tighter than the problem allows, or its "
        "solution oscillates or grows fast. Raise `max_steps`, loosen `rtol` and `atol`, or make "
        "`f` smoother."
    ),
    Status.STEP_TOO_SMALL: (
        "The step fell below the resolution of time, or `min_step`: the solution probably has a "
        "singularity or `f` a jump here. Check `f` around this time, or loosen `rtol` and `atol`."
    ),
    Status.NON_FINITE: (
        "`f` or the state became NaN or infinite here: the solution probably blows up, or `f` is "
        "not defined at this state. Check `f` around this time; bounded activations, a smaller "
        "learning rate or weight decay often help in training."
    ),
    Status.GRAZING: (
        "An event function touches zero here without clearly crossing it, so that whether the "
        "event happens is not for this tolerance to say, and its time has no derivative. Tighten "
        "`rtol` and `atol`, or move the event function away from the contact."
    ),
    Status.TOO_MANY_EVENTS: (
        "More than `max_events` events happened, or one left the state on its own zero with no way "
        "to go: events that accumulate in finite time (Zeno behaviour), as of a ball that comes to "
        "rest. End the solve by a terminal event before, or raise Solver(max_events=...)."
    ),
    Status.EVENT_NON_FINITE: (
        "An event function is NaN or infinite here. Define it on both sides of its zero and "
        "wherever the solution comes."
    ),
}


_STIFF = 0.75  # of the stability bound: instability stops steps near 1, accuracy well before


def _cause(status: Status, stop: Stop, method: str) -> str:
    """What probably went wrong, and what to do."""
    if stop.stiffness is not None and stop.stiffness >= _STIFF:
        return (
            f"The problem is stiff here: steps times the fastest decay of `f` are "
            f"{stop.stiffness:.2g} of what {method} is stable for, so that stability and not "
            "accuracy asks for steps this small. Use method='rodas5p' on backend='native', which "
            "is made for stiff problems."
        )
    cause = _CAUSES[status]
    if status == Status.MAX_STEPS and stop.stiffness is None:
        cause += " A stiff problem is another possible cause; backend='native' tells."
    return cause


def raise_if_failed(solution: Solution) -> Solution:
    """Hand a complete solution on.

    Raises:
        SolveFailed: If a sample did not reach the end; carries the solution.
    """
    if solution.ok:
        return solution
    stop = solution.stops[0]
    status = Status(int(solution.status[stop.sample]))
    settings = solution.stats.solver
    t = solution.t.detach()
    row = t if t.dim() == 1 else t[stop.sample]
    t0, t1 = float(row[0]), float(row[-1])
    who = f"sample {stop.sample}" if settings.coupling == "per_sample" else "the solve"
    others = f" ({len(solution.stops)} of {len(solution.status)} samples failed)"
    tolerances = ""
    if settings.rtol is not None:
        tolerances = f", rtol={settings.rtol:g}, atol={settings.atol:g}"
    message = (
        f"{who} stopped with {status.name} at t={stop.t:.6g} of [{t0:g}, {t1:g}] after "
        f"{int(solution.stats.forward.n_steps[stop.sample])} steps, next step {stop.step:.3g}"
        f"{others if settings.coupling == 'per_sample' else ''}; {settings.backend}, "
        f"{settings.method}{tolerances}. {_cause(status, stop, settings.method)}"
    )
    raise SolveFailed(message, solution)
