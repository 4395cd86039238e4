"""The problem's `f` as SciPy may call it, and its Jacobian, on NumPy vectors of float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.backends.captures import Captures
from ctflow.backends.field import Field
from ctflow.backends.jacobian import products, rows_of
from ctflow.state import Layout

__all__ = [
    "Array",
    "Guarded",
    "Slope",
    "StateSlope",
    "array",
    "jacobian",
    "product",
    "tensor",
    "time",
]

Array: TypeAlias = NDArray[np.float64]

_HUGE = 1e100  # its square is finite


class Slope(Protocol):
    """The right-hand side of a system dz/dt = g(t, z) on vectors [n]."""

    def __call__(self, t: float, z: Array) -> Array:
        """Evaluate g."""
        ...

    def jacobian(self, t: float, z: Array) -> Array:
        """Evaluate dg/dz, [n, n]."""
        ...


class Guarded:
    """A right-hand side that SciPy can be trusted with.

    Never evaluated outside the interval, not even by rounding. Where it is not finite SciPy gets a
    huge number: LSODA and VODE take NaN for success, and so does an LU decomposition for an error;
    a huge number makes all of them shrink the step. An exception is kept, because their C code
    turns it into another.

    Args:
        slope: The right-hand side.
        ends: Start and end of the interval, in either order.

    Attributes:
        error: What it raised.
        is_finite: Whether it has been finite since this was last set.
    """

    def __init__(self, slope: Slope, ends: tuple[float, float]) -> None:
        self._slope = slope
        self._low, self._high = min(ends), max(ends)
        self._known: tuple[float, Array, Array] | None = None
        self.error: BaseException | None = None
        self.is_finite = True

    def start(self, t: float, z: Array, value: Array | None) -> bool:
        """Evaluate where the solve starts, or take the value from there; whether it is finite.

        SciPy asks for it again, and gets it without an evaluation.
        """
        value = self._slope(t, z) if value is None else value
        self._known = (t, z.copy(), value)
        return bool(np.isfinite(value).all())

    def __call__(self, t: float, z: Array) -> Array:
        """Evaluate it."""
        if self.error is not None:  # VODE of SciPy 1.18 asks on, with the exception still set
            raise self.error
        known, self._known = self._known, None
        if known is not None and t == known[0] and np.array_equal(z, known[1]):
            return known[2].copy()
        value = self._kept(lambda: self._slope(self._inside(t), z.copy()))
        return self._checked(value, _HUGE)

    def jacobian(self, t: float, z: Array) -> Array:
        """Evaluate its Jacobian; zero where that is not finite."""
        return self._checked(self._kept(lambda: self._slope.jacobian(self._inside(t), z.copy())), 0)

    def _inside(self, t: float) -> float:
        return min(max(float(t), self._low), self._high)

    def _kept(self, call: Callable[[], Array]) -> Array:
        try:
            return call()
        except BaseException as error:
            self.error = error
            raise

    def _checked(self, value: Array, instead: float) -> Array:
        finite = np.isfinite(value)
        if finite.all():
            return value
        self.is_finite = False
        return np.where(finite, value, instead)


class StateSlope:
    """dy/dt of a problem: the slope of the forward solve.

    Args:
        field: dy/dt on flat tensors.

    Attributes:
        n_f_evals: Evaluations so far.
        nothing: Of a solve without anything to differentiate: sees to it that this is so.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self.n_f_evals = 0
        self.nothing: Captures | None = None

    def __call__(self, t: float, z: Array) -> Array:
        """Evaluate f."""
        self.n_f_evals += 1
        layout = self._field.layout
        dy = self._field(time(t, layout), tensor(z, layout))
        if self.nothing is not None:
            self.nothing.recheck_none(dy)
        return array(dy[0])

    def jacobian(self, t: float, z: Array) -> Array:
        """Evaluate df/dy by vector-Jacobian products."""
        self.n_f_evals += 1
        layout = self._field.layout
        with torch.enable_grad():
            y = tensor(z, layout).requires_grad_()
            return array(jacobian(self._field(time(t, layout), y), y))


def time(t: float, layout: Layout) -> Tensor:
    """A time as fields take it, [1]."""
    return torch.tensor([t], dtype=torch.float64).to(layout.dtype).to(layout.device)


def tensor(z: Array, layout: Layout) -> Tensor:
    """A vector [n] in the dtype and on the device of the state, [1, n]."""
    return torch.from_numpy(z).to(layout.dtype).to(layout.device).unsqueeze(0)


def array(x: Tensor) -> Array:
    """A copy of a tensor as float64 on the CPU."""
    return cast("Array", np.array(x.detach().cpu().double().numpy()))


def jacobian(dy: Tensor, y: Tensor) -> Tensor:
    """d dy / dy, [M, N], of tensors [1, M] and [1, N]; zero where autograd finds no way.

    Cost:
        M vector-Jacobian products, vectorised where the operations allow it.
    """
    (found,) = rows_of(dy, (y,))
    shape = (dy.shape[1], y.shape[1])
    return dy.new_zeros(shape) if found is None else found.reshape(shape)


def product(dy: Tensor, y: Tensor, cotangent: Tensor, create: bool = False) -> Tensor | None:
    """Vector-Jacobian product that keeps the graph; None where autograd finds no way.

    Args:
        dy: Output.
        y: Input.
        cotangent: Of the shape of dy.
        create: Whether the product itself has a graph.
    """
    return products(dy, (y,), cotangent, batched=False, create=create)[0]
