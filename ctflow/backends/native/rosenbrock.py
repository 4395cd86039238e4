"""Rosenbrock methods (linearly implicit Runge-Kutta) as data that checks its own algebra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

from ctflow.backends.trees import Condition, conditions
from ctflow.errors import InvalidProblem

__all__ = ["Rosenbrock", "Standard"]

_TOLERANCE = 1e-12  # published coefficients carry 15 digits or more


class Standard(NamedTuple):
    """Coefficients of the untransformed method (Hairer II, eq. IV.7.4), where conditions are known.

    Attributes:
        alpha: Rows of the strictly lower triangle: row i holds i of them.
        beta: alpha + gamma: row i holds i + 1.
        gamma: Rows of the lower triangle of the matrix Gamma.
    """

    alpha: tuple[tuple[float, ...], ...]
    beta: tuple[tuple[float, ...], ...]
    gamma: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rosenbrock:
    """One linearly implicit Runge-Kutta method: a linear system a stage, one matrix a step.

    With J = df/dy and f_t = df/dt at the start of the step, stages

        (1 - h gamma J) k_i = gamma (f(t + c_i h, y + h sum_j a_ij k_j) + sum_j m_ij k_j
                                     + h d_i f_t),

    step  y1 = y + h sum_i b_i k_i,  error estimate  h sum_i e_i k_i,  inside the step
    y(t + s h) = y + h sum_i k_i sum_j p_ij s^(j+1).  That is Hairer's form without products by J
    (eq. IV.7.25 with u_i = h k_i); nothing is divided by h, so that a step of length 0 stays put.

    Args:
        name: The field's name of the method.
        order: Order of y1.
        gamma: Diagonal coefficient, the same for every stage.
        c: Nodes, one for each stage.
        d: Factors of the time derivative, one for each stage.
        a: Rows of the strictly lower triangle: row i holds i coefficients.
        m: Likewise: what stages add to the right-hand side of later ones (Hairer's c_ij).
        b: Weights of y1 (Hairer's m_i).
        e: Weights of the error estimate (y1 minus the embedded solution).
        error_order: Order of the embedded solution.
        p: Interpolant: for each stage the coefficients of s, s^2, ...
        dense_order: Order of the interpolant.
        source: Where the numbers come from.

    Raises:
        InvalidProblem: If the numbers contradict each other: lengths, row sums, the conditions of
            the order, of the embedded solution's and of the interpolant's.

    Cost:
        One check of every order condition when it is made.

    Source:
        Hairer, Wanner, Solving Ordinary Differential Equations II, 2nd ed., section IV.7.

    Example:
        >>> from ctflow.backends.native.methods import IMPLICIT
        >>> IMPLICIT["rodas5p"].stages, abs(IMPLICIT["rodas5p"].stability(-1e9)) < 1e-6
        (8, True)
    """

    name: str
    order: int
    gamma: float
    c: tuple[float, ...]
    d: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    m: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...]
    error_order: int
    p: tuple[tuple[float, ...], ...]
    dense_order: int
    source: str

    implicit: ClassVar[Literal[True]] = True
    e_low: ClassVar[None] = None
    fsal: ClassVar[Literal[False]] = False
    further: ClassVar[Literal[0]] = 0

    def __post_init__(self) -> None:
        """Check the algebra."""
        s = len(self.b)
        columns = (self.c, self.d, self.a, self.m, self.e, self.p)
        fit = all(len(x) == s for x in columns) and len({len(row) for row in self.p}) == 1
        fit = fit and all(len(row) == i for x in (self.a, self.m) for i, row in enumerate(x))
        self._require(fit, "lengths that fit: b, c, d, e, a, m, p of S, rows i of a and m of i")
        self._require(self.gamma > 0, "a positive gamma")
        for i in range(s):
            alphas, gammas = self.standard.alpha[i], self.standard.gamma[i]
            self._require(_zero(math.fsum(alphas) - self.c[i]), f"row {i} of a that fits c[{i}]")
            self._require(_zero(math.fsum(gammas) - self.d[i]), f"row {i} of m that fits d[{i}]")
            self._require(_zero(math.fsum(self.p[i]) - self.b[i]), f"row {i} of p to sum to b[{i}]")
        self._check_orders()

    @cached_property
    def standard(self) -> Standard:
        """The coefficients alpha, beta and Gamma of the untransformed method.

        Gamma is the inverse of  1 / gamma - m,  and alpha is a Gamma.

        Source:
            Hairer II, eq. IV.7.23 and 7.24.
        """
        rows: list[tuple[float, ...]] = []
        for row in self.m:
            rows.append((*(self.gamma * x for x in _product(row, rows)), self.gamma))
        alpha = tuple(_product(row, rows) for row in self.a)
        sums = (zip((*u, 0.0), v, strict=True) for u, v in zip(alpha, rows, strict=True))
        beta = tuple(tuple(x + y for x, y in pairs) for pairs in sums)
        return Standard(alpha, beta, tuple(rows))

    @property
    def stages(self) -> int:
        """Number of stages S."""
        return len(self.b)

    def evaluations(self, f0_known: bool) -> int:
        """Evaluations of f in one step: one a stage; the first comes with the derivatives."""
        return self.stages

    def weights(self, s: float) -> tuple[float, ...]:
        """Weights of the stages in the interpolant at the fraction s of the step."""
        return tuple(math.fsum(x * s ** (j + 1) for j, x in enumerate(row)) for row in self.p)

    def untransformed(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Weights of the untransformed stages, from those of k: a row times Gamma."""
        return _product(weights, self.standard.gamma)

    def stability(self, z: complex, weights: Sequence[float] | None = None) -> complex:
        """Factor of one step on  y' = lambda y  for z = h lambda.

        Args:
            z: h lambda.
            weights: Those of the solution, in place of b.

        Source:
            Hairer II, eq. IV.7.14.
        """
        x: list[complex] = []
        for row in self.standard.beta:
            known = sum((u * v for u, v in zip(row, x, strict=False)), 0j)
            x.append((1 + z * known) / (1 - z * self.gamma))
        b = self.untransformed(self.b if weights is None else weights)
        return 1 + z * sum((u * v for u, v in zip(b, x, strict=True)), 0j)

    def _check_orders(self) -> None:
        """Every condition of the solution, of the embedded one and of the interpolant."""
        b = self.untransformed(self.b)
        embedded = self.untransformed([x - y for x, y in zip(self.b, self.e, strict=True)])
        inside = [self.untransformed(column) for column in zip(*self.p, strict=True)]
        alpha, beta = self.standard.alpha, self.standard.beta
        for one in conditions(alpha, self.order, beta):
            n = one.order
            self._require(_holds(one, b, one.value), f"the order condition {one.name}")
            if n <= self.error_order:
                what = f"an embedded solution (b - e) that satisfies {one.name}"
                self._require(_holds(one, embedded, one.value), what)
            if n <= self.dense_order:
                parts = (_holds(one, x, one.value * (j == n)) for j, x in enumerate(inside, 1))
                what = f"an interpolant of order {self.dense_order}: its condition {one.name}"
                self._require(all(parts), what)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvalidProblem(
                f"method {self.name!r} must have {what}, which does not hold. "
                "Check its coefficients against the source."
            )


def _product(row: Sequence[float], lower: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """A row times a lower triangle given by its rows."""
    n = len(row)
    return tuple(math.fsum(row[k] * lower[k][j] for k in range(j, n)) for j in range(n))


def _holds(one: Condition, weights: Sequence[float], value: float) -> bool:
    """Whether weights satisfy a condition to rounding."""
    terms = [w * x for w, x in zip(weights, one.vector, strict=True)]
    return _zero((math.fsum(terms) - value) / max(1.0, math.fsum(map(abs, terms))))


def _zero(residual: float) -> bool:
    return abs(residual) < _TOLERANCE
