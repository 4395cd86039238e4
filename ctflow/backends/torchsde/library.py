"""What is used of torchsde, or one sentence that says how to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctflow.errors import BackendUnavailable

try:
    import torchsde
except ImportError as error:
    raise BackendUnavailable(
        "backend 'torchsde' needs the library of that name, which cannot be imported: "
        f"{error}. Run `pip install torchsde`."
    ) from error

__all__ = ["BrownianInterval", "sdeint", "sdeint_adjoint"]

sdeint: Callable[..., Any] = torchsde.sdeint
sdeint_adjoint: Callable[..., Any] = torchsde.sdeint_adjoint
BrownianInterval: Callable[..., Any] = torchsde.BrownianInterval
