"""One solve from start to end: limits, what it cost, and failures as values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ctflow.backends.scipy.integrators import METHODS, Integrator, Task, begin
from ctflow.backends.scipy.slope import Array, Guarded, Slope
from ctflow.solution import Counts, Status

__all__ = ["Plan", "Stopped", "Tally", "follow"]

_NUMERICAL = (ValueError, ArithmeticError)  # LinAlgError is a ValueError

T = TypeVar("T")


@dataclass
class Tally:
    """What solves have cost so far.

    Attributes:
        max_steps: Attempted steps that all of them together may take.
        n_steps: Attempted steps.
        n_accepted: Accepted steps.
    """

    max_steps: int
    n_steps: int = 0
    n_accepted: int = 0

    def counts(self, n_f_evals: int) -> Counts:
        """The costs as they are reported."""
        numbers = (n_f_evals, self.n_steps, self.n_accepted, self.n_steps - self.n_accepted)
        return Counts(*(torch.tensor([n], dtype=torch.int64) for n in numbers))


class Stopped(Exception):
    """A solve that did not reach its end.

    Args:
        status: Why.
        t: Where it stood.
        size: Size of the step that it wanted.
        f_is_finite: Whether the slope was finite there.
    """

    def __init__(self, status: Status, t: float, size: float, f_is_finite: bool) -> None:
        super().__init__(status.name)
        self.status = status
        self.t = t
        self.size = size
        self.f_is_finite = f_is_finite


class Plan(NamedTuple):
    """How to solve.

    Attributes:
        method: A key of `METHODS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        exact: Whether Newton's method gets the slope's own Jacobian.
    """

    method: str
    rtol: float
    atol: float
    exact: bool

    def task(
        self,
        slope: Guarded,
        ends: tuple[float, float],
        z0: Array,
        blocks: Array,
        first: float | None,
    ) -> Task:
        """The task with tolerances for every variable.

        Args:
            slope: The right-hand side.
            ends: Start and end.
            z0: State at the start, [n].
            blocks: For each variable the size of the block whose root mean square shall be within
                tolerance, or 0 for one that is not in the norm, [n].
            first: Size of the first step.
        """
        counted = blocks > 0
        # SciPy's norm is (sum of (error / tolerance)^2 / n)^(1/2), whatever the blocks.
        factor = np.sqrt(blocks / len(blocks)) if METHODS[self.method].rms else np.ones(len(blocks))
        relative = factor[counted]
        same = bool((relative == relative[0]).all())
        rtol = self.rtol * float(relative[0]) if same else self.rtol * np.where(counted, factor, 1)
        atol = np.where(counted, self.atol * factor, np.inf)
        return Task(self.method, slope, *ends, z0, rtol, atol, first, self.exact)


def follow(
    plan: Plan,
    slope: Slope,
    ends: tuple[float, float],
    z0: Array,
    blocks: Array,
    tally: Tally,
    visit: Callable[[Integrator], None],
    first: float | None = None,
    value: Array | None = None,
) -> Integrator:
    """Solve from one end to the other.

    Args:
        plan: Method and tolerances.
        slope: The right-hand side.
        ends: Start and end.
        z0: State at the start, [n].
        blocks: See `Plan.task`.
        tally: Counts the steps and limits them.
        visit: Called after each accepted step.
        first: Size of the first step, where the method takes one.
        value: The slope at the start, if it is known.

    Returns:
        The integrator, at the end.

    Raises:
        Stopped: If it does not get there.
    """
    guarded = Guarded(slope, ends)
    direction = 1.0 if ends[1] > ends[0] else -1.0
    if not guarded.start(ends[0], z0, value):
        raise Stopped(Status.NON_FINITE, ends[0], abs(ends[1] - ends[0]), f_is_finite=False)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", module=r"scipy\.")  # they come back as a status
        warnings.filterwarnings("ignore", message="vode: ")  # said in our name
        task = plan.task(guarded, ends, z0, blocks, first)
        integrator = _attempt(lambda: begin(task), guarded)
        if integrator is None:
            raise Stopped(Status.NON_FINITE, ends[0], abs(ends[1] - ends[0]), f_is_finite=True)
        while direction * (ends[1] - integrator.t) > 0:
            _step(integrator, guarded, tally)
            visit(integrator)
    return integrator


def _step(integrator: Integrator, guarded: Guarded, tally: Tally) -> None:
    """Take one step within the limit."""
    if tally.n_steps >= tally.max_steps:
        raise Stopped(Status.MAX_STEPS, integrator.t, integrator.size, f_is_finite=True)
    t, z, before = integrator.t, integrator.z, integrator.n_attempts
    guarded.is_finite = True
    went = _attempt(integrator.step, guarded)
    tally.n_steps += max(1, integrator.n_attempts - before)
    if tally.n_steps > tally.max_steps:
        raise Stopped(Status.MAX_STEPS, t, integrator.size, f_is_finite=True)
    finite = bool(np.isfinite(integrator.z).all())
    if not went or not finite or integrator.t == t:
        finite = finite and guarded.is_finite
        status = Status.STEP_TOO_SMALL if finite else Status.NON_FINITE
        raise Stopped(status, t, integrator.size, guarded.start(t, z, None))
    tally.n_accepted += 1


def _attempt(call: Callable[[], T], guarded: Guarded) -> T | None:
    """Let SciPy work; None where it raises an error of its own over numbers.

    Raises:
        BaseException: What the slope raised; LSODA's and VODE's C code would hide it.
    """
    try:
        return call()
    except Exception as error:
        if guarded.error is None and not isinstance(error, _NUMERICAL):
            raise
    if guarded.error is not None:
        raise guarded.error
    guarded.is_finite = False  # "array must not contain infs or NaNs"
    return None
