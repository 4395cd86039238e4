"""Adams methods on a given grid, for any distances between its points."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.step import FlatField, rk_step
from ctflow.compat.torchdiffeq.warning import warn_caller
from ctflow.errors import SolveFailed

__all__ = ["Adams", "weights"]

_GAUSS = np.polynomial.legendre.leggauss(7)
_LEAST = 3  # values of f that the first Adams step needs; before it steps are Runge-Kutta's
_MOST_ITERATIONS = 100
_ROUNDING = 8  # units in the last place below which an iteration cannot settle


class Adams:
    """Adams-Bashforth steps, and with `implicit` Adams-Moulton steps that begin from them.

    y1 = y0 + integral over the step of the polynomial through the last values of f; the implicit
    one goes through f(t1, y1) too, and is found by iteration.

    Args:
        field: dy/dt on flat tensors.
        implicit: Whether to correct.
        max_order: Largest order; up to max_order - 1 earlier values of f are kept.
        tolerances: Relative and absolute tolerance of the iteration.
        max_iters: Iterations of a step; None for a hundred.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section III.1 and III.5
        (variable steps).
    """

    def __init__(
        self,
        field: FlatField,
        implicit: bool,
        max_order: int,
        tolerances: tuple[float | Tensor, float | Tensor],
        max_iters: int | None,
    ) -> None:
        self._field = field
        self._implicit = implicit
        self._rtol, self._atol = tolerances
        self._max_iters = max_iters
        if max_order <= _LEAST:
            warn_caller(
                f"max_order={max_order} leaves no Adams step: every step is Runge-Kutta's of "
                "order 4. Take 4 or more."
            )
        self._known: deque[tuple[float, Tensor]] = deque(maxlen=max(max_order - 1, 1))

    def __call__(self, t0: Tensor, t1: Tensor, y0: Tensor, f0: Tensor) -> Tensor:
        """State at t1 [1] from y0 [1, N] at t0, where f is f0.

        Raises:
            SolveFailed: If the iteration of an implicit step does not settle.
        """
        self._known.appendleft((float(t0), f0))
        if len(self._known) < _LEAST:
            return rk_step(self._field, METHODS["rk4_38"], t0, t1, y0, f0).y1
        start, end = float(t0), float(t1)
        nodes, slopes = zip(*self._known, strict=True)
        dy = _sum(weights(nodes, start, end), slopes)
        return self._corrected(nodes, slopes, t1, y0, dy) if self._implicit else y0 + dy

    def _corrected(
        self, nodes: Sequence[float], slopes: Sequence[Tensor], t1: Tensor, y0: Tensor, dy: Tensor
    ) -> Tensor:
        start, end = nodes[0], float(t1)
        first, *rest = weights((end, *nodes), start, end)
        behind = _sum(rest, slopes)
        floor = _ROUNDING * torch.finfo(y0.dtype).eps
        for _ in range(self._max_iters or _MOST_ITERATIONS):
            before, dy = dy, first * self._field(t1.to(y0.dtype), y0 + dy) + behind
            change, size = (dy - before).detach().abs(), dy.detach().abs()
            allowed = (
                self._atol + self._rtol * size + floor * torch.maximum(size, y0.abs().detach())
            )
            if bool((change <= allowed).all()):
                return y0 + dy
        raise SolveFailed(
            f"the iteration of implicit_adams did not settle in the step from t={start:.6g} to "
            f"{end:.6g}; torchdiffeq would go on with what it has. Take smaller steps, a larger "
            "`max_iters`, or looser `rtol` and `atol`."
        )


def weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integral from start to end of each Lagrange polynomial on the nodes.

    Example:
        >>> [round(12 * w) for w in weights((0.0, -1.0, -2.0), 0.0, 1.0)]  # Adams-Bashforth 3
        [23, -16, 5]
    """
    s = (np.array(nodes) - start) / (end - start)
    # Gauss's rule is exact up to degree 13; products lose no digits, a Vandermonde matrix does.
    places = 0.5 * (_GAUSS[0] + 1)
    away = s[:, None] - s + np.eye(len(s))
    factors = (places[:, None, None] - s) / away
    factors[:, np.arange(len(s)), np.arange(len(s))] = 1.0
    found = 0.5 * (end - start) * (_GAUSS[1] @ factors.prod(axis=2))
    return [float(x) for x in found]


def _sum(factors: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = slopes[0] * factors[0]
    for w, f in zip(factors[1:], slopes[1:], strict=True):
        total = total + w * f
    return total
