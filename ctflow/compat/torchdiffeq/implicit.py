"""Implicit Runge-Kutta methods on a given grid, their equations solved by Broyden's method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import refuse
from ctflow.backends.jacobian import rows_of
from ctflow.backends.native.step import FlatField
from ctflow.errors import SolveFailed, Unsupported

__all__ = ["TABLEAUS", "ImplicitStep", "ImplicitTableau"]

_LARGEST = 4096  # unknowns of a step, stages times variables: their matrix is dense
_MOST_ITERATIONS = 100
_ROUNDING = 32  # units in the last place below which an iteration cannot settle


class ImplicitTableau(NamedTuple):
    """An implicit method  k_i = f(t + c_i h, y + h sum_j a_ij k_j),  y1 = y + h sum_i b_i k_i.

    Attributes:
        a: Rows of S coefficients.
        b: Weights, S.
        source: Where the numbers come from.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    source: str

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes: the sums of the rows."""
        return tuple(math.fsum(row) for row in self.a)


_R3, _R6, _R15 = math.sqrt(3), math.sqrt(6), math.sqrt(15)
_G = 1 - math.sqrt(2) / 2  # of both methods with it, Hairer II, table IV.6.5 and its text

TABLEAUS = {
    "implicit_euler": ImplicitTableau(((1.0,),), (1.0,), "Hairer II, section IV.3"),
    "implicit_midpoint": ImplicitTableau(((0.5,),), (1.0,), "Gauss, Hairer II, table IV.5.1"),
    "trapezoid": ImplicitTableau(
        ((0.0, 0.0), (0.5, 0.5)), (0.5, 0.5), "Lobatto IIIA, Hairer II, table IV.5.7"
    ),
    "gl4": ImplicitTableau(
        ((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
        (1 / 2, 1 / 2),
        "Gauss, Hairer II, table IV.5.1",
    ),
    "gl6": ImplicitTableau(
        (
            (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
            (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
            (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
        "Gauss, Hairer II, table IV.5.2",
    ),
    "radauIIA3": ImplicitTableau(
        ((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), "Hairer II, table IV.5.5"
    ),
    "radauIIA5": ImplicitTableau(
        (
            ((88 - 7 * _R6) / 360, (296 - 169 * _R6) / 1800, (-2 + 3 * _R6) / 225),
            ((296 + 169 * _R6) / 1800, (88 + 7 * _R6) / 360, (-2 - 3 * _R6) / 225),
            ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
        ),
        ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
        "Hairer II, table IV.5.6",
    ),
    "sdirk2": ImplicitTableau(
        ((_G, 0.0), (1 - _G, _G)), (1 - _G, _G), "Alexander 1977, SIAM J. Numer. Anal. 14"
    ),
    "trbdf2": ImplicitTableau(
        ((0.0, 0.0, 0.0), (_G, _G, 0.0), (math.sqrt(2) / 4, math.sqrt(2) / 4, _G)),
        (math.sqrt(2) / 4, math.sqrt(2) / 4, _G),
        "Bank et al. 1985; Hosea, Shampine 1996, Appl. Numer. Math. 20",
    ),
}
"""The implicit methods of torchdiffeq's development version, from their sources."""


