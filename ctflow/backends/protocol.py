"""The one argument users swap (`Solver`), what a backend must be (`Backend`), and how they meet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Real
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

import torch

from ctflow.backends.controller import CONTROLLERS, Controller, ControllerName
from ctflow.backends.tableau import Tableau
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Resolved, Solution
from ctflow.state import leaves_of
from ctflow.transforms import active, touched

__all__ = [
    "Backend",
    "Coupling",
    "Feature",
    "Gradient",
    "Solver",
    "Tolerances",
    "check",
    "default_tolerances",
    "is_absolute",
    "leaves_out",
    "resolve",
    "resolved",
]

Coupling: TypeAlias = Literal["shared", "per_sample"]
Gradient: TypeAlias = Literal["direct", "checkpointed", "adjoint"]

_GRADIENTS: tuple[Gradient, ...] = ("checkpointed", "direct", "adjoint")  # in order of preference
_COUPLINGS: tuple[Coupling, ...] = ("per_sample", "shared")

# Default rtol and atol. A few hundred units in the last place for the narrow dtypes: tighter
# tolerances make the error estimate measure rounding (field notes: 462 instead of 324 backward
# evaluations in float32 at 1e-7).
_TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-5, 1e-6),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
}


class Feature(Enum):
    """What a backend can do, for tables and messages; `Backend.refuse` has the last word."""

    ADAPTIVE = "adaptive steps"
    FIXED = "fixed steps"
    PER_SAMPLE = "per-sample steps"
    DIRECT = "direct gradients"
    CHECKPOINTED = "checkpointed gradients"
    ADJOINT = "adjoint gradients"
    TIME_GRADIENTS = "gradients of times"
    SECOND_ORDER = "second derivatives"
    UNCONTROLLED = "parts of the state outside the error norm"
    LOCAL_ERROR = "differentiable estimates of its own local error"
    STEP_CONTROL = "PI and PID control, limits of the step, times to step on"
    JUMPS = "declared discontinuities"
    DENSE = "the solution as a function of time"
    COMPLEX = "complex states"
    RAGGED = "samples with different numbers of times"
    EVENTS = "events"
    TRANSFORMS = "torch.func transforms and forward mode"
    TABLEAU = "a tableau of your own as method"


@dataclass(frozen=True)
class Tolerances:
    """Tolerances of the adjoint's backward solve.

    Args:
        rtol: Relative tolerance: of state and adjoint element by element; of the parameter gradient
            relative to each element or to the root mean square of the tensor that it is in,
            whichever is larger.
        atol: Absolute tolerance, in `unit`.
        norm: "full" lets the error estimate of the parameter gradient take part in accepting a
            step; "seminorm" leaves it out (arXiv 2009.09457): fewer steps, and a warning where the
            estimate says that this cost accuracy.
        unit: "gradient" divides the adjoint and the parameter gradient by the size of the incoming
            gradient first, so that `atol` means the same for a sum and a mean; "absolute" leaves
            them as they are, as torchdiffeq does: for a mean over many numbers, whose gradients
            are small, `atol` then checks next to nothing.
    """

    rtol: float
    atol: float
    norm: Literal["full", "seminorm"] = "full"
    unit: Literal["gradient", "absolute"] = "gradient"

    def __post_init__(self) -> None:
        """Refuse what no solver can honour."""
        _check_number("rtol", self.rtol, zero=True)
        _check_number("atol", self.atol)
        _check_choice("norm", self.norm, ("full", "seminorm"))
        _check_choice("unit", self.unit, ("gradient", "absolute"))


def leaves_out(own: Tolerances | None) -> bool:
    """Whether the error of the parameter gradient decides nothing about a step backwards."""
    return own is not None and own.norm == "seminorm"


def is_absolute(own: Tolerances | None) -> bool:
    """Whether tolerances backwards are not in units of the incoming gradient."""
    return own is not None and own.unit == "absolute"


@dataclass(frozen=True)
class Solver:
    """How to solve: plain, portable settings; None leaves the choice to ctflow.

    Args:
        backend: Name of a backend, or a backend object.
        method: "dopri5" and the like; "rodas5p" on the native backend for stiff problems; or a
            `Tableau` of your own. None means dopri5 where the backend offers it.
        rtol: Relative tolerance; None takes it from a table by dtype.
        atol: Absolute tolerance, in units of `y`; likewise.
        step: Size of a fixed step, in units of `t`; None means adaptive steps.
        coupling: "shared" treats `y0` of any shape as one system with one step size; "per_sample"
            says that dimension 0 is a batch of independent systems, each with its own step size,
            status and statistics. None means shared, and per-sample for a batched problem where
            the backend has it.
        gradient: "direct" back-propagates through the solver; "checkpointed" keeps the accepted
            states and redoes each step in the backward pass: the same numbers, the memory of the
            states alone; "adjoint" solves the adjoint equation backwards (arXiv 1806.07366v5,
            Algorithm 1). None means the first of checkpointed, direct, adjoint that is offered.
        backward: The adjoint's own tolerances; None: the forward's.
        max_steps: Limit of attempted steps of one whole solve, forward; and again backward.
        max_events: Limit of events of one sample; only problems with events look at it.
        controller: How adaptive steps follow the errors: "i" (the default), "pi", "pi33", "pi42",
            "pi_dopri5", "h211pi", "h312pid" or "pid", which docs/methods.md compares; or a
            `Controller` with coefficients of your own.
        first_step: Size of the first adaptive step, in units of `t`; None finds one.
        min_step: Smallest adaptive step; a sample that needs a smaller one fails. Steps may be
            shorter where they must end at a given time.
        max_step: Largest adaptive step.
        step_t: Times at which steps must end, in any order; those outside the interval are left
            out. For places where `f` changes fast but does not jump; for jumps
            `ODEProblem(jump_t=...)`.

    Raises:
        InvalidProblem: For a value that no backend could honour.

    Example:
        >>> Solver(backend="torchdiffeq", rtol=1e-5)
        Solver(backend='torchdiffeq', rtol=1e-05)
    """

    backend: str | Backend = "native"
    method: str | Tableau | None = None
    rtol: float | None = None
    atol: float | None = None
    step: float | None = None
    coupling: Coupling | None = None
    gradient: Gradient | None = None
    backward: Tolerances | None = None
    max_steps: int = 10_000
    controller: ControllerName | Controller | None = None
    first_step: float | None = None
    min_step: float | None = None
    max_step: float | None = None
    step_t: Sequence[float] | None = None
    max_events: int = 1000

    def __post_init__(self) -> None:
        """Refuse what no backend could honour."""
        if self.rtol is not None:
            _check_number("rtol", self.rtol, zero=True)
        if self.atol is not None:
            _check_number("atol", self.atol)
        if self.step is not None:
            _check_number("step", self.step)
        self._check_step_control()
        _check_choice("coupling", self.coupling, _COUPLINGS)
        _check_choice("gradient", self.gradient, _GRADIENTS)
        if self.method is not None and not isinstance(self.method, str | Tableau):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProblem(
                f"`method` must be a name or a Tableau, got {type(self.method).__name__}. "
                "Write method='tsit5', or method=Tableau(...) with coefficients of your own."
            )
        if self.backward is not None and not isinstance(self.backward, Tolerances):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProblem(
                f"`backward` must be Tolerances, got {self.backward!r}. "
                "Write backward=Tolerances(rtol=1e-6, atol=1e-8)."
            )
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise InvalidProblem(
                f"`max_steps` must be a positive integer, got {self.max_steps!r}. "
                "It counts attempted steps of the whole solve."
            )
        if type(self.max_events) is not int or self.max_events < 1:
            raise InvalidProblem(
                f"`max_events` must be a positive integer, got {self.max_events!r}. "
                "It counts the events of one sample."
            )

    def _check_step_control(self) -> None:
        for name in ("first_step", "min_step", "max_step"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        if not isinstance(self.controller, Controller):
            _check_choice("controller", self.controller, tuple(CONTROLLERS))
        if (self.min_step or 0.0) > (self.max_step or math.inf):
            raise InvalidProblem(
                f"`min_step` must not be above `max_step`, got {self.min_step!r} and "
                f"{self.max_step!r}. Exchange them."
            )
        first, least, most = self.first_step, self.min_step or 0.0, self.max_step or math.inf
        if first is not None and not least <= first <= most:
            raise InvalidProblem(
                f"`first_step` must lie between `min_step` and `max_step`, got {first!r} beside "
                f"{self.min_step!r} and {self.max_step!r}. Leave it out to have one found."
            )
        if self.step is not None and self.controls_steps:
            raise InvalidProblem(
                "`controller`, `first_step`, `min_step` and `max_step` belong to adaptive steps, "
                f"got one of them beside step={self.step!r}. Leave it out, or `step`."
            )
        if self.step_t is not None:
            object.__setattr__(self, "step_t", _checked_stops(self.step_t))

    @property
    def controls_steps(self) -> bool:
        """Whether it says anything about adaptive steps beside their tolerances."""
        own = (self.controller, self.first_step, self.min_step, self.max_step)
        return any(value is not None for value in own)

    @property
    def coefficients(self) -> Controller:
        """The controller that `controller` means."""
        if isinstance(self.controller, Controller):
            return self.controller
        return CONTROLLERS[self.controller or "i"]

    def __repr__(self) -> str:
        """Show the backend and what was set."""
        values = {"backend": self.backend} | {
            name: value
            for name, value in vars(self).items()
            if name != "backend" and value != _DEFAULTS.get(name)
        }
        return f"Solver({', '.join(f'{name}={value!r}' for name, value in values.items())})"


_DEFAULTS: dict[str, object] = {"max_steps": 10_000, "max_events": 1000}


@runtime_checkable
class Backend(Protocol):
    """Whoever solves. Third parties implement these four; nothing else is asked of them."""

    @property
    def name(self) -> str:
        """Name for messages and tables."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do, for tables and messages."""
        ...

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why this combination cannot be done; [] if it can.

        Called with settings that may still hold None, which must be taken as "your choice".
        """
        ...

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with settings that `resolve` has completed and `refuse` has passed.

        Failures of the solve are values (`Solution.status`); NaN stands where it did not arrive.
        """
        ...


