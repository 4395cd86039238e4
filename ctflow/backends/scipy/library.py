"""What of SciPy is used, or one sentence that says how to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctflow.errors import BackendUnavailable

try:
    import scipy
    from scipy import integrate
except ImportError as error:
    raise BackendUnavailable(
        "backend 'scipy' needs the library of that name, which cannot be imported: "
        f"{error}. Run `pip install scipy`."
    ) from error

__all__ = ["SOLVERS", "ode"]

_OLDEST = (1, 17)  # before, LSODA and VODE were Fortran: they print, and serve one solve at a time

if tuple(int(part) for part in scipy.__version__.split(".")[:2]) < _OLDEST:
    raise BackendUnavailable(
        f"backend 'scipy' needs SciPy 1.17 or newer, got {scipy.__version__}. "
        "Run `pip install -U scipy`."
    )

SOLVERS: dict[str, Callable[..., Any]] = {
    "dopri5": integrate.RK45,
    "bosh3": integrate.RK23,
    "dop853": integrate.DOP853,
    "lsoda": integrate.LSODA,
    "bdf": integrate.BDF,
    "radau": integrate.Radau,
}
"""Classes that take one step at a time, under ctflow's names."""

ode: Callable[..., Any] = integrate.ode
