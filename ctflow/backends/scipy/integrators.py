"""SciPy's solvers one step at a time, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from threading import local
from typing import Any, NamedTuple, Protocol

import numpy as np

from ctflow.backends.scipy.library import SOLVERS, ode
from ctflow.backends.scipy.slope import Array, Guarded
from ctflow.errors import Unsupported

__all__ = ["METHODS", "Integrator", "Method", "Task", "begin"]

_FLOOR = 100 * float(np.finfo(np.float64).eps)  # below, SciPy warns and takes this


class Method(NamedTuple):
    """What is to be known of a method.

    Attributes:
        stages: Evaluations of one attempted step; 0 where SciPy does not tell.
        newton: Whether it solves its equations by Newton's method, with a dense Jacobian.
        rms: Whether its norm is the root mean square of all variables; else it is the largest.
    """

    stages: int
    newton: bool
    rms: bool = True


METHODS = {
    "dopri5": Method(stages=6, newton=False),
    "bosh3": Method(stages=3, newton=False),
    "dop853": Method(stages=12, newton=False),
    "adams": Method(stages=0, newton=False),
    "lsoda": Method(stages=0, newton=True, rms=False),
    "bdf": Method(stages=0, newton=True),
    "radau": Method(stages=0, newton=True),
}


class Task(NamedTuple):
    """What one integrator is to do.

    Attributes:
        method: A key of `METHODS`.
        slope: The right-hand side.
        t0: Start.
        t1: End, beyond which nothing is evaluated.
        z0: State at the start, [n].
        rtol: Relative tolerance, a number or [n].
        atol: Absolute tolerance, [n].
        first: Size of the first step of a method with stages, or None for SciPy's choice.
        exact: Whether the slope's own Jacobian is used, not differences.
    """

    method: str
    slope: Guarded
    t0: float
    t1: float
    z0: Array
    rtol: float | Array
    atol: Array
    first: float | None
    exact: bool


class Integrator(Protocol):
    """A solver between two steps.

    Attributes:
        t: Where it stands.
        z: State there, [n].
        t_old: Where the last step began.
        size: Size of the next step; of the last one where SciPy keeps it to itself.
        n_attempts: Attempted steps so far; accepted ones where SciPy does not tell.
    """

    t: float
    z: Array
    t_old: float

    @property
    def size(self) -> float:
        """Size of the next step."""
        ...

    @property
    def n_attempts(self) -> int:
        """Attempted steps."""
        ...

    def step(self) -> bool:
        """Take one step; False if it gave up."""
        ...

    def between(self) -> Callable[[float], Array]:
        """State [n] at any time within the last step, also when others have followed."""
        ...


def begin(task: Task) -> Integrator:
    """The integrator for a task, at its start."""
    return _Vode(task) if task.method == "adams" else _Stepwise(task)


class _Running(local):
    """Methods whose C code is at work in this thread."""

    def __init__(self) -> None:
        self.methods: set[str] = set()


_running = _Running()


@contextmanager
def _alone(method: str) -> Generator[None]:
    """Refuse a step of LSODA within one of LSODA, and of VODE within one of VODE.

    Their C code keeps the function that it calls in one place for each thread, so that a solve
    inside `f` would put its own there, and leave none (measured with SciPy 1.17.1).

    Raises:
        Unsupported: If there is one.
    """
    if method in _running.methods:
        raise Unsupported(
            f"a solve with method={method!r} cannot stand inside the `f` of another: SciPy's code "
            "for it is not reentrant. Use another method for one of the two."
        )
    _running.methods.add(method)
    try:
        yield
    finally:
        _running.methods.discard(method)


class _Stepwise:
    """A class of `scipy.integrate` with `step` and `dense_output`."""

    def __init__(self, task: Task) -> None:
        method = METHODS[task.method]
        settings: dict[str, Any] = {
            "rtol": np.maximum(task.rtol, _FLOOR),
            "atol": task.atol,
        }
        if method.newton:
            settings["jac"] = task.slope.jacobian if task.exact else None
        elif task.first is not None:
            settings["first_step"] = min(task.first, abs(task.t1 - task.t0))
        self._count = _Count(task.slope)
        self._stages = method.stages
        self._alone = (lambda: _alone("lsoda")) if task.method == "lsoda" else nullcontext
        self._solver = SOLVERS[task.method](
            self._count, task.t0, task.z0.copy(), task.t1, **settings
        )
        self.t, self.z, self.t_old = task.t0, task.z0, task.t0
        self.n_attempts = 0
        self.size = float(self._solver.h_abs) if method.stages else abs(task.t1 - task.t0)

    def step(self) -> bool:
        """Take one step."""
        before = self._count.n
        with self._alone():
            self._solver.step()
        taken = self._count.n - before
        self.n_attempts += max(1, -(-taken // self._stages)) if self._stages else 1
        if self._solver.status == "failed":
            self.size = float(np.spacing(abs(self.t)))
            return False
        self.t_old, self.t, self.z = self.t, float(self._solver.t), np.array(self._solver.y)
        self.size = float(self._solver.h_abs) if self._stages else abs(self.t - self.t_old)
        return True

    def between(self) -> Callable[[float], Array]:
        """The method's own interpolant."""
        return self._solver.dense_output()


