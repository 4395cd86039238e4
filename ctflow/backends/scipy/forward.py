"""The forward solve, its outputs, and what is left of one that stopped."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctflow.backends.captures import Captures, pull
from ctflow.backends.field import Field
from ctflow.backends.protocol import Solver
from ctflow.backends.scipy.course import Plan, Stopped, Tally, follow
from ctflow.backends.scipy.integrators import METHODS, Integrator
from ctflow.backends.scipy.slope import Array, StateSlope, array, tensor, time
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Counts, Status, Stop
from ctflow.transforms import active, touched

__all__ = ["Forward", "refuse_transforms"]


class Forward:
    """One forward solve.

    Args:
        problem: What is solved.
        field: Its dynamics on flat tensors.
        solver: Complete settings.
        times: Output times, [T].

    Attributes:
        plan: Method and tolerances.
        counted: 1 for a variable of the state that is in the error norm, else 0, [N].
        largest: Largest |y| at the ends of steps.
        status: How it went.
        stops: Where it stood, if it stopped.
    """

    def __init__(self, problem: ODEProblem, field: Field, solver: Solver, times: Array) -> None:
        self.field = field
        self.solver = solver
        self.counted = _counted(problem, field)
        self.plan = Plan(str(solver.method), _number(solver.rtol), _number(solver.atol), exact=True)
        self.status = Status.OK
        self.stops: tuple[Stop, ...] = ()
        self.largest = 0.0
        self._slope = StateSlope(field)
        self._tally = Tally(solver.max_steps)
        self._times = times
        self._trace = [float(times[0])]
        self._value: Array | None = None

    @property
    def blocks(self) -> Array:
        """All variables that are in the norm are one block, [N]."""
        return self.counted * self.counted.sum()

    def start(self, y0: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate f at the initial state [1, N].

        Returns:
            A leaf with the values of y0, and f there, [1, N], with its graph if autograd is on.
        """
        refuse_transforms(y0)
        leaf = y0.detach().requires_grad_()
        self._slope.n_f_evals += 1
        dy = self.field(time(float(self._times[0]), self.field.layout), leaf)
        refuse_transforms(dy)
        self._value = array(dy[0])
        if torch.is_grad_enabled():
            way = (
                dy.requires_grad and pull((dy,), (leaf,), (dy.detach(),), keep=True)[0] is not None
            )
            self.plan = self.plan._replace(exact=way)
        return leaf, dy

    def run(self, y0: Tensor, nothing: Captures | None = None) -> Tensor:
        """Solve.

        Args:
            y0: Initial state, [1, N].
            nothing: Of a solve without anything to differentiate: sees to it that this is so.

        Returns:
            States at the output times, [T, 1, N], without a history; NaN in what was not reached.
        """
        if self._value is None:
            with torch.set_grad_enabled(METHODS[self.plan.method].newton):
                self.start(y0)
        self._slope.nothing = nothing
        z0, ends = array(y0[0]), (float(self._times[0]), float(self._times[-1]))
        outputs = _Outputs(self._times, z0)
        try:
            follow(
                self.plan,
                self._slope,
                ends,
                z0,
                self.blocks,
                self._tally,
                outputs,
                value=self._value,
            )
        except Stopped as stop:
            self.status = stop.status
            self.stops = (Stop(0, stop.t, stop.size, stop.f_is_finite),)
        self._trace, self.largest = outputs.trace, outputs.largest
        return self._narrowed(outputs.y)

    def _narrowed(self, states: Array) -> Tensor:
        """The states in their own dtype, [T, 1, N]; what it cannot hold is a failure too."""
        out = torch.stack([tensor(y, self.field.layout) for y in states])
        bad = ~torch.isfinite(out).flatten(1).all(dim=1).cpu()
        if self.stops or not bool(bad.any()):
            return out
        first = int(bad.int().argmax())
        before, here = float(self._times[first - 1]), float(self._times[first])
        self.status = Status.NON_FINITE
        self.stops = (Stop(0, before, abs(here - before), f_is_finite=True),)
        out[first:] = torch.nan
        return out

    def counts(self) -> Counts:
        """What it cost."""
        return self._tally.counts(self._slope.n_f_evals)

    def trace(self) -> tuple[Tensor, ...]:
        """Ends of the accepted steps, the start first, [1] each."""
        return tuple(torch.tensor([t], dtype=torch.float64) for t in self._trace)


def refuse_transforms(x: Tensor, around: bool = False) -> None:
    """Refuse a tensor whose derivative NumPy would silently take for zero.

    Args:
        x: The tensor.
        around: Refuse a transform around the call too, where a gradient may be wanted.

    Raises:
        Unsupported: If it is a dual number of forward mode, or wrapped by torch.func.
    """
    if touched([x]) or (around and active() and torch.is_grad_enabled()):
        raise Unsupported(
            "backend 'scipy' works in NumPy, where neither torch.func transforms nor forward mode "
            "can follow. Use backward() or torch.autograd.grad, or backend='native'."
        )


class _Outputs:
    """Collects the state at the output times, and what else is to be known of the steps.

    Args:
        times: Output times, [T], monotone.
        y0: State at the first, [N].

    Attributes:
        y: States, [T, N]; NaN where the solve has not arrived.
        largest: Largest |y| at the ends of steps.
        trace: Ends of the accepted steps, the start first.
    """

    def __init__(self, times: Array, y0: Array) -> None:
        self._times = times
        self._direction = 1.0 if times[-1] > times[0] else -1.0
        self._next = 1
        self.y = np.full((len(times), len(y0)), np.nan)
        self.y[0] = y0
        self.largest = float(np.abs(y0).max())
        self.trace = [float(times[0])]

    def __call__(self, integrator: Integrator) -> None:
        """Look at a step that was accepted."""
        self.trace.append(integrator.t)
        self.largest = max(self.largest, float(np.abs(integrator.z).max()))
        ahead = self._times[self._next :]
        reached = ahead[self._direction * (integrator.t - ahead) >= 0]
        inside = bool((reached != integrator.t).any())
        between = integrator.between() if inside else None  # three evaluations for dop853
        for t in reached.tolist():
            if between is None or t == integrator.t:
                self.y[self._next] = integrator.z
            else:
                self.y[self._next] = between(t)
            self._next += 1


def _counted(problem: ODEProblem, field: Field) -> Array:
    """1 for a variable that is in the error norm, else 0, [N]."""
    shapes = field.layout.shapes
    n_left_out = sum(shape.numel() for shape in shapes[len(shapes) - problem.uncontrolled :])
    n = field.layout.size
    return np.where(np.arange(n) < n - n_left_out, 1.0, 0.0)


def _number(tolerance: float | None) -> float:
    """A tolerance that the settings must hold.

    Raises:
        InvalidProblem: If it is missing.
    """
    if tolerance is None:
        raise InvalidProblem(
            "SciPy's methods need `rtol` and `atol`, got None. Call ctflow.solve, which completes "
            "them."
        )
    return tolerance
