"""`backend="native"`: turns portable settings into a method, a control and a gradient."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast, Captures, sequence_number
from ctflow.backends.events import EventFunctions
from ctflow.backends.field import Field
from ctflow.backends.native.control import Adaptive, Control, Fixed
from ctflow.backends.native.gradients import adjoint, checkpointed, direct
from ctflow.backends.native.gradients.times import attach
from ctflow.backends.native.hybrid import Journey, through_events
from ctflow.backends.native.implicit import check_visible
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.method import Method
from ctflow.backends.native.methods import IMPLICIT, METHODS
from ctflow.backends.native.observers import KeepCourse, LocalError
from ctflow.backends.native.stiffness import explained
from ctflow.backends.native.stops import Stops
from ctflow.backends.native.transformed import refused, steps_are_given
from ctflow.backends.protocol import Feature, Solver, default_tolerances, resolved
from ctflow.backends.tableau import Tableau
from ctflow.backends.times import evaluations_of_shift, shift
from ctflow.dense import DenseSolution
from ctflow.errors import InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.solution import Counts, GradientReport, Resolved, Solution, Stats
from ctflow.state import Layout, leaves_of, widest
from ctflow.transforms import active, is_moving, plain, untraced

__all__ = [
    "NativeBackend",
    "adaptive_or_fixed",
    "backward_control",
    "counted",
    "method_of",
    "stops_of",
]

_KNOWN: dict[str, Method] = {**METHODS, **IMPLICIT}


@dataclass(frozen=True)
class NativeBackend:
    """ctflow's own Runge-Kutta and Rosenbrock solver.

    Args:
        tableau: A method in place of the one that `Solver.method` names; a `Rosenbrock` too.
        control: A step-size control of your own, in place of `Solver.step`, `rtol` and `atol`.

    Example:
        >>> import torch
        >>> from ctflow import Solver, odeint
        >>> from ctflow.backends.native.control import OnGrid
        >>> frozen = Solver(backend=NativeBackend(control=OnGrid(torch.linspace(0, 1, 11))))
        >>> float(odeint(lambda t, y: y, torch.ones(1), [0.0, 1.0], solver=frozen)[-1])
        2.718281...
    """

    tableau: Method | None = None
    control: Control | None = None

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "native"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset(Feature)

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons: list[str] = []
        method = self.tableau or method_of(solver)
        if method is None:
            known = ", ".join(_KNOWN)
            reasons.append(f"method={solver.method!r} is not one of {known}")
        elif method.e is None and solver.step is None and self.control is None:
            reasons.append(
                f"method={method.name!r} has no error estimate to adapt its steps by; give "
                "Solver(step=...)"
            )
        if method is not None and method.implicit:
            reasons += _refuse_implicit(method.name, problem, solver)
        if self.tableau is not None and isinstance(solver.method, Tableau):
            reasons.append(f"its own `tableau` stands in the place of method={solver.method!r}")
        if self.control is not None and solver.controls_steps:
            reasons.append("its own `control` stands in the place of `controller` and step limits")
        if solver.backward is not None and method is not None and method.e is None:
            reasons.append(f"method={method.name!r} cannot follow `backward` tolerances")
        if solver.backward is not None and solver.gradient not in (None, "adjoint"):
            reasons.append("`backward` tolerances belong to gradient='adjoint'")
        if problem.local_error and method is not None and method.e is None:
            reasons.append(f"method={method.name!r} has no error estimate for `local_error`")
        if problem.dense and solver.gradient == "adjoint":
            reasons.append(
                "the adjoint keeps no steps for `dense`; take gradient='checkpointed' or 'direct'"
            )
        if problem.local_error and solver.gradient == "adjoint":
            reasons.append(
                "the adjoint follows the exact solution, which has no `local_error`; take "
                "gradient='checkpointed'"
            )
        if problem.event is not None and leaves_of(problem.y0)[0].dtype.itemsize < 4:
            reasons.append("it finds no events in half precision, whose rounding hides their sign")
        if problem.local_error and problem.event is not None:
            reasons.append("it sums no `local_error` through events")
        if problem.event is not None and active():
            reasons.append(
                "it finds no events under torch.func transforms or in forward mode, which its "
                "derivatives of event functions would not see; backward() and torch.autograd.grad "
                "work, and gradient='direct' has second derivatives too"
            )
        given = solver.step is not None if self.control is None else steps_are_given(self.control)
        return reasons + refused(problem, solver, given)

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        return self._solve(problem, solver)

    @untraced  # the loop goes by data, which no graph can
    def _solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        tableau = self.tableau or cast("Method", method_of(solver))
        layout = Layout.of(problem.y0, per_sample=solver.coupling == "per_sample")
        field = Field(problem, layout)
        times = _own_dtype(problem.t).expand(layout.batch, -1)
        grid = plain(times)
        plan = Integration(
            tableau,
            self.control or adaptive_or_fixed(solver, counted(problem, layout), layout.size),
            grid,
            solver.max_steps,
            stops=stops_of(problem, solver, grid),
        )
        y0 = layout.pack(problem.y0)
        if y0.is_inference() and not torch.is_inference_mode_enabled():
            y0 = y0.clone()  # made under inference mode, and now wanted in a graph
        moving = is_moving(times)
        n_looks = _look(plan, field, y0, moving)
        if problem.event is not None:
            return self._hybrid(problem, solver, plan, field, y0, times)
        errors = None
        if problem.local_error:
            errors = LocalError(tableau, counted(problem, layout))
        by_adjoint = solver.gradient == "adjoint"
        report = GradientReport(None if by_adjoint else "this gradient is that of the steps taken")
        course = KeepCourse(field, tableau) if problem.dense else None
        checkpoint = partial(checkpointed.run, errors=errors, course=course)
        differentiate = _Adjoint(solver, report) if by_adjoint else checkpoint
        direct_only = solver.gradient == "direct" or (active() and moving)
        autocast = Autocast.now(layout.device.type)
        # A cast of a parameter that an earlier solve left in autocast's cache would look captured.
        again = nullcontext() if direct_only or not autocast.enabled else autocast.again()
        with again:
            chosen = None if direct_only else differentiate
            out, outcome, unfinished = _run(
                problem, plan, field, y0, times, chosen, solver, (errors, course)
            )
        outcome.counts.n_f_evals.add_(n_looks)
        backward = Counts.zeros(layout.batch) if direct_only else None
        settings = resolved(solver, self, tableau.name)
        stats = Stats(settings, outcome.counts, backward, outcome.trace)
        unfinished.append(stats)
        y = layout.unpack(out)
        error = outcome.local_error
        if problem.local_error:
            arrived = outcome.status == 0
            nan = torch.full_like(arrived, torch.nan, dtype=y0.dtype)
            error = nan if error is None else torch.where(arrived.to(error.device), error, nan)
        dense = None
        if outcome.course is not None and not outcome.stops:
            used = [row for row in tableau.p if any(row)]
            dense = DenseSolution(layout, *outcome.course, grid.new_tensor(used))
        return Solution(
            problem.t, y, outcome.status, stats, explained(field, plan, y0, outcome),
            None, report, error, dense,
        )  # fmt: skip

    def _hybrid(
        self,
        problem: ODEProblem,
        solver: Solver,
        plan: Integration,
        field: Field,
        y0: Tensor,
        times: Tensor,
    ) -> Solution:
        """Solve a problem with events; see `through_events`."""
        if torch.is_inference_mode_enabled():  # whose tensors no event function could be derived at
            with torch.inference_mode(False), torch.no_grad():
                y0, times = y0.clone(), times.clone()
                return self._hybrid(problem, solver, plan._replace(grid=times), field, y0, times)
        gradient, control = str(solver.gradient), plan.control
        autocast = Autocast.now(field.layout.device.type)

        def stretch(
            plan: Integration, y0: Tensor, times: Tensor
        ) -> tuple[Tensor, Outcome, list[Stats]]:
            """Solve between two events."""
            course = KeepCourse(field, plan.tableau) if problem.dense else None
            ways: dict[str, _Recomputing | None] = {
                "direct": None,
                "checkpointed": partial(checkpointed.run, course=course),
                "adjoint": _Adjoint(solver, GradientReport(), control),
            }
            again = gradient != "direct" and autocast.enabled
            with autocast.again() if again else nullcontext():
                way, kept = ways[gradient], (None, course)
                return _run(problem, plan, field, y0, times, way, solver, kept)

        tolerances = (
            tuple(float(torch.as_tensor(x).amax()) for x in (control.rtol, control.atol))
            if isinstance(control, Adaptive)
            else default_tolerances(field.layout.real_dtype)
        )
        functions = EventFunctions(problem, field.layout, plan.span.direction, *tolerances)
        journey = Journey(
            functions, plan, field, field.layout, times, stretch, gradient, solver.max_events
        )
        found = through_events(journey, y0)
        settings = resolved(solver, self, plan.tableau.name)
        backward = Counts.zeros(field.layout.batch) if gradient == "direct" else None
        stats = Stats(settings, found.counts, backward, found.trace)
        parts: list[Counts | None] = [None] * len(found.unfinished)
        for i, unfinished in enumerate(found.unfinished):
            unfinished.append(_Share(settings, found.counts, stats, parts, i))
        dense = None
        if found.course is not None and not found.stops:
            used = [row for row in plan.tableau.p if any(row)]
            dense = DenseSolution(field.layout, *found.course, times.detach().new_tensor(used))
        report = GradientReport("a solve through events is differentiated stretch by stretch")
        y = field.layout.unpack(found.out)
        return Solution(
            problem.t, y, found.status, stats, found.stops, None, report, None, dense, found.record
        )


def _look(plan: Integration, field: Field, y0: Tensor, moving: bool) -> int:
    """Refuse what an implicit method could not differentiate; how many evaluations that took."""
    if not plan.tableau.implicit:
        return 0
    start, end = plan.grid[:, 0], plan.grid[:, -1]
    t, later = (x.to(y0.dtype) for x in (start, torch.lerp(start, end, 1e-4)))
    wanted = torch.is_grad_enabled() and (y0.requires_grad or moving or None)
    with torch.inference_mode(False):  # which turns gradients on
        return check_visible(plan.beside(field, after=True), t, later, y0, wanted)


def _refuse_implicit(name: str, problem: ODEProblem, solver: Solver) -> list[str]:
    """Reasons why an implicit method cannot do what an explicit one can."""
    reasons: list[str] = []
    if solver.gradient == "adjoint":
        reasons.append(
            f"method={name!r} is for stiff problems, whose fast decays grow as fast when the "
            "adjoint rebuilds the state backwards in time: no step size gives a right gradient; "
            "take gradient='checkpointed' or 'direct'"
        )
    if active():
        reasons.append(
            f"method={name!r} differentiates `f` itself, which torch.func transforms and forward "
            "mode would not see; backward() and torch.autograd.grad work"
        )
    dtype = leaves_of(problem.y0)[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        reasons.append(
            f"method={name!r} factorises matrices, which torch does not do in {dtype}; take "
            "float32 or float64"
        )
    return reasons


class _Share(Stats):
    """Stats of one stretch; the backward pass of the whole solve is those of all of them."""

    def __init__(
        self, solver: Resolved, forward: Counts, whole: Stats, parts: list[Counts | None], i: int
    ) -> None:
        self._whole, self._parts, self._i = whole, parts, i
        super().__init__(solver, forward)

    def __setattr__(self, name: str, value: object) -> None:
        """Say what the stretches that are known come to."""
        super().__setattr__(name, value)
        if name == "backward" and isinstance(value, Counts):
            self._parts[self._i] = value
            columns = zip(*(vars(part).values() for part in self._parts if part), strict=True)
            self._whole.backward = Counts(*(torch.stack(column).sum(dim=0) for column in columns))


class _Recomputing(Protocol):
    """A gradient method whose backward pass evaluates f again."""

    def __call__(
        self, plan: Integration, field: Field, captures: Captures, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, Outcome, list[Stats]]:
        """States at the output times, how it went, and where the backward pass looks for Stats."""
        ...


@dataclass(frozen=True)
class _Adjoint:
    """The adjoint method with its own settings filled in.

    The backward solve follows `like` where the forward one repeats steps that were found before.
    """

    solver: Solver
    report: GradientReport
    like: Control | None = None

    def __call__(
        self, plan: Integration, field: Field, captures: Captures, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, Outcome, list[Stats]]:
        """Solve; see `adjoint.run`."""
        control = backward_control(self.solver, self.like or plan.control, y0.shape[1])
        own = self.solver.backward
        return adjoint.run(plan, control, own, field, captures, y0, f0, self.report)


def _run(
    problem: ODEProblem,
    plan: Integration,
    field: Field,
    y0: Tensor,
    times: Tensor,
    differentiate: _Recomputing | None,
    solver: Solver,
    kept: tuple[LocalError | None, KeepCourse | None],
) -> tuple[Tensor, Outcome, list[Stats]]:
    """States at the output times, differentiable where anything wants a gradient.

    `differentiate` None means through autograd's own graph of the steps.
    """
    gradient, moving = str(solver.gradient), is_moving(times)
    if not (torch.is_grad_enabled() or (moving and active())):
        with torch.inference_mode(False), torch.no_grad():  # inference tensors hide what f changes
            out, outcome, unfinished = _plain(plan, field, y0, None, kept)
        return (out.clone() if torch.is_inference_mode_enabled() else out), outcome, unfinished
    if differentiate is None:
        after, before = plan.beside(field, after=True), plan.beside(field, after=False)
        start = shift(after, times[:, 0], y0, -1.0, None, gradient) if moving else y0
        out, outcome = direct.run(plan, field, start, *kept)
        outcome.counts.n_f_evals.add_(moving * evaluations_of_shift())
        return attach(before, times, y0, out, outcome, gradient), outcome, []
    captures = Captures(problem, field)
    leaf = y0.detach().requires_grad_()
    marker = sequence_number()
    reached = plan.beside(field, after=True)(plan.span.t0.to(y0.dtype), leaf)
    captures.discover(reached, leaf, marker)
    f0 = reached.detach()
    if not (captures.inputs or y0.requires_grad or moving):
        # Recorded, which costs nothing if nothing is reached.
        found = _plain(plan, field, y0, f0, kept)
        captures.recheck_none(found[0])
        return found
    start = shift(field, times[:, 0], y0, -1.0, f0, gradient) if moving else y0
    out, outcome, unfinished = differentiate(plan, field, captures, start, f0)
    before = plan.beside(field, after=False)
    return attach(before, times, y0, out, outcome, gradient), outcome, unfinished


def _plain(
    plan: Integration,
    field: Field,
    y0: Tensor,
    f0: Tensor | None,
    kept: tuple[LocalError | None, KeepCourse | None],
) -> tuple[Tensor, Outcome, list[Stats]]:
    """The loop alone."""
    save = plan.saver(field, y0)
    errors, course = kept
    outcome = plan(field, y0, f0, [save, *(x for x in kept if x is not None)])
    total = None if errors is None else errors.total
    steps = None if course is None else course.result()
    return save.result(), outcome._replace(local_error=total, course=steps), []


def method_of(solver: Solver) -> Method | None:
    """The method that the settings mean; None where none has that name."""
    asked = solver.method or "dopri5"
    return asked if isinstance(asked, Tableau) else _KNOWN.get(asked)


def counted(problem: ODEProblem, layout: Layout) -> int:
    """Variables of one sample that are in the error norm."""
    if not problem.uncontrolled:
        return layout.size
    return layout.size - layout.width(layout.shapes[-problem.uncontrolled :])


def adaptive_or_fixed(solver: Solver, n_counted: int, n_variables: int) -> Control:
    """The control that portable settings mean."""
    if solver.step is not None:
        return Fixed(solver.step)
    if solver.rtol is None or solver.atol is None:
        raise InvalidProblem(
            f"adaptive steps need `rtol` and `atol`, got rtol={solver.rtol}, atol={solver.atol}. "
            "Call ctflow.solve, which completes them."
        )
    counted = None if n_counted == n_variables else (slice(0, n_counted),)
    like = solver.coefficients
    return Adaptive(
        solver.rtol,
        solver.atol,
        like.safety,
        like.shrink,
        like.grow,
        counted,
        like.betas,
        solver.min_step or 0.0,
        solver.max_step or math.inf,
        solver.first_step,
    )


def stops_of(problem: ODEProblem, solver: Solver, times: Tensor) -> Stops | None:
    """Where the settings and the problem want steps to end; `times` has time's own dtype."""
    if problem.jump_t is None and solver.step_t is None:
        return None
    none = times.new_empty(0)
    jumps = none if problem.jump_t is None else problem.jump_t.detach().to(times)
    chosen = none if solver.step_t is None else times.new_tensor(solver.step_t)
    both = torch.cat([chosen.detach(), jumps])
    return Stops(both, jumps) if len(both) else None


def backward_control(solver: Solver, forward: Control, n_variables: int) -> Control:
    """The control of the adjoint's backward solve."""
    own, control = solver.backward, forward
    if isinstance(control, Adaptive):
        control = replace(_twice(control, n_variables), first_size=None)
        if own is not None:
            control = replace(control, rtol=own.rtol, atol=own.atol)
    elif own is not None:
        control = Adaptive(own.rtol, own.atol)
    return control


def _twice(control: Adaptive, n_variables: int) -> Adaptive:
    """The control of a state and its adjoint side by side, [B, 2 N]."""
    if control.counted is None:
        return control
    again = (slice(n_variables + c.start, n_variables + c.stop) for c in control.counted)
    return replace(control, counted=(*control.counted, *again))


def _own_dtype(t: Tensor) -> Tensor:
    """Times in their own dtype: float64 where the device has it."""
    return t.to(widest(t.device))
