"""The four functions that programs written for torchdiffeq call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctflow.compat.torchdiffeq.adjoint import solve_adjoint, solve_adjoint_event
from ctflow.compat.torchdiffeq.backward import Backward
from ctflow.compat.torchdiffeq.events import EventFn, checked_event, find, stacked
from ctflow.compat.torchdiffeq.request import Request, asked
from ctflow.compat.torchdiffeq.solving import solve
from ctflow.compat.torchdiffeq.trajectory import trajectory
from ctflow.dense import DenseSolution
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.state import map_leaves

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

_reached: ContextVar[list[bool] | None] = ContextVar("_reached", default=None)


def odeint(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401 - a tensor or a tuple of tensors, and so is what comes back
    t: Tensor,
    *,
    rtol: Any = 1e-7,  # noqa: ANN401 - a number, a tensor, or a tuple of them
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: EventFn | None = None,
) -> Any:  # noqa: ANN401
    """Integrate  dy/dt = func(t, y)  from y0 at t[0], and differentiate through the solver.

    Args:
        func: The dynamics; `t` arrives 0-dim in the dtype of `y`.
        y0: Initial state: a tensor, or a tuple of tensors.
        t: Output times, [T], strictly monotone, either direction.
        rtol: Relative tolerance; also one for each element, or for each part of a tuple.
        atol: Absolute tolerance, in units of `y0`; likewise.
        method: A name of torchdiffeq's; None for dopri5.
        options: Its options; what is not honoured raises.
        event_fn: `event_fn(t, y)`: the solve ends where any of its values changes sign. Of the
            times only the first counts then; the second shows the direction.

    Returns:
        The states, [T, *shape], in a tuple where `y0` is one; with `event_fn` the event's time,
        0-dim, and the states at start and event. Differentiable with respect to `y0`, `t` and
        whatever `func` and `event_fn` reach, the event's time included.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If torchdiffeq has it and ctflow has not.
        SolveFailed: If the last time, or an event, was not reached.

    Example:
        >>> import torch
        >>> t = torch.linspace(0., 1., 3)
        >>> odeint(lambda t, y: -y, torch.ones(2), t, method="rk4").shape
        torch.Size([3, 2])
    """
    request = _noted(asked(func, y0, t, rtol, atol, method, options))
    if event_fn is not None:
        found = find(request, checked_event(request, event_fn), "direct")
        return found[0].to(request.t), stacked(request.y0, found[1])
    if len(request.t) == 1:
        return _alone(request)
    return trajectory(request)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401
    t: Tensor,
    *,
    rtol: Any = 1e-7,  # noqa: ANN401
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: EventFn | None = None,
    adjoint_rtol: Any = None,  # noqa: ANN401
    adjoint_atol: Any = None,  # noqa: ANN401
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:  # noqa: ANN401
    """Integrate  dy/dt = func(t, y), and differentiate by the adjoint equation, solved backwards.

    Args:
        func: The dynamics.
        y0: Initial state: a tensor, or a tuple of tensors.
        t: Output times, [T].
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        method: A name of torchdiffeq's; None for dopri5.
        options: Its options.
        event_fn: As for `odeint`.
        adjoint_rtol: Relative tolerance of the backward solve; None: as forward.
        adjoint_atol: Absolute tolerance, in units of the gradient; None: as forward.
        adjoint_method: Its method; None: as forward.
        adjoint_options: Its options; None: as forward, without `norm`. {"norm": "seminorm"} leaves
            the parameters' gradient out of the error norm; a function gets
            (t, *y, *adjoint of y, *adjoints of the parameters).
        adjoint_params: Tensors that get a gradient even if `func` does not reach them (zero then),
            and those of the norm. Whatever else `func` reaches gets its gradient too.

    Returns:
        As `odeint`.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If torchdiffeq has it and ctflow has not.
        SolveFailed: If the last time, or an event, was not reached; in the backward pass too.

    Cost:
        Memory of the outputs. Backward: one evaluation of `func` and one vector-Jacobian product
        for each stage of each step, and two at each output time that has a gradient.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), Algorithms 1 and 2.

    Example:
        >>> import torch
        >>> field = torch.nn.Linear(2, 2)
        >>> t = torch.tensor([0., 1.])
        >>> y = odeint_adjoint(lambda t, y: field(y), torch.ones(2), t)
        >>> y[-1].sum().backward()
        >>> field.weight.grad.shape
        torch.Size([2, 2])
    """
    request = _noted(asked(func, y0, t, rtol, atol, method, options))
    if adjoint_params is None and isinstance(func, nn.Module):
        adjoint_params = func.parameters()
    if adjoint_method not in (None, method) and options and adjoint_options is None:
        raise InvalidProblem(
            f"`adjoint_options` must be given where `adjoint_method` ({adjoint_method!r}) is not "
            f"`method` ({method!r}) and `options` are given, got None. Write adjoint_options={{}}."
        )
    if adjoint_options is None:
        adjoint_options = {k: v for k, v in (options or {}).items() if k != "norm"}
    backward = Backward.of(
        request,
        (
            rtol if adjoint_rtol is None else adjoint_rtol,
            atol if adjoint_atol is None else adjoint_atol,
        ),
        method if adjoint_method is None else adjoint_method,
        adjoint_options,
        tuple(adjoint_params or ()),
    )
    if event_fn is not None:
        found = solve_adjoint_event(request, checked_event(request, event_fn), backward)
        return found[0].to(request.t), stacked(request.y0, found[1])
    if len(request.t) == 1:
        return _alone(request)
    return solve_adjoint(request, backward)


def odeint_event(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401
    t0: Tensor,
    *,
    event_fn: EventFn,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Integrate from y0 at t0 to the first event; its time and state are differentiable.

    Args:
        func: The dynamics.
        y0: Initial state.
        t0: Its time, 0-dim.
        event_fn: `event_fn(t, y)`: the solve ends where any of its values changes sign.
        reverse_time: Whether time runs down.
        odeint_interface: `odeint`, `odeint_adjoint`, or a function that calls one of them.
        kwargs: Handed to it.

    Returns:
        The event's time, 0-dim, and the states at start and event, [2, *shape].

    Raises:
        Unsupported: If `odeint_interface` did not call one of this module's functions.
        SolveFailed: If there is no event.

    Source:
        Chen, Amos, Nickel 2021 (arXiv 2011.03902).

    Example:
        >>> import torch
        >>> t, y = odeint_event(lambda t, y: torch.ones_like(y), torch.zeros(1).double(),
        ...                     torch.tensor(0.).double(), event_fn=lambda t, y: y[0] - 3.)
        >>> round(float(t), 9)
        3.0
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(f"`t0` must be a tensor of one number, got {t0!r:.60}.")
    ahead = -1.0 if reverse_time else 1.0
    t = torch.cat([t0.reshape(-1), t0.reshape(-1).detach() + ahead])
    reached: list[bool] = []
    token = _reached.set(reached)
    try:
        event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    finally:
        _reached.reset(token)
    if not reached:
        raise Unsupported(
            "`odeint_interface` must end in `odeint` or `odeint_adjoint` of this module, whose "
            "event times carry their gradient, got a function that called neither. Pass one."
        )
    return event_t, solution


def odeint_dense(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,  # noqa: ANN401
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> DenseSolution:
    """Integrate from t0 to t1 and return the solution as a function of time.

    Args:
        func: The dynamics.
        y0: Initial state.
        t0: Its time.
        t1: The other end, on either side.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        method: A method that adapts its steps; None for dopri5.
        options: Its options.

    Returns:
        `sol(t)` at any time between, or several; outside it raises.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: For a method on a given grid.

    Example:
        >>> import torch
        >>> sol = odeint_dense(lambda t, y: -y, torch.ones(1), torch.tensor(0.), torch.tensor(1.))
        >>> round(float(sol(0.5)), 5)
        0.60653
    """
    ends = [x if isinstance(x, Tensor) else torch.tensor(float(x)).double() for x in (t0, t1)]
    t = torch.stack([x.reshape(()).to(ends[0]) for x in ends])
    request = _noted(asked(func, y0, t, rtol, atol, method, options))
    if request.kind != "adaptive":
        raise Unsupported(
            f"odeint_dense is for methods that adapt their steps, got {request.method!r}; "
            "torchdiffeq has dopri5 alone. Take dopri5."
        )
    return cast("DenseSolution", solve(request, "direct", dense=True).dense)


def _noted(request: Request) -> Request:
    """The request, noted for an `odeint_event` around it."""
    reached = _reached.get()
    if reached is not None:
        reached.append(True)
    return request


def _alone(request: Request) -> Any:  # noqa: ANN401
    """The state at the one time that is asked for: no solve."""
    return map_leaves(lambda x: x.unsqueeze(0).clone(), request.y0)