def resolve(problem: ODEProblem, solver: Solver, backend: Backend) -> Solver:
    """Replace every None, the same way on every backend.

    Args:
        problem: What is asked.
        solver: Settings, None where the caller left the choice open.
        backend: Who will solve.

    Returns:
        The settings with method, coupling, gradient and (for adaptive steps) tolerances filled in.
    """
    dtype: torch.dtype = leaves_of(problem.y0)[0].dtype
    dtype = dtype.to_real() if dtype.is_complex else dtype
    rtol, atol = default_tolerances(dtype) if solver.step is None else (None, None)
    couplings = _COUPLINGS if problem.batched else ("shared",)
    if problem.t.dim() == 2:
        couplings = ("per_sample",)  # nothing else can follow times of each sample
    coupling = couplings[0] if len(couplings) == 1 else None
    full = _with(
        solver,
        method=solver.method or "dopri5",
        rtol=rtol if solver.rtol is None else solver.rtol,
        atol=atol if solver.atol is None else solver.atol,
        coupling=solver.coupling or coupling,
    )
    if full.coupling is None:
        full = _first_accepted(problem, backend, full, "coupling", couplings)
    if full.gradient is None:
        full = _first_accepted(problem, backend, full, "gradient", _GRADIENTS)
    return full


def default_tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute tolerance for states of a real dtype where none is given."""
    return _TOLERANCES[dtype]


def _with(solver: Solver, **values: object) -> Solver:
    """The settings with some fields replaced by values that need no check."""
    held = vars(solver)
    for name, value in values.items():
        if held[name] is not value and held[name] != value:
            break
    else:
        return solver
    copy = object.__new__(Solver)
    space = vars(copy)
    space.update(held)
    space.update(values)
    return copy


def _first_accepted(
    problem: ODEProblem, backend: Backend, solver: Solver, field: str, values: Sequence[str]
) -> Solver:
    """The settings with the first value of a field that the backend accepts.

    If there is none, the one with the fewest reasons, so that `check` reports what the caller asked
    for, and not a choice that was ours.
    """
    first = _with(solver, **{field: values[0]})
    if not (n_reasons := len(backend.refuse(problem, first))):
        return first
    fewest = (n_reasons, first)
    for value in values[1:]:
        choice = _with(solver, **{field: value})
        n_reasons = len(backend.refuse(problem, choice))
        if not n_reasons:
            return choice
        if n_reasons < fewest[0]:
            fewest = (n_reasons, choice)
    return fewest[1]


def check(
    problem: ODEProblem,
    solver: Solver,
    backend: Backend,
    others: Iterable[Backend] = (),
    asked: Solver | None = None,
) -> None:
    """Refuse a combination that cannot be honoured, before any work.

    Args:
        problem: What is asked.
        solver: Resolved settings.
        backend: Who would solve.
        others: Installed backends, to name one that can.
        asked: The settings as the caller wrote them; what they leave open another backend may
            choose otherwise.

    Raises:
        InvalidProblem: If the settings contradict the problem on any backend.
        Unsupported: If this backend cannot do it; lists every reason.
    """
    _check_fit(problem, solver)
    reasons = _reasons(problem, solver, backend)
    if not reasons:
        return
    able = [
        f"backend={other.name!r}"
        for other in others
        if other.name != backend.name
        and (Feature.TRANSFORMS in other.features or not active())
        and not _reasons(problem, _for(problem, asked or solver, other), other)
    ]
    hint = f"Can do it: {', '.join(able)}." if able else "No installed backend can, as written."
    raise Unsupported(f"backend {backend.name!r} cannot do this: {'; '.join(reasons)}. {hint}")


def _for(problem: ODEProblem, solver: Solver, other: Backend) -> Solver:
    """The settings as another backend would complete them."""
    return resolve(problem, replace(solver, backend=other), other)


def _reasons(problem: ODEProblem, solver: Solver, backend: Backend) -> list[str]:
    """The backend's own reasons, and what its features say about the problem."""
    reasons = list(backend.refuse(problem, solver))
    left_out = problem.uncontrolled or (problem.running_cost and not problem.cost_in_norm)
    if left_out and Feature.UNCONTROLLED not in backend.features:
        reasons.append("it cannot leave a part of the state or a running cost out of its norm")
    if (solver.controls_steps or solver.step_t) and Feature.STEP_CONTROL not in backend.features:
        reasons.append(
            "it takes no `controller`, `first_step`, `min_step`, `max_step` and `step_t`"
        )
    if isinstance(solver.method, Tableau) and Feature.TABLEAU not in backend.features:
        reasons.append(f"method={solver.method!r}: it has methods by name only")
    if problem.jump_t is not None and Feature.JUMPS not in backend.features:
        reasons.append("it does not restart at `jump_t`")
    if problem.event is not None and Feature.EVENTS not in backend.features:
        reasons.append("it finds no events")
    if problem.mask is not None and Feature.RAGGED not in backend.features:
        reasons.append("it takes no `mask` of times")
    if problem.dense and Feature.DENSE not in backend.features:
        reasons.append("it has no dense output")
    if leaves_of(problem.y0)[0].is_complex() and Feature.COMPLEX not in backend.features:
        reasons.append("it integrates no complex states; torch.view_as_real makes them real")
    given = (problem.y0, problem.t, problem.args, problem.params)
    if (
        active()
        and Feature.TRANSFORMS not in backend.features
        and touched(leaf for tree in given for leaf in leaves_of(tree))
    ):
        reasons.append("it cannot be used under torch.func transforms or in forward mode")
    if problem.local_error and Feature.LOCAL_ERROR not in backend.features:
        reasons.append("it has no differentiable estimate of its local error")
    return reasons