@dataclass(frozen=True)
class ImplicitStep:
    """One step of an implicit method.

    The equations are solved without a graph; their derivative is that of the implicit function
    theorem, one linear system with the matrix at the solution.

    Args:
        field: dy/dt on flat tensors.
        tableau: The method.
        max_iters: Iterations of a step; None for a hundred.
    """

    field: FlatField
    tableau: ImplicitTableau
    max_iters: int | None

    def __call__(self, t0: Tensor, t1: Tensor, y0: Tensor, f0: Tensor) -> Tensor:
        """State at t1 [1] from y0 [1, N] at t0, where f is f0.

        Raises:
            SolveFailed: If the equations could not be solved.
            Unsupported: For a state that is too large for a dense matrix.
        """
        stages, n = len(self.tableau.b), y0.shape[1]
        if stages * n > _LARGEST:
            raise Unsupported(
                f"an implicit step has a dense matrix of {stages} stages times {n} variables, and "
                f"{stages * n} is more than {_LARGEST}. Take scipy_solver, or an explicit method."
            )
        h = (t1 - t0).to(y0.dtype)
        b = y0.new_tensor(self.tableau.b)
        with torch.no_grad():
            k = self._solved(t0, t1, y0.detach(), f0.detach())
        if torch.is_grad_enabled():
            again = self._slopes(t0, t1, y0, k)  # equal to k, with a history
            if again.requires_grad:
                matrix = self._matrix(t0, t1, y0.detach(), k)
                solve: Callable[..., Tensor] = _Solved.apply  # pyright: ignore
                k = solve(again.reshape(-1), k.reshape(-1), matrix).reshape(stages, n)
        return y0 + h * (b @ k).unsqueeze(0)

    def _slopes(self, t0: Tensor, t1: Tensor, y0: Tensor, k: Tensor) -> Tensor:
        """f at the stages that slopes k [S, N] lead to, [S, N]."""
        h = (t1 - t0).to(y0.dtype)
        inner = y0 + h * (y0.new_tensor(self.tableau.a) @ k)
        times = (torch.lerp(t0, t1, c).to(y0.dtype) for c in self.tableau.c)
        pairs = zip(times, inner.split(1), strict=True)
        return torch.cat([self.field(t, y) for t, y in pairs])

    def _solved(self, t0: Tensor, t1: Tensor, y0: Tensor, f0: Tensor) -> Tensor:
        """Slopes of the stages, [S, N], by Broyden's method from Newton's matrix at the start."""
        k = f0.expand(len(self.tableau.b), -1).clone()
        inverse = torch.linalg.inv(self._matrix(t0, t1, y0, k))
        r = (k - self._slopes(t0, t1, y0, k)).reshape(-1)
        for _ in range(self.max_iters or _MOST_ITERATIONS):
            allowed = _ROUNDING * torch.finfo(y0.dtype).eps * (1 + k.abs().amax())
            if bool(r.abs().amax() <= allowed):
                return k
            s = -(inverse @ r)
            k = k + s.reshape_as(k)
            before, r = r, (k - self._slopes(t0, t1, y0, k)).reshape(-1)
            turned = inverse @ (r - before)
            size = s @ turned
            if not bool(torch.isfinite(size)) or float(size) == 0:
                break
            inverse = inverse + torch.outer(s - turned, s @ inverse) / size
        if bool(
            r.abs().amax() <= 1e3 * _ROUNDING * torch.finfo(y0.dtype).eps * (1 + k.abs().amax())
        ):
            return k  # no further, and far below the error of the step
        raise SolveFailed(
            f"the equations of an implicit step from t={float(t0):.6g} to {float(t1):.6g} could "
            "not be solved; torchdiffeq would go on with what it has. Take smaller steps, or a "
            "larger `max_iters`."
        )

    def _matrix(self, t0: Tensor, t1: Tensor, y0: Tensor, k: Tensor) -> Tensor:
        """d(k - f)/dk, [S N, S N]; where autograd finds no way from y to f, as if f were flat."""
        stages, n = k.shape
        h = (t1 - t0).to(y0.dtype)
        inner = (y0 + h * (y0.new_tensor(self.tableau.a) @ k)).detach()
        matrix = torch.eye(stages * n, dtype=y0.dtype, device=y0.device)
        for i, (c, row) in enumerate(zip(self.tableau.c, self.tableau.a, strict=True)):
            with torch.enable_grad():
                y = inner[i : i + 1].clone().requires_grad_()
                dy = self.field(torch.lerp(t0, t1, c).to(y0.dtype), y)
            (found,) = rows_of(dy, (y,))
            if found is None:
                continue
            for j, a in enumerate(row):
                part = matrix[i * n : (i + 1) * n, j * n : (j + 1) * n]
                part -= h * a * found.reshape(n, n).detach()
        return matrix


class _Solved(torch.autograd.Function):
    """k of  k = F(k),  given F there with its history and the matrix  1 - dF/dk."""

    @staticmethod
    def forward(ctx: Any, slopes: Tensor, k: Tensor, matrix: Tensor) -> Tensor:  # noqa: ANN401
        """Hand the solution on."""
        ctx.save_for_backward(slopes, matrix)
        return k.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Solve with the transposed matrix."""
        slopes, matrix = ctx.saved_tensors
        found = torch.linalg.solve(matrix.T, gradients[0])
        message = (
            "an implicit method on a given grid can be differentiated once, by the implicit "
            "function theorem, not a second time. Take dopri5, or rk4 with small steps."
        )
        return *refuse((found,), message, (gradients[0], slopes)), None, None
