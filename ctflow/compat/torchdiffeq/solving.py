"""A request as a problem and settings of ctflow, and its solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends import registry
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import Control, Fixed
from ctflow.backends.native.step import FlatField
from ctflow.backends.native.stops import Sided, Stops
from ctflow.backends.protocol import Backend, Gradient, Solver, Tolerances
from ctflow.compat.torchdiffeq.calls import Callbacks, Calls
from ctflow.compat.torchdiffeq.control import AsTorchdiffeq, GivenGrid, Limit
from ctflow.compat.torchdiffeq.methods import ADAPTIVE, on_grid
from ctflow.compat.torchdiffeq.norms import flat_norm
from ctflow.compat.torchdiffeq.options import AdaptiveOptions, GridOptions, ScipyOptions
from ctflow.compat.torchdiffeq.request import Request
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.event import Event
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed
from ctflow.state import widest

__all__ = ["MOST_TO_EVENT", "beside", "grid_of", "problem_of", "size_to_event", "solve"]

_ENDLESS = 2**31 - 1  # torchdiffeq has no limit of its own
MOST_TO_EVENT = 20_000  # its limit on the way to an event, there for steps of one size alone


def solve(
    request: Request,
    gradient: Gradient,
    *,
    params: Sequence[Tensor] | None = None,
    event: Event | None = None,
    dense: bool = False,
    backward: Tolerances | None = None,
) -> Solution:
    """Solve a request whose method is one of ctflow's.

    Args:
        request: What is asked.
        gradient: How it is differentiated.
        params: Tensors wanted a gradient for beyond what ctflow finds.
        event: Where to stop.
        dense: Whether the course between the ends is wanted.
        backward: Tolerances of the adjoint.

    Raises:
        Unsupported: If the method cannot do it.
        SolveFailed: If the end was not reached.
    """
    backend, method, most = _backend(request, event is not None)
    problem = problem_of(request, params, event, dense)
    settings = Solver(
        backend=backend,
        method=method,
        rtol=_largest(request.rtol),
        atol=_largest(request.atol),
        coupling="shared",
        gradient=gradient,
        backward=backward,
        max_steps=most,
        step_t=_step_t(request),
    )
    reasons = backend.refuse(problem, settings)
    if event is not None and request.kind == "scipy":
        reasons.append("it finds no events; take dopri5")
    if reasons:
        raise Unsupported(f"method={request.method!r} cannot do this: {'; '.join(reasons)}.")
    return raise_if_failed(backend.solve(problem, settings))


def problem_of(
    request: Request,
    params: Sequence[Tensor] | None = None,
    event: Event | None = None,
    dense: bool = False,
) -> ODEProblem:
    """The request as a problem of ctflow; checks state and times."""
    return ODEProblem(
        request.func,
        cast("Any", request.y0),
        request.t,
        None if params is None else tuple(params),
        jump_t=_jumps(request) if request.kind in ("adaptive", "runge_kutta") else None,
        dense=dense,
        event=event,
    )


def grid_of(request: Request) -> Tensor:
    """Times to step on, [K], both ends among them, in the dtype of `t`."""
    options, t = cast("GridOptions", request.options), request.t.detach()
    if options.step_size is not None:
        ahead = request.direction * options.step_size
        n = int(torch.ceil((t[-1] - t[0]) / ahead + 1))
        nodes = torch.arange(n, dtype=t.dtype, device=t.device) * ahead + t[0]
        return torch.cat([nodes[:-1], t[-1:]])
    if options.grid_constructor is None:
        return t
    nodes = options.grid_constructor(request.func, request.y0, t)
    fits = isinstance(nodes, Tensor) and nodes.dim() == 1 and len(nodes) > 1  # pyright: ignore[reportUnnecessaryIsInstance]
    nodes = nodes.detach().to(t) if fits else nodes
    if not fits or bool(nodes[0] != t[0]) or bool(nodes[-1] != t[-1]):
        raise InvalidProblem(
            "`grid_constructor` must return a tensor of one dimension from t[0] to t[-1], got "
            f"{nodes!r:.80} for t from {float(t[0]):g} to {float(t[-1]):g}."
        )
    if not bool((nodes.diff() * request.direction > 0).all()):
        raise InvalidProblem(
            f"`grid_constructor` must return a strictly monotone grid, got {nodes.tolist()!r:.80}."
        )
    return nodes


def _backend(request: Request, to_event: bool) -> tuple[Backend, str, int]:
    """Who solves, the method's name there, and the limit of steps."""
    options, layout = request.options, request.layout
    if isinstance(options, ScipyOptions):
        return registry.get("scipy"), options.solver, _ENDLESS
    calls = None if request.callbacks == Callbacks() else Calls(request.callbacks, layout)
    if isinstance(options, AdaptiveOptions):
        most = options.max_num_steps
        limit = None if most == _ENDLESS else Limit(most, request.t.detach().cpu())
        control: Control = AsTorchdiffeq(
            request.rtol,
            request.atol,
            options.safety,
            options.dfactor,
            options.ifactor,
            least=options.min_step,
            most=options.max_step,
            first_size=options.first_step,
            norm=flat_norm(options.norm, layout),
            calls=calls,
            limit=limit,
        )
        bound = MOST_TO_EVENT if to_event and limit is None else _ENDLESS
        return NativeBackend(ADAPTIVE[request.method], control), request.method, bound
    tableau = on_grid(request.method, options.interp)
    if to_event:
        control = Fixed(size_to_event(options))
        return NativeBackend(tableau, control), request.method, MOST_TO_EVENT
    control = GivenGrid(grid_of(request).to(widest(request.t.device)), calls)
    return NativeBackend(tableau, control), request.method, _ENDLESS


def size_to_event(options: GridOptions) -> float:
    """Size of the steps on the way to an event.

    Raises:
        InvalidProblem: If there is none.
        Unsupported: If times beside grid points are asked for.
    """
    if options.step_size is None:
        raise InvalidProblem(
            "an event needs `step_size` in the options of a method with given steps, got none: "
            "only the first of the times counts then. Give options={'step_size': 0.01}."
        )
    if options.perturb:
        raise Unsupported(
            "the option perturb=True is not honoured on the way to an event, whose grid has no "
            "end. Leave it out, or take an adaptive method with `jump_t`."
        )
    return options.step_size


def beside(request: Request, flat: Field, *, after: bool) -> FlatField:
    """f on flat tensors, times of jumps and of a perturbed grid evaluated after them, or before."""
    jumps = _jumps(request)
    if jumps is None:
        return flat
    times = jumps.to(request.t.device, widest(request.t.device))
    ahead = times.new_tensor([request.direction if after else -request.direction])
    return Sided(flat, Stops(times, times), ahead)


def _jumps(request: Request) -> Tensor | None:
    """Times at which f is not to be seen."""
    options = request.options
    if isinstance(options, AdaptiveOptions):
        return options.jump_t
    return grid_of(request) if isinstance(options, GridOptions) and options.perturb else None


def _step_t(request: Request) -> tuple[float, ...] | None:
    options = request.options
    if isinstance(options, AdaptiveOptions) and options.step_t is not None:
        return tuple(options.step_t.tolist())
    return None


def _largest(tolerance: float | Tensor) -> float:
    return float(tolerance.max()) if isinstance(tolerance, Tensor) else tolerance
