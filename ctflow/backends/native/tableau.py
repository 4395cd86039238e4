"""Explicit Runge-Kutta methods as data that checks its own algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctflow.errors import InvalidProblem

__all__ = ["METHODS", "Tableau"]

_TOLERANCE = 1e-12  # published coefficients carry 15 digits or more


@dataclass(frozen=True)
class Tableau:
    """One explicit Runge-Kutta method.

    Stages  k_i = f(t + c_i h, y + h sum_j a_ij k_j),  step  y1 = y + h sum_i b_i k_i,  error
    estimate  h sum_i e_i k_i,  inside the step  y(t + s h) = y + h sum_i k_i sum_j p_ij s^(j+1).

    Args:
        name: The field's name of the method.
        order: Order of y1.
        c: Nodes, one for each stage.
        a: Rows of the strictly lower triangle: row i holds i coefficients.
        b: Weights of y1.
        p: Interpolant: for each stage the coefficients of s, s^2, ...
        source: Where the numbers come from.
        e: Weights of the error estimate (y1 minus the embedded solution), or None.
        error_order: Order of the embedded solution.

    Raises:
        InvalidProblem: If the numbers contradict each other: lengths, row sums, order conditions
            up to order 4, error weights that do not cancel, an interpolant that misses an end.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.2
        (order conditions, table 2.2) and II.6 (continuous extensions).

    Example:
        >>> METHODS["dopri5"].stages, METHODS["dopri5"].fsal
        (7, True)
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    p: tuple[tuple[float, ...], ...]
    source: str
    e: tuple[float, ...] | None = None
    error_order: int | None = None

    def __post_init__(self) -> None:
        """Check the algebra."""
        s = len(self.b)
        lengths_agree = (
            len(self.c) == len(self.a) == len(self.p) == s
            and all(len(row) == i for i, row in enumerate(self.a))
            and len({len(row) for row in self.p}) == 1
            and (self.e is None or len(self.e) == s)
        )
        self._require(lengths_agree, "lengths that fit: c, b, e, p of S, row i of a of i")
        for i, row in enumerate(self.a):
            self._require(_zero(math.fsum(row) - self.c[i]), f"row {i} of a to sum to c[{i}]")
        for tree, residual in self._order_residuals():
            self._require(_zero(residual), f"the order condition {tree}")
        self._require((self.e is None) == (self.error_order is None), "e and error_order together")
        if self.e is not None:
            self._require(_zero(math.fsum(self.e)), "error weights e that sum to 0")
        for i, row in enumerate(self.p):
            self._require(_zero(math.fsum(row) - self.b[i]), f"row {i} of p to sum to b[{i}]")
        self._require(_zero(math.fsum(row[0] for row in self.p) - 1), "p to start with slope 1")

    @property
    def stages(self) -> int:
        """Number of stages S."""
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is f at the end of the step ("first same as last")."""
        return self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b

    def weights(self, s: float) -> tuple[float, ...]:
        """Weights of the stages in the interpolant at the fraction s of the step."""
        return tuple(math.fsum(x * s ** (j + 1) for j, x in enumerate(row)) for row in self.p)

    def _order_residuals(self) -> list[tuple[str, float]]:
        """Conditions on b for the rooted trees up to order 4 (Hairer I, table II.2.1)."""
        a, b, c = self.a, self.b, self.c
        n = range(len(b))
        ac = [math.fsum(a[i][j] * c[j] for j in range(i)) for i in n]
        ac2 = [math.fsum(a[i][j] * c[j] ** 2 for j in range(i)) for i in n]
        aac = [math.fsum(a[i][j] * ac[j] for j in range(i)) for i in n]
        conditions = [
            (1, "sum b = 1", math.fsum(b) - 1),
            (2, "sum b c = 1/2", math.fsum(b[i] * c[i] for i in n) - 1 / 2),
            (3, "sum b c^2 = 1/3", math.fsum(b[i] * c[i] ** 2 for i in n) - 1 / 3),
            (3, "sum b a c = 1/6", math.fsum(b[i] * ac[i] for i in n) - 1 / 6),
            (4, "sum b c^3 = 1/4", math.fsum(b[i] * c[i] ** 3 for i in n) - 1 / 4),
            (4, "sum b c a c = 1/8", math.fsum(b[i] * c[i] * ac[i] for i in n) - 1 / 8),
            (4, "sum b a c^2 = 1/12", math.fsum(b[i] * ac2[i] for i in n) - 1 / 12),
            (4, "sum b a a c = 1/24", math.fsum(b[i] * aac[i] for i in n) - 1 / 24),
        ]
        return [(tree, residual) for order, tree, residual in conditions if order <= self.order]

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvalidProblem(
                f"tableau {self.name!r} must have {what}, which does not hold. "
                "Check its coefficients against the source."
            )


def _zero(residual: float) -> bool:
    return abs(residual) < _TOLERANCE


def _product(scale: float, *factors: tuple[float, ...]) -> tuple[float, ...]:
    """Coefficients of s .. s^4 of a product of polynomials given in ascending powers."""
    result = [scale]
    for factor in factors:
        longer = [0.0] * (len(result) + len(factor) - 1)
        for i, x in enumerate(result):
            for j, y in enumerate(factor):
                longer[i + j] += x * y
        result = longer
    return tuple((result + [0.0] * 5)[1:5])


EULER = Tableau(
    name="euler",
    order=1,
    c=(0.0,),
    a=((),),
    b=(1.0,),
    p=((1.0,),),
    source="Hairer I, II.1.3",
)

MIDPOINT = Tableau(
    name="midpoint",
    order=2,
    c=(0.0, 0.5),
    a=((), (0.5,)),
    b=(0.0, 1.0),
    p=((1.0, -1.0), (0.0, 1.0)),
    source="Hairer I, II.1.4; interpolant: the quadratic with y'(0) = k1 and y(1) = y1",
)

RK4 = Tableau(
    name="rk4",
    order=4,
    c=(0.0, 0.5, 0.5, 1.0),
    a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    p=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
    source="Kutta 1901, Hairer I, table II.1.2; interpolant of order 3: Zennaro 1986, "
    "Natural continuous extensions of Runge-Kutta methods, Math. Comp. 46",
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
    source="Bogacki, Shampine 1989, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2; "
    "interpolant: cubic Hermite",
)

DOPRI5 = Tableau(
    name="dopri5",
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    e=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=4,
    p=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    source="Dormand, Prince 1980, Hairer I, table II.5.2; interpolant: Shampine 1986, "
    "Some practical Runge-Kutta formulas, Math. Comp. 46",
)

TSIT5 = Tableau(
    name="tsit5",
    order=5,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    ),
    e=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    error_order=4,
    p=(
        _product(
            -1.0530884977290216,
            (0.0, 1.0),
            (-1.3299890189751412, 1.0),
            (0.7139816917074209, -1.4364028541716351, 1.0),
        ),
        _product(0.1017, (0.0, 0.0, 1.0), (1.2949852507374631, -2.1966568338249754, 1.0)),
        _product(
            2.490627285651252793, (0.0, 0.0, 1.0), (1.57803468208092486, -2.38535645472061657, 1.0)
        ),
        _product(
            -16.54810288924490272,
            (0.0, 0.0, 1.0),
            (-1.21712927295533244, 1.0),
            (-0.61620406037800089, 1.0),
        ),
        _product(
            47.37952196281928122,
            (0.0, 0.0, 1.0),
            (-1.203071208372362603, 1.0),
            (-0.658047292653547382, 1.0),
        ),
        _product(-34.87065786149660974, (0.0, 0.0, 1.0), (-1.2, 1.0), (-2 / 3, 1.0)),
        _product(2.5, (0.0, 0.0, 1.0), (-1.0, 1.0), (-0.6, 1.0)),
    ),
    source="Tsitouras 2011, Runge-Kutta pairs of order 5(4) satisfying only the first column "
    "simplifying assumption, Comput. Math. Appl. 62, with its free interpolant",
)

METHODS = {m.name: m for m in (EULER, MIDPOINT, RK4, BOSH3, DOPRI5, TSIT5)}
"""Every built-in method by name."""
