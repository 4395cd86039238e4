"""The paper's continuous adjoint on SciPy's solvers."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ctflow.backends.adjoint import AdjointField, RanAway, conclude, scale_of, walk
from ctflow.backends.adjoint_node import attach_adjoint
from ctflow.backends.captures import Captures
from ctflow.backends.field import Field
from ctflow.backends.protocol import is_absolute
from ctflow.backends.scipy.course import Plan, Stopped, Tally, follow
from ctflow.backends.scipy.forward import Forward
from ctflow.backends.scipy.integrators import METHODS, Integrator
from ctflow.backends.scipy.quadrature import Along, Quadrature, Within
from ctflow.backends.scipy.slope import Array, StateSlope, array, jacobian, product, tensor, time
from ctflow.errors import SolveFailed
from ctflow.solution import GradientReport, Stats, Status

__all__ = ["NORMS", "Job", "Norm", "attach"]

Norm: TypeAlias = Literal["blocks", "whole"]
NORMS: tuple[Norm, ...] = ("blocks", "whole")

_FAR = 10.0  # a rebuilt state this many times larger than any of the forward pass is lost


class Job(NamedTuple):
    """What the backward pass is to do.

    Attributes:
        forward: The solve that is differentiated.
        captures: What its f reads beside t and y.
        norm: See `ScipyBackend`.
        times: Output times, [1, T].
        report: To be filled.
        stats: To be completed; the caller puts it in.
    """

    forward: Forward
    captures: Captures
    norm: Norm
    times: Tensor
    report: GradientReport
    stats: list[Stats]

    @property
    def backward(self) -> Plan:
        """How to solve back: with the method of the forward pass and its own tolerances."""
        plan, own = self.forward.plan, self.forward.solver.backward
        return plan if own is None else plan._replace(rtol=own.rtol, atol=own.atol)


def attach(job: Job, out: Tensor, y0: Tensor) -> Tensor:
    """The outputs of a complete solve, with the adjoint as their gradient.

    Args:
        job: What the backward pass is to do.
        out: States at the output times, [T, 1, N], without a history.
        y0: Initial state, [1, N].

    Returns:
        The same states, differentiable by y0 and everything captured.

    Cost:
        Memory of the outputs. Backward: for each evaluation of the augmented system one of f and
        its vector-Jacobian products with respect to the state and to all parameters.
    """
    return attach_adjoint(partial(_pull_back, job), out, y0, job.captures.inputs)


def _pull_back(job: Job, out: Tensor, g: Tensor) -> list[Tensor]:
    """Gradient of y0 and of each captured tensor, from that of the outputs g [T, 1, N]."""
    size = g.abs().amax()
    if not bool(torch.isfinite(size)):
        return [torch.full_like(x, torch.nan) for x in (g[0], *job.captures.inputs)]
    scale = scale_of(size, is_absolute(job.forward.solver.backward))
    with job.captures.cut() as leaves:
        field = AdjointField(job.forward.field, job.captures, leaves)
        solver = _Backward(job, field)
        a, found = walk(solver, field, job.times, out, g / scale)
    gradients = solver.quadrature.total
    conclude(job.report, job.times, found, gradients, solver.quadrature.error())
    for stats in job.stats:
        stats.backward = solver.tally.counts(field.n_f_evals + solver.slope.n_f_evals)
    return [a * scale, *(q * scale.to(q.dtype) for q in gradients)]


class _Slope:
    """d[y, a, q]/dt = [f, -a df/dy, -a df/dtheta], q being empty where it is summed up apart.

    Attributes:
        n_f_evals: Evaluations for Jacobians alone; the others are counted by the field.
    """

    def __init__(self, field: AdjointField, flat: Field, quadrature: Quadrature) -> None:
        self._field = field
        self._flat = flat
        self._quadrature = quadrature
        self.n_f_evals = 0

    def __call__(self, t: float, z: Array) -> Array:
        """Evaluate it."""
        layout = self._flat.layout
        y, a = (tensor(part, layout) for part in np.split(z[: 2 * layout.size], 2))
        place = self._field(time(t, layout), y, a)
        rate = self._quadrature.rate(place)
        return np.concatenate([array(place.dy[0]), array(-place.pulled[0]), rate])

    def jacobian(self, t: float, z: Array) -> Array:
        """[[f_y, 0], [-(a f_y)_y, -f_y^T]], for a system without q."""
        self.n_f_evals += 1
        layout = self._flat.layout
        y, a = (tensor(part, layout) for part in np.split(z, 2))
        with torch.enable_grad():
            y.requires_grad_()
            dy = self._flat(time(t, layout), y)
            first = array(jacobian(dy, y))
            curved = _curvature(dy, y, a)
        zero = np.zeros_like(first)
        return np.block([[first, zero], [-curved, -first.T]])


def _curvature(dy: Tensor, y: Tensor, a: Tensor) -> Array:
    """d(a df/dy)/dy, [N, N]; zero where f cannot be differentiated twice.

    Newton's method then takes more iterations to the same solution.
    """
    none = np.zeros((y.shape[1], y.shape[1]))
    if not dy.requires_grad:
        return none
    try:
        pulled = product(dy, y, a, create=True)
        return none if pulled is None else array(jacobian(pulled, y))
    except RuntimeError:
        return none


class _Backward:
    """Solves one interval after the other.

    A method with stages keeps its step size across them; a multistep method starts anew with order
    1, as in the paper.
    """

    def __init__(self, job: Job, field: AdjointField) -> None:
        self._forward, self._norm, self._plan = job.forward, job.norm, job.backward
        self._max_steps = job.forward.solver.max_steps
        self._layout = job.forward.field.layout
        self._first: float | None = None
        plan = self._plan
        self.quadrature: Quadrature = (
            Along(field, self._layout, plan.rtol, plan.atol, self._max_steps)
            if METHODS[plan.method].newton
            else Within(field)
        )
        self.slope = _Slope(field, job.forward.field, self.quadrature)
        self.tally = Tally(self._max_steps)
        self._blocks = self._sizes(len(self.quadrature.begin()))

    def back(self, t_from: Tensor, t_to: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """State and adjoint at t_to."""
        ends = float(t_from), float(t_to)
        start = np.concatenate([array(y[0]), array(a[0]), self.quadrature.begin()])
        try:
            done = follow(
                self._plan,
                self.slope,
                ends,
                start,
                self._blocks,
                self.tally,
                self._visit,
                self._first,
            )
        except Stopped as stop:
            raise RanAway(stop.t, self._why(stop.status)) from None
        self._first = done.size if METHODS[self._plan.method].stages else None
        n = self._layout.size
        rebuilt, adjoint, end = np.split(done.z, [n, 2 * n])
        self.quadrature.keep(end)
        return tensor(rebuilt, self._layout), tensor(adjoint, self._layout)

    def forth(self, t_from: Tensor, t_to: Tensor, y: Tensor) -> Tensor:
        """State at t_to, with the forward pass's settings."""
        forward, ends = self._forward, (float(t_from), float(t_to))
        slope, tally = StateSlope(forward.field), Tally(self._max_steps)
        try:
            done = follow(forward.plan, slope, ends, array(y[0]), forward.blocks, tally, _ignore)
        except Stopped as stop:
            raise SolveFailed(
                f"a state that the adjoint needed could not be solved for again: "
                f"{stop.status.name} at t={stop.t:.6g}. Use backend='native' with "
                "gradient='checkpointed'."
            ) from None
        finally:
            self.slope.n_f_evals += slope.n_f_evals
        return tensor(done.z, self._layout)

    def _visit(self, integrator: Integrator) -> None:
        seen = np.abs(integrator.z[: self._layout.size]).max()
        if seen > _FAR * self._forward.largest:
            raise RanAway(integrator.t, _LEFT)
        self.quadrature.visit(integrator)

    def _sizes(self, n_parameters: int) -> Array:
        """For each variable of [y, a, q], the size of the block that is within tolerance."""
        both = np.tile(self._forward.counted, 2)
        every = np.concatenate([both, np.ones(n_parameters)])
        if self._norm == "whole":
            return every * every.sum()
        return np.concatenate([both * both.sum(), np.full(n_parameters, float(n_parameters))])

    def _why(self, status: Status) -> str:
        if status == Status.MAX_STEPS:
            raise SolveFailed(
                f"the adjoint's backward solve took its limit of {self._max_steps} steps. Use a "
                "larger `max_steps`, looser `backward` tolerances, or backend='native' with "
                "gradient='checkpointed'."
            )
        return _LEFT if status == Status.NON_FINITE else "the step became too small"


_LEFT = "the state rebuilt backwards left the range of the forward pass"


def _ignore(integrator: Integrator) -> None:
    """Nothing to look at."""
