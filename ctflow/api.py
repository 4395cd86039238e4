"""The functions users call: thin, one return type each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ctflow.backends import registry
from ctflow.backends.cost import split_cost, with_cost
from ctflow.backends.protocol import Backend, Gradient, Solver, check, resolve
from ctflow.backends.tableau import Tableau
from ctflow.dense import DenseSolution
from ctflow.errors import CtflowError, InvalidProblem, Unsupported
from ctflow.event import Event, EventRecord
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed
from ctflow.state import State, leaves_of, map_leaves

__all__ = ["as_solver", "compile_ahead", "odeint", "odeint_dense", "odeint_event", "solve"]

S = TypeVar("S", bound="State")


def odeint(
    f: Any,  # noqa: ANN401 - any callable; ODEProblem checks it
    y0: S,
    t: Tensor | Sequence[float],
    *,
    backend: str | Backend | None = None,
    method: str | Tableau | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    gradient: Gradient | None = None,
    solver: Solver | str | None = None,
    args: Any = None,  # noqa: ANN401 - handed to f as it is
    params: Iterable[Tensor] | None = None,
    jump_t: Tensor | Sequence[float] | None = None,
    event: Event | Sequence[Event] | None = None,
) -> S:
    """Integrate  dy/dt = f(t, y)  from y0 at t[0] and return the state at every t.

    Args:
        f: The dynamics, `f(t, y)`, or `f(t, y, args)` where `args` is given.
        y0: Initial state at `t[0]`: a tensor, or tensors in tuples, lists and dicts.
        t: Output times, [T], strictly monotone, either direction.
        backend: Who solves: "native", "torchdiffeq", any installed plug-in, or a backend object.
        method: "dopri5" and the like, or a `Tableau` of your own.
        rtol: Relative tolerance.
        atol: Absolute tolerance, in units of `y`.
        gradient: "direct", "checkpointed" or "adjoint".
        solver: A `Solver` with all settings (fixed step, coupling, limits), or a backend's name;
            the keywords above replace its fields.
        args: Third argument of `f`; gradients reach its tensors.
        params: Tensors wanted a gradient for that ctflow could not find by itself.
        jump_t: Times at which `f` is discontinuous; see `ODEProblem`.
        event: Events on the way, which may change the state or end the solve; see `ODEProblem`.
            `odeint_event` returns their times.

    Returns:
        The structure of `y0`, each leaf [T, *shape]; entry 0 is `y0`. Differentiable with respect
        to `y0`, `t`, `args`, `params` and whatever `f` reaches.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend here.
        SolveFailed: If any sample did not reach the last time; carries the partial `Solution`.

    Example:
        >>> import torch
        >>> y = odeint(lambda t, y: -y, torch.tensor([1.0, 2.0]), [0.0, 1.0])
        >>> y.shape
        torch.Size([2, 2])
    """
    # ODEProblem turns numbers and iterables into tensors and tuples.
    problem = ODEProblem(f, y0, t, params, args, jump_t=jump_t, event=event)  # pyright: ignore[reportArgumentType]
    settings = _settings(
        solver, backend=backend, method=method, rtol=rtol, atol=atol, gradient=gradient
    )
    return raise_if_failed(solve(problem, settings)).y


def odeint_dense(
    f: Any,  # noqa: ANN401 - any callable; ODEProblem checks it
    y0: State,
    t: Tensor | Sequence[float],
    *,
    backend: str | Backend | None = None,
    method: str | Tableau | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    gradient: Gradient | None = None,
    solver: Solver | str | None = None,
    args: Any = None,  # noqa: ANN401 - handed to f as it is
    params: Iterable[Tensor] | None = None,
    jump_t: Tensor | Sequence[float] | None = None,
) -> DenseSolution:
    """Integrate  dy/dt = f(t, y)  from y0 at t[0] to t[-1] and return the solution as a function.

    Args:
        f: The dynamics, `f(t, y)`, or `f(t, y, args)` where `args` is given.
        y0: Initial state at `t[0]`: a tensor, or tensors in tuples, lists and dicts.
        t: Start and end, [2]; or [B, 2], a row for each sample.
        backend: Who solves; a backend without dense output refuses.
        method: "dopri5" and the like: its own interpolant is what comes back.
        rtol: Relative tolerance.
        atol: Absolute tolerance, in units of `y`.
        gradient: "direct" or "checkpointed".
        solver: A `Solver`, or a backend's name; the keywords above replace its fields.
        args: Third argument of `f`; gradients reach its tensors.
        params: Tensors wanted a gradient for that ctflow could not find by itself.
        jump_t: Times at which `f` is discontinuous; see `ODEProblem`.

    Returns:
        `sol`, with `sol(t)` and `sol.derivative(t)` at any time between, differentiable with
        respect to t, `y0`, `t[0]`, `args`, `params` and whatever `f` reaches.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend here.
        SolveFailed: If any sample did not reach the last time.

    Cost:
        Memory of the state and of every stage of each step; for methods whose interpolant takes
        further stages, these at every step.

    Example:
        >>> import torch
        >>> sol = odeint_dense(lambda t, y: -y, torch.ones(1).double(), [0.0, 2.0], rtol=1e-8)
        >>> round(float(sol(1.0)), 6), round(float(sol.derivative(1.0)), 6)
        (0.367879, -0.367879)
    """
    problem = ODEProblem(f, y0, t, params, args, jump_t=jump_t, dense=True)  # pyright: ignore[reportArgumentType]
    settings = _settings(
        solver, backend=backend, method=method, rtol=rtol, atol=atol, gradient=gradient
    )
    dense = raise_if_failed(solve(problem, settings)).dense
    if dense is None:
        raise Unsupported(
            f"backend {settings.backend!r} returned no dense output, although it says it has it. "
            "Use backend='native'."
        )
    return dense


def odeint_event(
    f: Any,  # noqa: ANN401 - any callable; ODEProblem checks it
    y0: State,
    t: Tensor | Sequence[float],
    event: Event | Sequence[Event],
    *,
    backend: str | Backend | None = None,
    method: str | Tableau | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    gradient: Gradient | None = None,
    solver: Solver | str | None = None,
    args: Any = None,  # noqa: ANN401 - handed to f as it is
    params: Iterable[Tensor] | None = None,
    jump_t: Tensor | Sequence[float] | None = None,
) -> EventRecord:
    """Integrate  dy/dt = f(t, y)  from y0 at t[0] through events, to t[-1] or a terminal one.

    Args:
        f: The dynamics, `f(t, y)`, or `f(t, y, args)` where `args` is given.
        y0: Initial state at `t[0]`: a tensor, or tensors in tuples, lists and dicts.
        t: Start and the latest end, [2]; or [B, 2], a row for each sample; either direction.
        event: An `Event`, or several in a list.
        backend: Who solves; a backend without events refuses.
        method: "dopri5" and the like, or a `Tableau` of your own.
        rtol: Relative tolerance.
        atol: Absolute tolerance, in units of `y`.
        gradient: "direct", "checkpointed" or "adjoint".
        solver: A `Solver`, or a backend's name; the keywords above replace its fields.
        args: Third argument of `f` and of the events' functions; gradients reach its tensors.
        params: Tensors wanted a gradient for that `f` uses and ctflow could not find by itself.
        jump_t: Times at which `f` is discontinuous; see `ODEProblem`.

    Returns:
        Every event in order, and where each sample ended. Where the terminal event was not reached,
        `ended_by` is -1 and the end is the last time. Times and states are differentiable with
        respect to `y0`, `t`, `args`, `params`, and whatever `f`, the event functions and the
        changes reach. `solve` with `ODEProblem(event=...)` has the states at output times beside.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend here.
        SolveFailed: If any sample failed; grazing contact and too many events are failures.

    Cost:
        Each step twice; at each step four evaluations of each event function and one derivative of
        it; some steps more at each event.

    Source:
        Chen, Amos, Nickel 2021 (arXiv 2011.03902).

    Example:
        >>> import torch
        >>> height = torch.tensor(4.905, dtype=torch.float64, requires_grad=True)
        >>> fall = lambda t, y: torch.stack([y[1], -9.81 + 0 * y[1]])
        >>> ball = torch.stack([height, 0 * height])
        >>> found = odeint_event(fall, ball, [0.0, 5.0], Event(lambda t, y: y[0]))
        >>> round(found.t.item(), 6)  # sqrt(2 height / g)
        1.0
        >>> found.t.sum().backward()
        >>> round(height.grad.item(), 6)  # 1 / sqrt(2 height g)
        0.101937
    """
    problem = ODEProblem(f, y0, t, params, args, jump_t=jump_t, event=event)  # pyright: ignore[reportArgumentType]
    if problem.event is None:
        raise InvalidProblem("`event` must be an Event, got None. Use odeint to solve without one.")
    settings = _settings(
        solver, backend=backend, method=method, rtol=rtol, atol=atol, gradient=gradient
    )
    record = raise_if_failed(solve(problem, settings)).event
    if record is None:
        raise Unsupported(
            f"backend {settings.backend!r} returned no events, although it says it finds them. "
            "Use backend='native'."
        )
    return record


def _settings(solver: Solver | str | None, **given: Any) -> Solver:  # noqa: ANN401
    """The solver with the keywords that were given in the place of its fields."""
    settings = as_solver(solver)
    given = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **given) if given else settings


def solve(problem: ODEProblem, solver: Solver | str | None = None) -> Solution:
    """Solve a problem and return all that was found out; failures are values.

    Args:
        problem: What is asked.
        solver: How: a `Solver`, the name of a backend, or None for the defaults.

    Returns:
        A `Solution`, with `cost` if the problem has a running cost. Where a sample failed, `status`
        says so and `y` holds NaN from there on.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend here.

    Example:
        >>> import torch
        >>> problem = ODEProblem(lambda t, y: y**2, torch.tensor([1.0]), [0.0, 2.0])
        >>> solution = solve(problem)  # y = 1 / (1 - t) blows up at t = 1
        >>> solution.ok, bool(solution.y[1].isnan())
        (False, True)
    """
    if not isinstance(problem, ODEProblem):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(
            f"`problem` must be an ODEProblem, got {type(problem).__name__}. "
            "Build one, or call odeint(f, y0, t)."
        )
    settings = as_solver(solver)
    backend = registry.get(settings.backend)
    full = resolve(problem, settings, backend)
    try:
        check(problem, full, backend)
    except InvalidProblem:
        raise
    except CtflowError:  # say who could: the other backends are imported only now
        others = [registry.get(name) for name in registry.available()]
        check(problem, full, backend, others, settings)
    if problem.running_cost is None:
        return backend.solve(problem, full)
    return split_cost(backend.solve(with_cost(problem, full.coupling == "per_sample"), full))


def compile_ahead(
    problem: ODEProblem, solver: Solver | str = "compiled", *, gradient: bool = True
) -> float:
    """Make the programs of a solve and of its gradient now: a solve and a backward pass, unseen.

    A program serves every value of the state, the parameters, the times and the tolerances, so one
    call before training, with a state of the shape that will come, is enough.

    Args:
        problem: As it will be solved.
        solver: As it will be solved.
        gradient: Whether a gradient will be taken.

    Returns:
        Seconds that it took.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend, or no C++ compiler, here.

    Cost:
        For `backend="compiled"` some tens of seconds a program, once a machine: programs are kept
        in `CTFLOW_CACHE_DIR`, and loaded in a second or two. For others that of the solve.

    Example:
        >>> import torch
        >>> problem = ODEProblem(lambda t, y: -y, torch.ones(3), [0.0, 1.0])
        >>> seconds = compile_ahead(problem, "native")
    """
    began = time.perf_counter()
    if not isinstance(problem, ODEProblem):  # pyright: ignore[reportUnnecessaryIsInstance]
        solve(problem, solver)  # which says what is wrong
    with torch.set_grad_enabled(gradient):
        y0 = map_leaves(lambda x: x.detach().requires_grad_(gradient), problem.y0)
        solution = solve(replace(problem, y0=y0), solver)
        if gradient:
            ends = [x[-1].sum() for x in leaves_of(solution.y)]
            torch.autograd.grad(torch.stack(ends).sum(), leaves_of(y0), allow_unused=True)
    return time.perf_counter() - began


def as_solver(solver: Solver | str | None) -> Solver:
    """The settings meant by a `Solver`, a backend's name, or None.

    Raises:
        InvalidProblem: If it is none of these.
    """
    if solver is None:
        return Solver()
    if isinstance(solver, str):
        return Solver(backend=solver)
    if not isinstance(solver, Solver):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(
            f"`solver` must be a Solver or the name of a backend, got {type(solver).__name__}. "
            "Write Solver(backend=..., rtol=...)."
        )
    return solver
