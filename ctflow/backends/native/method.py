"""What can stand as a method of the native solver."""

from __future__ import annotations

from typing import TypeAlias

from ctflow.backends.native.rosenbrock import Rosenbrock
from ctflow.backends.tableau import Tableau

__all__ = ["Method"]

Method: TypeAlias = Tableau | Rosenbrock
"""An explicit Runge-Kutta method or a linearly implicit one; `implicit` says which.

Step, error estimate and interpolant are sums of stages for both, so that only the step differs.
"""