class _Count:
    """A slope that counts its calls."""

    def __init__(self, slope: Guarded) -> None:
        self._slope = slope
        self.n = 0

    def __call__(self, t: float, z: Array) -> Array:
        """Evaluate it."""
        self.n += 1
        return self._slope(t, z)


class _Vode:
    """VODE's Adams-Moulton method of order 1 to 12, its equations solved by fixed-point iteration.

    `scipy.integrate.ode` offers no single step that keeps inside an interval and no interpolant.
    VODE has both: with ITASK = 5 it takes one step and never passes TCRIT = RWORK(1), and RWORK
    holds the Nordsieck array, whose column j is h^j / j! times the j-th derivative.

    Source:
        P. N. Brown, G. D. Byrne, A. C. Hindmarsh, "VODE: a variable-coefficient ODE solver", SIAM
        J. Sci. Stat. Comput. 10 (1989); the comments of its source for ITASK, RWORK and IWORK.
    """

    _ONE_STEP_WITHIN = 5  # ITASK

    def __init__(self, task: Task) -> None:
        self._solver = ode(task.slope)
        self._solver.set_integrator("vode", method="adams", rtol=task.rtol, atol=task.atol)
        self._solver.set_initial_value(task.z0.copy(), task.t0)
        self._vode = self._solver._integrator
        self._vode.rwork[0] = task.t1  # TCRIT
        self._vode.call_args[2] = self._ONE_STEP_WITHIN
        self._t1 = task.t1
        self.t, self.z, self.t_old = task.t0, task.z0, task.t0

    @property
    def size(self) -> float:
        """Size of the next step."""
        return abs(float(self._vode.rwork[11]))  # HCUR

    @property
    def n_attempts(self) -> int:
        """Steps, failures of the error test and failures of the iteration."""
        n_steps, n_unsolved, n_wrong = (int(self._vode.iwork[i]) for i in (10, 20, 21))
        return n_steps + n_unsolved + n_wrong

    def step(self) -> bool:
        """Take one step."""
        with _alone("adams"):
            z, t = self._vode.run(
                self._solver.f, lambda: None, self._solver._y, self.t, self._t1, (), ()
            )
        self._solver._y = z
        if self._vode.istate < 0:
            return False
        self.t_old, self.t, self.z = self.t, float(t), np.array(z)
        return True

    def between(self) -> Callable[[float], Array]:
        """The polynomial that the Nordsieck array stands for."""
        order = int(self._vode.iwork[13])  # NQU
        columns = self._vode.rwork[20 : 20 + (order + 1) * len(self.z)]
        return _Nordsieck(
            self.t, float(self._vode.rwork[10]), columns.reshape(order + 1, -1).copy()
        )


class _Nordsieck(NamedTuple):
    """The polynomial  sum_j column_j ((t - end) / h)^j."""

    end: float
    h: float
    columns: Array

    def __call__(self, t: float) -> Array:
        """Evaluate it."""
        return ((t - self.end) / self.h) ** np.arange(len(self.columns)) @ self.columns
