"""The two functions of torchdiffeq that are used, or one sentence that says how to get them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctflow.errors import BackendUnavailable

try:
    import torchdiffeq
except ImportError as error:
    raise BackendUnavailable(
        "backend 'torchdiffeq' needs the library of that name, which cannot be imported: "
        f"{error}. Run `pip install torchdiffeq`."
    ) from error

__all__ = ["odeint", "odeint_adjoint"]

odeint: Callable[..., Any] = torchdiffeq.odeint
odeint_adjoint: Callable[..., Any] = torchdiffeq.odeint_adjoint
