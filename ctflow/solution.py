"""What comes back from a solve: the states, how each sample ended, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import SolveFailed

__all__ = ["Counts", "Resolved", "Solution", "Stats", "Status", "Stop", "raise_if_failed"]


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
    """The settings a solve ran with: every None of the `ctflow.Solver` replaced by what it became."""

    backend: str
    method: str
    rtol: float | None
    atol: float | None
    step: float | None
    coupling: str
    gradient: str
    max_steps: int


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
    """

    sample: int
    t: float
    step: float
    f_is_finite: bool


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

    A failed sample is a constant of the gradient: it sends none, so that it cannot spoil what the
    others send to shared parameters.
    """

    t: Tensor
    y: Any
    status: Tensor
    stats: Stats
    stops: tuple[Stop, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every sample reached the end."""
        return not self.stops


_CAUSES = {
    Status.MAX_STEPS: (
        "The step limit was reached: the tolerance is tighter than the problem allows, or the "
        "problem is stiff, or its solution grows fast. Raise `max_steps`, loosen `rtol` and "
        "`atol`, or make `f` smoother."
    ),
    Status.STEP_TOO_SMALL: (
        "The step fell below the resolution of time: the solution probably has a singularity or "
        "`f` a jump here. Check `f` around this time, or loosen `rtol` and `atol`."
    ),
    Status.NON_FINITE: (
        "`f` or the state became NaN or infinite here: the solution probably blows up, or `f` is "
        "not defined at this state. Check `f` around this time; bounded activations, a smaller "
        "learning rate or weight decay often help in training."
    ),
}


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
    row = solution.t if solution.t.dim() == 1 else solution.t[stop.sample]
    t0, t1 = float(row[0]), float(row[-1])
    who = f"sample {stop.sample}" if settings.coupling == "per_sample" else "the solve"
    others = f" ({len(solution.stops)} of {len(solution.status)} samples failed)"
    tolerances = "" if settings.rtol is None else f", rtol={settings.rtol:g}, atol={settings.atol:g}"
    message = (
        f"{who} stopped with {status.name} at t={stop.t:.6g} of [{t0:g}, {t1:g}] after "
        f"{int(solution.stats.forward.n_steps[stop.sample])} steps, next step {stop.step:.3g}"
        f"{others if settings.coupling == 'per_sample' else ''}; {settings.backend}, "
        f"{settings.method}{tolerances}. {_CAUSES[status]}"
    )
    raise SolveFailed(message, solution)
