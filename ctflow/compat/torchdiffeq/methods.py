"""torchdiffeq's method names, and the methods of ctflow that answer to them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal, TypeAlias

from ctflow.backends.native.methods import METHODS
from ctflow.backends.tableau import Tableau
from ctflow.compat.torchdiffeq.implicit import TABLEAUS
from ctflow.errors import InvalidProblem

__all__ = [
    "ADAMS",
    "ADAPTIVE",
    "IMPLICIT",
    "NAMES",
    "RUNGE_KUTTA",
    "SCIPY",
    "Interpolation",
    "Kind",
    "kind_of",
    "on_grid",
]

Kind: TypeAlias = Literal["adaptive", "runge_kutta", "adams", "implicit", "scipy"]
Interpolation: TypeAlias = Literal["linear", "cubic"]

# Dormand and Prince's error estimate is 3/2 of the one that torchdiffeq's coefficients have; with
# theirs the steps are the same, one by one.
_DOPRI5 = replace(METHODS["dopri5"], e=tuple(2 / 3 * x for x in METHODS["dopri5"].e or ()))

_FEHLBERG2 = Tableau(
    name="fehlberg2",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    e=(-1 / 512, 0.0, 1 / 512),
    error_order=1,
    p=((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512)),
    dense_order=2,
    source="Fehlberg 1969, Low-order classical Runge-Kutta formulas with stepsize control, NASA "
    "TR R-315, RK1(2); interpolant: the quadratic with y'(0) = k1 and y(1) = y1",
)

_HEUN3 = Tableau(
    name="heun3",
    order=3,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
    p=((1.0, -3 / 4), (0.0, 0.0), (0.0, 3 / 4)),
    dense_order=2,
    source="Heun 1900 (Hairer I, table II.1.1); interpolant: the quadratic with y'(0) = k1 and "
    "y(1) = y1",
)

ADAPTIVE: dict[str, Tableau] = {
    "dopri8": METHODS["dopri8"],
    "dopri5": _DOPRI5,
    "tsit5": METHODS["tsit5"],
    "bosh3": METHODS["bosh3"],
    "fehlberg2": _FEHLBERG2,
    "adaptive_heun": METHODS["heun"],
}
"""Methods that adapt their steps."""

RUNGE_KUTTA: dict[str, Tableau] = {
    "euler": METHODS["euler"],
    "midpoint": METHODS["midpoint"],
    "heun2": METHODS["heun"],
    "heun3": _HEUN3,
    "rk4": METHODS["rk4_38"],  # torchdiffeq's rk4 is Kutta's 3/8 rule
}
"""Explicit methods on a given grid."""

SCIPY = {
    "LSODA": "lsoda",
    "RK45": "dopri5",
    "RK23": "bosh3",
    "DOP853": "dop853",
    "Radau": "radau",
    "BDF": "bdf",
}
"""SciPy's names of the solvers behind `scipy_solver`, and ctflow's."""

ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")  # the last is the second's old name

IMPLICIT = tuple(TABLEAUS)

NAMES = (*ADAPTIVE, *RUNGE_KUTTA, *ADAMS, *IMPLICIT, "scipy_solver")
"""Names that are answered."""


def kind_of(method: str) -> Kind:
    """What kind of method a name means.

    Raises:
        InvalidProblem: If torchdiffeq has no such method.
    """
    if method in ADAPTIVE:
        return "adaptive"
    if method in RUNGE_KUTTA:
        return "runge_kutta"
    if method in ADAMS:
        return "adams"
    if method in IMPLICIT:
        return "implicit"
    if method == "scipy_solver":
        return "scipy"
    raise InvalidProblem(
        f"`method` must be one of {', '.join(NAMES)}, got {method!r}. Take one of these."
    )


@cache
def on_grid(method: str, interp: Interpolation) -> Tableau:
    """The explicit method with torchdiffeq's interpolant between grid points.

    "linear":  y0 + s (y1 - y0).  "cubic": Hermite's polynomial through both ends with the slopes
    there, for one evaluation more in each step that has an output inside.
    """
    tableau = RUNGE_KUTTA[method]
    b = tableau.b
    if interp == "linear":
        p = tuple((x,) for x in b)
        return replace(tableau, p=p, e=None, error_order=None, dense_order=1)
    first = (1.0, 3 * b[0] - 2, 1 - 2 * b[0])
    rows = (first, *((0.0, 3 * x, -2 * x) for x in b[1:]), (0.0, -1.0, 1.0))
    return replace(
        tableau,
        c=(*tableau.c, 1.0),
        a=(*tableau.a, b),
        p=rows,
        e=None,
        error_order=None,
        dense_order=min(tableau.order, 3),
    )
