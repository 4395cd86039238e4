"""Explicit Runge-Kutta methods as data that checks its own algebra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ctflow.backends.trees import Condition, conditions
from ctflow.errors import InvalidProblem

__all__ = ["Tableau"]

_TOLERANCE = 1e-12  # published coefficients carry 15 digits or more


@dataclass(frozen=True, repr=False)
class Tableau:
    """One explicit Runge-Kutta method, for `Solver(method=...)`.

    Stages  k_i = f(t + c_i h, y + h sum_j a_ij k_j),  step  y1 = y + h sum_i b_i k_i,  error
    estimate  h sum_i e_i k_i,  inside the step  y(t + s h) = y + h sum_i k_i sum_j p_ij s^(j+1).

    Rows of `a` beyond those of `b` are stages of the interpolant alone: they are evaluated only for
    steps with an output inside.

    Args:
        name: The field's name of the method.
        order: Order of y1.
        c: Nodes, one for each stage.
        a: Rows of the strictly lower triangle: row i holds i coefficients.
        b: Weights of y1, one for each stage of a step.
        p: Interpolant: for each stage the coefficients of s, s^2, ...
        source: Where the numbers come from.
        e: Weights of the error estimate (y1 minus the embedded solution), or None.
        error_order: Order of the embedded solution: the estimate falls as h^(error_order + 1).
        e_low: Weights of a second estimate, of lower order. With it the error is taken to be
            |e|^2 / sqrt(|e|^2 + 0.01 |e_low|^2), as in DOP853.
        dense_order: Order of the interpolant; None leaves it unchecked.

    Raises:
        InvalidProblem: If the numbers contradict each other: lengths, row sums, the conditions of
            the order, of the embedded solution's and of the interpolant's, error weights that do
            not cancel, an interpolant that misses an end.

    Cost:
        One check of every order condition when it is made: some milliseconds for order 8.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.2
        (order conditions), II.6 (continuous extensions) and II.10 (the error of DOP853).

    Example:
        >>> from ctflow import Solver, Tableau
        >>> heun3 = Tableau(
        ...     name="heun3",
        ...     order=3,
        ...     c=(0.0, 1 / 3, 2 / 3),
        ...     a=((), (1 / 3,), (0.0, 2 / 3)),
        ...     b=(1 / 4, 0.0, 3 / 4),
        ...     p=((1.0, -3 / 4), (0.0, 0.0), (0.0, 3 / 4)),
        ...     source="Heun 1900",
        ... )
        >>> Solver(method=heun3, step=0.1)
        Solver(backend='native', method=Tableau('heun3'), step=0.1)
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
    e_low: tuple[float, ...] | None = None
    dense_order: int | None = None

    implicit: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        """Check the algebra."""
        self._keep_numbers()
        self._check_lengths()
        for i, row in enumerate(self.a):
            self._require(_zero(math.fsum(row) - self.c[i]), f"row {i} of a to sum to c[{i}]")
        self._require((self.e is None) == (self.error_order is None), "e and error_order together")
        self._require(self.e_low is None or self.e is not None, "e beside e_low")
        for row in (self.e, self.e_low):
            self._require(row is None or _zero(math.fsum(row)), "error weights e that sum to 0")
        for one in conditions(self.a, self.order):
            self._require(_holds(one, self.b, one.value), f"the order condition {one.name}")
        b = (*self.b, *(0.0,) * self.further)
        for i, row in enumerate(self.p):
            self._require(_zero(math.fsum(row) - b[i]), f"row {i} of p to sum to b[{i}]")
        self._require(_zero(math.fsum(row[0] for row in self.p) - 1), "p to start with slope 1")
        self._check_lower_orders()

    def __str__(self) -> str:
        """Its name, as statistics and tables have it."""
        return self.name

    def __repr__(self) -> str:
        """Its name, without the coefficients."""
        return f"Tableau({self.name!r})"

    def __hash__(self) -> int:
        """By name and nodes: methods are looked up at every solve."""
        return hash((self.name, self.c))

    @property
    def stages(self) -> int:
        """Number of stages S of a step."""
        return len(self.b)

    @property
    def further(self) -> int:
        """Number of stages that only the interpolant uses."""
        return len(self.a) - len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is f at the end of the step ("first same as last")."""
        last = self.stages - 1
        return self.c[last] == 1.0 and (*self.a[last], 0.0) == self.b

    def evaluations(self, f0_known: bool) -> int:
        """Evaluations of f in one step, whose first may be known from the step before."""
        return self.stages - f0_known

    def weights(self, s: float) -> tuple[float, ...]:
        """Weights of the stages in the interpolant at the fraction s of the step."""
        return tuple(math.fsum(x * s ** (j + 1) for j, x in enumerate(row)) for row in self.p)

    def stability(self, z: complex) -> complex:
        """Factor of one step on  y' = lambda y  for z = h lambda.

        Source:
            Hairer, Wanner, Solving Ordinary Differential Equations II, eq. IV.2.9.
        """
        x: list[complex] = []
        for row in self.a[: self.stages]:
            x.append(1 + z * sum((u * v for u, v in zip(row, x, strict=True)), 0j))
        return 1 + z * sum((u * v for u, v in zip(self.b, x, strict=True)), 0j)

    def _keep_numbers(self) -> None:
        """Make tuples of plain numbers of lists, arrays and tensors; refuse everything else."""
        for name, least in (("order", 1), ("error_order", 0), ("dense_order", 0)):
            value = getattr(self, name)
            known = value is None and name != "order"
            whole = type(value) is int and value >= least
            self._require(known or whole, f"a whole number from {least} on as {name}")
        for name in ("c", "b", "e", "e_low"):
            self._keep(name, lambda row: row if row is None else _numbers(row))
        for name in ("a", "p"):
            self._keep(name, lambda rows: tuple(_numbers(row) for row in rows))

    def _keep(self, name: str, plain: Callable[[Any], object]) -> None:
        try:
            object.__setattr__(self, name, plain(getattr(self, name)))
        except (TypeError, ValueError):
            self._require(False, f"finite numbers in {name}")

    def _check_lengths(self) -> None:
        s = len(self.b)
        fit = (
            len(self.c) == len(self.a) == len(self.p) >= s
            and all(len(row) == i for i, row in enumerate(self.a))
            and len({len(row) for row in self.p}) == 1
            and all(row is None or len(row) == s for row in (self.e, self.e_low))
        )
        self._require(fit, "lengths that fit: b, e of S, c, a, p of S or more, row i of a of i")

    def _check_lower_orders(self) -> None:
        """Every condition of the embedded solution and of the interpolant."""
        embedded = 0
        if self.e is not None and self.error_order is not None and self.e_low is None:
            embedded = self.error_order
        lower = [b - e for b, e in zip(self.b, self.e or self.b, strict=True)]
        dense = self.dense_order or 0
        for one in conditions(self.a, max(embedded, dense)):
            n = one.order
            if n <= embedded:
                what = f"an embedded solution (b - e) that satisfies {one.name}"
                self._require(_holds(one, lower, one.value), what)
            if n <= dense:
                columns = zip(*self.p, strict=True)
                parts = (_holds(one, x, one.value * (j == n)) for j, x in enumerate(columns, 1))
                what = f"an interpolant of order {dense}: its condition {one.name} for b(s)"
                self._require(all(parts), what)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvalidProblem(
                f"tableau {self.name!r} must have {what}, which does not hold. "
                "Check its coefficients against the source."
            )


def _numbers(row: Sequence[float]) -> tuple[float, ...]:
    """Plain floats, all finite."""
    found = tuple(float(x) for x in row)
    if not all(math.isfinite(x) for x in found):
        raise ValueError
    return found


def _holds(one: Condition, weights: Sequence[float], value: float) -> bool:
    """Whether weights satisfy a condition to rounding."""
    terms = [w * x for w, x in zip(weights, one.vector, strict=False)]
    return _zero((math.fsum(terms) - value) / max(1.0, math.fsum(map(abs, terms))))


def _zero(residual: float) -> bool:
    return abs(residual) < _TOLERANCE
