"""Two ways to the parameters' gradient, the integral of a df/dtheta over the backward solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ctflow.backends.adjoint import AdjointField, Evaluated, in_tolerances
from ctflow.backends.scipy.integrators import Integrator
from ctflow.backends.scipy.slope import Array, array, tensor, time
from ctflow.state import Layout, as_real

__all__ = ["Along", "Quadrature", "Within"]


class Quadrature(Protocol):
    """Sums up dL/dtheta = int a df/dtheta dt, one interval after the other, last to first."""

    @property
    def total(self) -> list[Tensor]:
        """One tensor for each parameter, over the intervals that were kept."""
        ...

    def begin(self) -> Array:
        """Variables that an interval adds to the system, at its start, [P] or [0]."""
        ...

    def rate(self, place: Evaluated) -> Array:
        """Their derivatives by time, [P] or [0]."""
        ...

    def visit(self, integrator: Integrator) -> None:
        """Look at an accepted step."""
        ...

    def keep(self, end: Array) -> None:
        """The interval counts; the variables that it added ended here."""
        ...

    def error(self) -> float:
        """Estimated error of the total in units of tolerance, where nothing has controlled it."""
        ...


class Within:
    """The gradient as further variables of the system, whose error SciPy controls.

    This is Algorithm 1 of the paper to the letter. For methods without a Jacobian alone: Newton's
    method would need one of [2 N + P]^2 numbers.

    Args:
        field: f and its vector-Jacobian products.
    """

    def __init__(self, field: AdjointField) -> None:
        self._field = field
        self._flat = np.zeros(sum(_reals(leaf).numel() for leaf in field.leaves))

    @property
    def total(self) -> list[Tensor]:
        """The gradient of each parameter."""
        parts = torch.from_numpy(self._flat).split(
            [_reals(leaf).numel() for leaf in self._field.leaves]
        )
        return [_like(part, leaf) for part, leaf in zip(parts, self._field.leaves, strict=True)]

    def begin(self) -> Array:
        """The sum so far."""
        return self._flat

    def rate(self, place: Evaluated) -> Array:
        """- a df/dtheta: time runs back."""
        if not len(self._flat):
            return self._flat
        found = self._field.parameters([place], [-place.a], keep=False)
        return np.concatenate([array(_reals(x)) for x in found])

    def visit(self, integrator: Integrator) -> None:
        """Nothing to do: the steps already carry the sum."""

    def keep(self, end: Array) -> None:
        """The sum goes on from here."""
        self._flat = end

    def error(self) -> float:
        """SciPy has controlled it."""
        return 0.0


# Lobatto's rule of 4 points and Kronrod's of 7 that contains it, on [-1, 1], from the middle out;
# exact for polynomials of degree 5 and 9. Both look at the ends: a kink there is not missed.
# W. Gander, W. Gautschi, "Adaptive quadrature - revisited", BIT 40 (2000), eq. 2.
_NODES = (0.0, 5**-0.5, (2 / 3) ** 0.5, 1.0)
_KRONROD = (672 / 1470, 625 / 1470, 432 / 1470, 77 / 1470)
_LOBATTO = (0.0, 5 / 6, 0.0, 1 / 6)
_ORDER = 7  # of the difference between the two
_DEEPEST = 20  # halvings of a piece; each halves what a kink within costs


class Along:
    """The gradient as a quadrature of its own along the steps, by the method's interpolants.

    For methods with Newton's method. Steps are gathered until they make a piece of the length that
    the last error suggests. A piece is halved until the rules of 4 and of 7 points agree within
    tolerance, without solving anything again; what is left after many halvings (f with many kinks)
    is summed up in `error`.

    Args:
        field: f and its vector-Jacobian products.
        layout: Of the state.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        most: Pieces that may be looked at before halving ends.

    Cost:
        For each piece 7 evaluations with a vector-Jacobian product, and 11 products with respect
        to the parameters; the interpolants of its steps.
    """

    def __init__(
        self, field: AdjointField, layout: Layout, rtol: float, atol: float, most: int
    ) -> None:
        self._field = field
        self._layout = layout
        self._rtol, self._atol = rtol, atol
        self._left = most
        self._length = 0.0  # of the next piece
        self._steps: list[_Step] = []
        self._kept = _Sum.zero(field.leaves)
        self._now = self._kept

    @property
    def total(self) -> list[Tensor]:
        """The gradient of each parameter."""
        return list(self._kept.values)

    def begin(self) -> Array:
        """Nothing to add to the system."""
        self._now, self._steps = self._kept, []
        return np.empty(0)

    def rate(self, place: Evaluated) -> Array:
        """Nothing to add to the system."""
        return np.empty(0)

    def visit(self, integrator: Integrator) -> None:
        """Take note of an accepted step."""
        if not self._field.leaves:
            return
        self._steps.append(_Step(integrator.t_old, integrator.t, integrator.between()))
        if abs(integrator.t - self._steps[0].t_from) >= self._length:
            self._finish_piece()

    def keep(self, end: Array) -> None:
        """The interval counts."""
        if self._steps:
            self._finish_piece()
        self._kept = self._now

    def error(self) -> float:
        """Root mean square of the summed estimates over tolerance."""
        return self._ratio(self._kept.errors, self._kept.values)

    def _finish_piece(self) -> None:
        self._add(self._steps[0].t_from, self._steps[-1].t_to, 0)
        self._steps = []

    def _add(self, t_from: float, t_to: float, depth: int) -> None:
        self._left -= 1
        value, error = self._rules(t_from, t_to)
        new = [x + y for x, y in zip(self._now.values, value, strict=True)]
        ratio = self._ratio(error, new)
        factor = float(np.clip(0.9 * max(ratio, 1e-30) ** (-1 / _ORDER), 0.2, 4.0))
        self._length = factor * abs(t_to - t_from)
        if ratio > 1 and depth < _DEEPEST and self._left > 0:
            middle = (t_from + t_to) / 2
            self._add(t_from, middle, depth + 1)
            self._add(middle, t_to, depth + 1)
            return
        errors = [x + y for x, y in zip(self._now.errors, error, strict=True)]
        self._now = _Sum(new, errors)

    def _rules(self, t_from: float, t_to: float) -> tuple[list[Tensor], list[Tensor]]:
        """Kronrod's sum, and how far Lobatto's is from it."""
        middle, half = (t_from + t_to) / 2, (t_to - t_from) / 2
        places, by_kronrod, by_lobatto = list[Evaluated](), list[float](), list[float]()
        for node, kronrod, lobatto in zip(_NODES, _KRONROD, _LOBATTO, strict=True):
            for sign in (1.0, -1.0) if node else (1.0,):
                t = middle + sign * half * node  # the clip is for rounding
                places.append(self._place(float(np.clip(t, min(t_from, t_to), max(t_from, t_to)))))
                by_kronrod.append(-half * kronrod)  # minus: the integral runs forward in time
                by_lobatto.append(-half * lobatto)
        value = self._sum(places, by_kronrod, keep=True)
        other = self._sum(places, by_lobatto, keep=False)
        return value, [x - y for x, y in zip(value, other, strict=True)]

    def _place(self, t: float) -> Evaluated:
        down = self._steps[-1].t_to < self._steps[0].t_from
        step = next(s for s in self._steps if (t >= s.t_to if down else t <= s.t_to))
        y, a = np.split(step.between(t), 2)
        layout = self._layout
        return self._field(time(t, layout), tensor(y, layout), tensor(a, layout))

    def _sum(self, places: list[Evaluated], weights: list[float], keep: bool) -> list[Tensor]:
        used = [(p, w * p.a) for p, w in zip(places, weights, strict=True) if w]
        return self._field.parameters([p for p, _ in used], [c for _, c in used], keep)

    def _ratio(self, errors: Sequence[Tensor], values: Sequence[Tensor]) -> float:
        """Root mean square of errors over tolerance, all parameters together."""
        if not values:
            return 0.0
        return float(in_tolerances(errors, [x.abs() for x in values], self._rtol, self._atol))


class _Step(NamedTuple):
    """One accepted step, and [y, a] at any time within."""

    t_from: float
    t_to: float
    between: Callable[[float], Array]


class _Sum(NamedTuple):
    """The sum over some steps, and that of the error estimates; one tensor for each parameter."""

    values: list[Tensor]
    errors: list[Tensor]

    @classmethod
    def zero(cls, leaves: Sequence[Tensor]) -> _Sum:
        """Nothing yet."""
        return cls([torch.zeros_like(x) for x in leaves], [torch.zeros_like(x) for x in leaves])


def _reals(x: Tensor) -> Tensor:
    """All numbers of a tensor in a row, a complex one as two."""
    return as_real(x.detach()).reshape(-1)


def _like(flat: Tensor, leaf: Tensor) -> Tensor:
    """The inverse of `_reals`, in the dtype and on the device of the leaf."""
    if leaf.is_complex():
        pairs = flat.to(leaf.real.dtype).to(leaf.device).reshape(*leaf.shape, 2)
        return torch.view_as_complex(pairs)
    return flat.to(leaf.dtype).to(leaf.device).reshape(leaf.shape)
