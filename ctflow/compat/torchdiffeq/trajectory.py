"""States at the output times of a request, by whoever has its method."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ctflow.compat.torchdiffeq.grid import course
from ctflow.compat.torchdiffeq.request import Request, State
from ctflow.compat.torchdiffeq.solving import solve

__all__ = ["last", "trajectory"]


def trajectory(request: Request) -> State:
    """States at the output times, differentiable through the solver; scipy's by the adjoint.

    Raises:
        Unsupported: If the method cannot do it.
        SolveFailed: If the last time was not reached.
    """
    if request.kind in ("adams", "implicit"):
        return cast("State", course(request))
    return solve(request, "adjoint" if request.kind == "scipy" else "direct").y


def last(y: Any) -> Any:  # noqa: ANN401
    """The last state of outputs."""
    return y[-1] if isinstance(y, Tensor) else tuple(part[-1] for part in y)
