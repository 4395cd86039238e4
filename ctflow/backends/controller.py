"""How step sizes follow from errors: the part of a `Solver` that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias

from ctflow.errors import InvalidProblem

__all__ = ["CONTROLLERS", "Controller", "ControllerName"]

ControllerName: TypeAlias = Literal[
    "i", "pi", "pi33", "pi42", "pi_dopri5", "h211pi", "h312pid", "pid"
]


@dataclass(frozen=True)
class Controller:
    """How the next step size follows from the errors of the last steps.

    With r the error of a step in tolerances and k one more than the order of its estimate, a step
    is followed by one of

        h safety r_n^(-(i + p + d) / k) r_(n-1)^((p + 2 d) / k) r_(n-2)^(-d / k),

    and a rejected one is repeated with h safety r^(-1 / k).

    Args:
        i: Integral part.
        p: Proportional part.
        d: Derivative part.
        safety: Factor on what the errors suggest.
        shrink: Smallest factor from one step to the next.
        grow: Largest factor from one step to the next.

    Raises:
        InvalidProblem: For a value that no backend could honour.

    Source:
        Soderlind 2003, Digital filters in adaptive time-stepping, ACM Trans. Math. Softw. 29.

    Example:
        >>> from ctflow import Controller, Solver
        >>> Solver(controller=Controller(i=0.3, p=0.2)).controller.p
        0.2
    """

    i: float = 1.0
    p: float = 0.0
    d: float = 0.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what is no control."""
        for name in ("i", "p", "d"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InvalidProblem(f"`{name}` must be finite, got {value!r}. Pass a float.")
        if not self.i > 0:
            raise InvalidProblem(
                f"`i` must be positive, got {self.i!r}: without it a small error would never "
                "lengthen the steps. Take 0.3 with p=0.4."
            )
        if not (0 < self.safety <= 1 and 0 < self.shrink < 1 < self.grow < math.inf):
            raise InvalidProblem(
                "`safety`, `shrink` and `grow` must obey 0 < safety <= 1 and 0 < shrink < 1 < "
                f"grow, got {self.safety!r}, {self.shrink!r} and {self.grow!r}. "
                "The defaults are 0.9, 0.2 and 10."
            )

    @property
    def betas(self) -> tuple[float, float, float]:
        """Exponents of the last three errors, times -k."""
        return self.i + self.p + self.d, -(self.p + 2 * self.d), self.d


# By the names of the field. The exponents of the last three errors, times -k, are
# (i + p + d, -(p + 2 d), d). Soderlind 2003 as above; Soderlind, Wang 2006, Adaptive time-stepping
# and computational stability, J. Comput. Appl. Math. 185.
CONTROLLERS = {
    "i": Controller(),  # Hairer I, eq. II.4.13
    # 0.7, -0.4: Gustafsson 1991, ACM Trans. Math. Softw. 17; Hairer II, section IV.2; PI34.
    "pi": Controller(i=0.3, p=0.4),
    # 2/3, -1/3 and 3/5, -1/5: Soderlind 2003, and Soderlind, Wang 2006. The second is PETSc's own
    # choice; diffrax's documentation names all three.
    "pi33": Controller(i=1 / 3, p=1 / 3),
    "pi42": Controller(i=0.4, p=0.2),
    # err^-(1/5 - 0.75 beta), err_before^beta with beta = 0.04 for k = 5: Hairer's dopri5.f.
    "pi_dopri5": Controller(i=0.65, p=0.2),
    # 1/6, 1/6, 0 and 1/18, 1/9, 1/18, filters for errors that are not smooth: Soderlind 2003.
    "h211pi": Controller(i=1 / 3, p=-1 / 6),
    "h312pid": Controller(i=2 / 9, p=-2 / 9, d=1 / 18),
    # 0.58, -0.21, 0.1: the PID controller of SUNDIALS' ARKODE (Kennedy, Carpenter).
    "pid": Controller(i=0.47, p=0.01, d=0.1),
}