def resolved(solver: Solver, backend: Backend, method: str | None = None) -> Resolved:
    """The record of complete settings that goes into `Solution.stats`.

    Args:
        solver: The settings.
        backend: Who solved.
        method: Name of the method where it is not that of the settings.
    """
    return Resolved(
        backend=backend.name,
        method=method or str(solver.method),
        rtol=solver.rtol,
        atol=solver.atol,
        step=solver.step,
        coupling=str(solver.coupling),
        gradient=str(solver.gradient),
        max_steps=solver.max_steps,
    )


def _check_fit(problem: ODEProblem, solver: Solver) -> None:
    leaves = leaves_of(problem.y0)
    eps = torch.finfo(leaves[0].dtype).eps
    if solver.step is None and solver.rtol is not None and 0 < solver.rtol < eps:
        raise InvalidProblem(
            f"`rtol` must be above what {leaves[0].dtype} resolves ({eps:.1e}), got "
            f"{solver.rtol:g}. Loosen it, or integrate in a wider dtype."
        )
    if solver.coupling == "shared":
        if problem.t.dim() == 2:
            raise InvalidProblem(
                f"`t` of shape {list(problem.t.shape)} gives each sample its own times, which "
                "shared steps cannot follow. Use Solver(coupling='per_sample')."
            )
        return
    for i, leaf in enumerate(leaves):
        if leaf.dim() == 0 or leaf.shape[0] != leaves[0].shape[0]:
            raise InvalidProblem(
                "coupling='per_sample' needs the batch as dimension 0 of every leaf of `y0`, got "
                f"shape {list(leaf.shape)} in leaf {i}. Add the dimension, or use 'shared'."
            )


def _checked_stops(times: object) -> tuple[float, ...]:
    try:
        found = tuple(float(t) for t in cast("Iterable[float]", times))
    except (TypeError, ValueError):
        found = (math.nan,)
    if not all(math.isfinite(t) for t in found):
        raise InvalidProblem(
            f"`step_t` must be finite numbers, got {times!r}. Write step_t=(0.5, 1.0)."
        )
    return found


def _check_number(name: str, value: object, zero: bool = False) -> None:
    """Refuse what is not a finite positive number (or zero, where that makes sense)."""
    if type(value) is float and 0 < value < math.inf:
        return
    number = float(cast("float", value)) if isinstance(value, Real) else math.nan
    if value is True or value is False:
        number = math.nan
    if math.isfinite(number) and (number > 0 or (zero and number == 0)):
        return
    what = "finite and not negative" if zero else "finite and positive"
    raise InvalidProblem(f"`{name}` must be {what}, got {value!r}. Pass a float such as 1e-6.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidProblem(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}. "
            "None leaves the choice to ctflow."
        )
