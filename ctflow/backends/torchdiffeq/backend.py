"""`TorchdiffeqBackend`: what it takes, what it refuses, and how one solve goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.backends.field import Field
from ctflow.backends.protocol import Feature, Solver, resolved
from ctflow.backends.times import shift
from ctflow.backends.torchdiffeq import adjoint
from ctflow.backends.torchdiffeq.forward import plain
from ctflow.backends.torchdiffeq.plan import ADAPTIVE, FIXED, Plan
from ctflow.backends.torchdiffeq.watch import Watch
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Counts, Solution, Stats, Status
from ctflow.state import Layout, widest
from ctflow.transforms import active, untraced

__all__ = ["TorchdiffeqBackend"]


@dataclass(frozen=True)
class TorchdiffeqBackend:
    """The solvers of torchdiffeq (Chen 2018), tested with its version 0.2.5.

    Adaptive: `dopri5`, `bosh3`, and torchdiffeq's own `dopri8` (Prince, Dormand 8(7)),
    `adaptive_heun`, `fehlberg2`. With `Solver(step=...)`: `euler`, `midpoint`, `heun2`, `heun3`,
    and `rk4_38`, Kutta's 3/8 rule, which torchdiffeq calls rk4.

    Outputs between steps: `dopri5` interpolates; the other adaptive methods, whose interpolants in
    torchdiffeq are of low order, end a step at every output. Fixed steps follow their own grid, the
    last one cut at t1; `euler` interpolates linearly, the others by the cubic Hermite polynomial
    (error of order 4 in the step), which costs one evaluation for each output. With fixed steps
    and `gradient="adjoint"` the backward solve takes steps of the same size: the result is the
    adjoint equation's, not the derivative of the forward steps.

    Its error estimate for `dopri5` is two thirds of the native one, so its steps are a little
    longer. One system with one step size; time gradients in closed form, as on the native backend.

    Example:
        >>> import torch
        >>> from ctflow import odeint
        >>> y = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], backend="torchdiffeq")
        >>> float(y[-1])
        0.3678...
    """

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "torchdiffeq"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset(
            {
                Feature.ADAPTIVE,
                Feature.FIXED,
                Feature.DIRECT,
                Feature.ADJOINT,
                Feature.TIME_GRADIENTS,
                Feature.SECOND_ORDER,
                Feature.UNCONTROLLED,
            }
        )

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons = _refuse_method(str(solver.method or "dopri5"), solver.step)
        if solver.coupling == "per_sample":
            reasons.append("coupling='per_sample': it has one step size for the whole state")
        if problem.t.dim() == 2:
            reasons.append("`t` gives each sample its own times; it has one grid for all")
        if solver.gradient == "checkpointed":
            reasons.append("gradient='checkpointed' is not one of direct, adjoint")
        if solver.backward is not None:
            if solver.gradient not in (None, "adjoint"):
                reasons.append("`backward` tolerances belong to gradient='adjoint'")
            if solver.step is not None:
                reasons.append("`backward` tolerances mean nothing to the fixed steps of `step`")
            if solver.backward.norm == "seminorm":
                reasons.append(
                    "Tolerances(norm='seminorm'): it could not warn where that costs accuracy"
                )
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        return self._solve(problem, solver)

    @untraced  # torchdiffeq's loop goes by data
    def _solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        _check_untransformed()
        layout = Layout.of(problem.y0, per_sample=False)
        field = Field(problem, layout)
        times = problem.t.to(widest(problem.t.device))
        plan = Plan.of(solver, times)
        watch = Watch(field, plan, problem.uncontrolled)
        y0 = layout.pack(problem.y0)
        if y0.is_inference() and not torch.is_inference_mode_enabled():
            y0 = y0.clone()  # made under inference mode, and now wanted in a graph
        out, unfinished = _run(problem, field, watch, plan, y0, times)
        tally = watch.tally
        trace = tuple(torch.tensor([s * plan.direction], dtype=torch.float64) for s in tally.trace)
        backward = Counts.zeros(1) if solver.gradient == "direct" else None
        stats = Stats(resolved(solver, self), tally.counts(), backward, trace)
        unfinished.append(stats)
        status, stops = torch.tensor([int(tally.status)]), tally.stops(plan.direction)
        return Solution(problem.t, layout.unpack(out), status, stats, stops)


def _check_untransformed() -> None:
    """Refuse what would fail deep inside torchdiffeq, or lose the tangents of the times."""
    if active():
        raise Unsupported(
            "backend 'torchdiffeq' cannot be used under torch.func transforms or forward-mode "
            "differentiation, which its steps do not support. Use backend='native' with "
            "gradient='direct'."
        )


def _refuse_method(method: str, step: float | None) -> list[str]:
    if method == "rk4":
        return [
            "method='rk4' is the classic rule; torchdiffeq's rk4 is Kutta's 3/8 rule, here 'rk4_38'"
        ]
    if method not in ADAPTIVE and method not in FIXED:
        return [f"method={method!r} is not one of {', '.join([*ADAPTIVE, *FIXED])}"]
    if method in FIXED and step is None:
        return [f"method={method!r} has no error estimate to adapt its steps by; give `step`"]
    if method in ADAPTIVE and step is not None:
        return [f"method={method!r} takes no fixed `step`; those are for {', '.join(FIXED)}"]
    return []


def _run(
    problem: ODEProblem, field: Field, watch: Watch, plan: Plan, y0: Tensor, times: Tensor
) -> tuple[Tensor, list[Stats]]:
    """States at the output times, differentiable where anything wants a gradient."""
    if not torch.is_grad_enabled():
        with torch.inference_mode(False), torch.no_grad():  # inference tensors hide what f changes
            out = plain(watch, plan, y0)
        return (out.clone() if torch.is_inference_mode_enabled() else out), []
    gradient, moving = str(plan.solver.gradient), times.requires_grad
    unfinished: list[Stats] = []
    if gradient == "adjoint":
        out, unfinished = adjoint.run(problem, field, watch, plan, y0, times[:1])
    else:
        t0 = times[:1]
        start = shift(watch.evaluate, t0, y0, -1.0, None, gradient) if moving else y0
        out = plain(watch, plan, start)
    if moving and watch.tally.status == Status.OK:
        out = _attach(watch, times, y0, out, gradient)
    return out, unfinished


def _attach(watch: Watch, times: Tensor, y0: Tensor, out: Tensor, gradient: str) -> Tensor:
    """The outputs with the gradients of their times; output 0 is y0, which no time moves."""
    shifted = [y0]
    for t, y in zip(times[1:].split(1), out[1:].unbind(), strict=True):
        f = None
        if gradient != "direct":
            with torch.no_grad():
                f = watch.evaluate(t.to(y.dtype), y)
        shifted.append(shift(watch.evaluate, t, y, 1.0, f, gradient))
    return torch.stack(shifted)
