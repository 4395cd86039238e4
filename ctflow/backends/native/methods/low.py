"""Methods of order 1 to 4."""

from __future__ import annotations

from ctflow.backends.tableau import Tableau

__all__ = ["BOSH3", "EULER", "HEUN", "MIDPOINT", "RALSTON", "RK4", "RK4_38"]

EULER = Tableau(
    name="euler",
    order=1,
    c=(0.0,),
    a=((),),
    b=(1.0,),
    p=((1.0,),),
    dense_order=1,
    source="Hairer I, II.1.3",
)

MIDPOINT = Tableau(
    name="midpoint",
    order=2,
    c=(0.0, 0.5),
    a=((), (0.5,)),
    b=(0.0, 1.0),
    p=((1.0, -1.0), (0.0, 1.0)),
    dense_order=2,
    source="Hairer I, II.1.4; interpolant: the quadratic with y'(0) = k1 and y(1) = y1",
)

HEUN = Tableau(
    name="heun",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    e=(-1 / 2, 1 / 2),
    error_order=1,
    p=((1.0, -1 / 2), (0.0, 1 / 2)),
    dense_order=2,
    source="Heun 1900, the trapezoidal form (Hairer I, II.1.3'), with Euler's method embedded; "
    "interpolant: the quadratic with y'(0) = k1 and y(1) = y1",
)

RALSTON = Tableau(
    name="ralston",
    order=2,
    c=(0.0, 2 / 3),
    a=((), (2 / 3,)),
    b=(1 / 4, 3 / 4),
    e=(-3 / 4, 3 / 4),
    error_order=1,
    p=((1.0, -3 / 4), (0.0, 3 / 4)),
    dense_order=2,
    source="Ralston 1962, Runge-Kutta methods with minimum error bounds, Math. Comp. 16, with "
    "Euler's method embedded; interpolant: the quadratic with y'(0) = k1 and y(1) = y1",
)

RK4 = Tableau(
    name="rk4",
    order=4,
    c=(0.0, 0.5, 0.5, 1.0),
    a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    p=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
    dense_order=3,
    source="Kutta 1901, Hairer I, table II.1.2; interpolant of order 3: Zennaro 1986, "
    "Natural continuous extensions of Runge-Kutta methods, Math. Comp. 46",
)

RK4_38 = Tableau(
    name="rk4_38",
    order=4,
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    p=((1.0, -15 / 8, 1.0), (0.0, 15 / 8, -3 / 2), (0.0, 3 / 8, 0.0), (0.0, -3 / 8, 1 / 2)),
    dense_order=3,
    source="Kutta 1901, the 3/8 rule, Hairer I, table II.1.2; interpolant of order 3: the only one "
    "on its four stages, as in Zennaro 1986",
)

BOSH3 = Tableau(
    name="bosh3",
    order=3,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    error_order=2,
    p=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    dense_order=3,
    source="Bogacki, Shampine 1989, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2; "
    "interpolant: cubic Hermite",
)
