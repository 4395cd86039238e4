"""`ScipyBackend`: what it takes, what it refuses, and how one solve goes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast, Captures, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.protocol import Feature, Solver, leaves_out, resolved
from ctflow.backends.scipy import adjoint
from ctflow.backends.scipy.adjoint import NORMS, Norm
from ctflow.backends.scipy.forward import Forward, refuse_transforms
from ctflow.backends.scipy.integrators import METHODS
from ctflow.backends.scipy.slope import array
from ctflow.backends.times import attach_times, shift
from ctflow.errors import InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.solution import GradientReport, Solution, Stats
from ctflow.state import Layout, leaves_of, widest
from ctflow.transforms import untraced

__all__ = ["ScipyBackend"]

_LARGEST = 4096  # variables; the Jacobian of state and adjoint then has 8192^2, 0.5 GiB
_CALLER = 6  # frames up to whoever called `ctflow.solve`


@dataclass(frozen=True)
class ScipyBackend:
    """The solvers of SciPy, on the CPU in float64, with gradients by the paper's adjoint.

    Explicit: `dopri5`, `bosh3` (SciPy's RK45 and RK23) and `dop853`. `adams`: VODE's implicit Adams
    methods of order 1 to 12, solved by fixed-point iteration; the paper's own solver. For stiff
    problems: `bdf`, `radau`, and `lsoda`, which switches between Adams methods and BDF. These three
    use Newton's method with a dense Jacobian that autograd computes (differences only where
    autograd finds no way from `y` to dy/dt).

    `f` is called in the dtype and on the device of the state; everything else is NumPy. Outputs
    between steps come from each method's own interpolant. `f` is never evaluated outside the
    interval. A relative tolerance below 2.2e-14 counts as that, which is SciPy's least.

    The adjoint solves [y, a, dL/dtheta] back from output to output, each time from the stored
    state (arXiv 1806.07366v5, Algorithm 1). For the three methods with Newton's method dL/dtheta is
    a quadrature along the steps of [y, a] instead, with an error control of its own: as variables
    of the system, P parameters would need a Jacobian of (2 N + P)^2 numbers.

    Steps: SciPy does not tell how often `lsoda`, `bdf` and `radau` rejected a step, so for these
    three `n_steps` and `max_steps` count accepted steps, each of which takes a bounded number of
    attempts; the others count attempts. An evaluation for a Jacobian counts as one.

    Args:
        norm: What keeps to the tolerance in the backward solve of `dopri5`, `bosh3`, `dop853` and
            `adams`. "blocks": the root mean squares of the error of [y, a] and of dL/dtheta, each.
            "whole": the root mean square over the whole vector, as in the paper's software; with
            many parameters the error of [y, a] may then be sqrt((2 N + P) / (2 N)) times larger,
            in fewer steps.

    Raises:
        InvalidProblem: For another `norm`.

    Example:
        >>> import torch
        >>> from ctflow import Solver, odeint
        >>> solver = Solver(backend="scipy", method="adams")
        >>> y = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], solver=solver)
        >>> float(y[-1])
        0.3678...
    """

    norm: Norm = "blocks"

    def __post_init__(self) -> None:
        """Refuse another norm."""
        if self.norm not in NORMS:
            raise InvalidProblem(
                f"`norm` must be one of {', '.join(map(repr, NORMS))}, got {self.norm!r}. "
                "'whole' is that of the paper's software."
            )

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "scipy"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset(
            {Feature.ADAPTIVE, Feature.ADJOINT, Feature.TIME_GRADIENTS, Feature.UNCONTROLLED}
        )

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        name = str(solver.method or "dopri5")
        method = METHODS.get(name)
        reasons: list[str] = []
        if method is None:
            reasons.append(f"method={name!r} is not one of {', '.join(METHODS)}")
        elif method.newton and (n := sum(x.numel() for x in leaves_of(problem.y0))) > _LARGEST:
            reasons.append(
                f"method={name!r} has a dense Jacobian, and a state of {n} variables is more than "
                f"{_LARGEST}; 'adams' and 'dop853' have none"
            )
        if solver.step is not None:
            reasons.append("`step`: its methods adapt their steps")
        if solver.coupling == "per_sample":
            reasons.append("coupling='per_sample': it has one step size for the whole state")
        if problem.t.dim() == 2:
            reasons.append("`t` gives each sample its own times; it has one grid for all")
        if solver.gradient not in (None, "adjoint"):
            reasons.append(f"gradient={solver.gradient!r} is not adjoint")
        if leaves_out(solver.backward):
            reasons.append("Tolerances(norm='seminorm'): its error estimate counts every variable")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        return self._solve(problem, solver)

    @untraced  # SciPy's loop goes by data
    def _solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        layout = Layout.of(problem.y0, per_sample=False)
        if layout.device.type != "cpu":
            _warn_of_copies(layout.device.type)
        refuse_transforms(problem.t, around=True)
        report = GradientReport()
        y0, times = layout.pack(problem.y0), problem.t.to(widest(problem.t.device))
        forward = Forward(problem, Field(problem, layout), solver, array(times))
        with Autocast.now(layout.device.type).again():  # a cached cast has a history of its own
            out, unfinished = _run(problem, forward, self.norm, report, y0, times)
        stats = Stats(resolved(solver, self), forward.counts(), None, forward.trace())
        unfinished.append(stats)
        status = torch.tensor([int(forward.status)])
        return Solution(problem.t, layout.unpack(out), status, stats, forward.stops, None, report)


def _run(
    problem: ODEProblem,
    forward: Forward,
    norm: Norm,
    report: GradientReport,
    y0: Tensor,
    times: Tensor,
) -> tuple[Tensor, list[Stats]]:
    """States at the output times, differentiable where anything wants a gradient."""
    if not torch.is_grad_enabled():
        with torch.inference_mode(False), torch.no_grad():  # inference tensors hide what f changes
            out = forward.run(y0.clone())
        return (out.clone() if torch.is_inference_mode_enabled() else out), []
    field, moving = forward.field, times.requires_grad
    captures = Captures(problem, field)
    marker = sequence_number()
    leaf, reached = forward.start(y0)
    captures.discover(reached, leaf, marker)
    if not (captures.inputs or y0.requires_grad or moving):
        return forward.run(y0, captures), []
    start = shift(field, times[:1], y0, -1.0, reached.detach(), "adjoint") if moving else y0
    with torch.no_grad():
        out = forward.run(y0)
    if forward.stops:
        return out, []
    job = adjoint.Job(forward, captures, norm, times.detach().unsqueeze(0), report, [])
    out = adjoint.attach(job, out, start)
    if moving:
        out = attach_times(field, times, y0, out)
    return out, job.stats


@cache
def _warn_of_copies(device: str) -> None:
    """Say once per process what a state that does not live on the CPU costs."""
    warnings.warn(
        f"backend 'scipy' works on the CPU: a state on {device!r} is copied there and back for "
        "each evaluation of `f`. Use backend='native' to stay on the device.",
        UserWarning,
        stacklevel=_CALLER,
    )
