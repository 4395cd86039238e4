"""Gradients of the times, in one closed form for every method and backend.

    dL/dt_i = g_i . f(t_i, y_i)  for i >= 1,      dL/dt_0 = -a(t_0+) . f(t_0, y_0),

where g_i is the gradient that reaches output i and a(t_0+) the one that reaches the initial state
through the solve, before g_0 is added (arXiv 1806.07366v5, appendix C, Algorithm 2, where the sign
follows from a.f obeying d(a.f)/dt = a.df/dt).

Second derivatives are those of one midpoint step  y + h f(t + h/2, y + h/2 f(t, y))  of length
h = 0 from the state at t: that method has order 2, so its first two derivatives by h are the
solution's. Nothing is wrong beyond: a third differentiation is refused. Under torch.func's
transforms and in forward mode that step is taken as it stands, with h the difference of t and its
detached value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ctflow.backends.captures import refuse, refuse_second
from ctflow.transforms import active

__all__ = ["attach_times", "evaluations_of_shift", "event_time", "shift"]


class Slope(Protocol):
    """f on flat tensors: times [B] in the dtype of y, states [B, N] -> [B, N]."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        ...


def shift(
    field: Slope, t: Tensor, y: Tensor, sign: float, f: Tensor | None, gradient: str
) -> Tensor:
    """The state itself, with  dy/dt = sign * f(t, y)  recorded for the backward pass.

    Args:
        field: f on flat tensors.
        t: Times [B], with a gradient.
        y: States [B, N].
        sign: +1 for an output at t; -1 for an initial state at t.
        f: `field(t, y)` as a constant, where it is known already or no second derivative is
            offered; None evaluates it with its history.
        gradient: Name of the gradient method, for messages.

    Returns:
        States [B, N], equal to y. With `f` a second differentiation raises, without a third.

    Cost:
        One evaluation of f, none with `f`; under transforms two.
    """
    if active():
        return _small_step(field, t, y, sign)
    known: list[Tensor] = []
    if f is not None:
        known.append(_finite(f))
        return _Shift.apply(y, t, None, sign, known, gradient)  # pyright: ignore
    half = t.detach() + 0.5 * (t - t.detach())  # t itself, which moves half as fast
    middle = _Shift.apply(y, t, None, 0.5 * sign, known, None)  # pyright: ignore
    slope = _finite(field(half.to(y.dtype), middle))
    known.append(slope.detach())
    return _Shift.apply(y, t, slope, sign, known, gradient)  # pyright: ignore


def attach_times(field: Slope, t: Tensor, y0: Tensor, out: Tensor) -> Tensor:
    """The outputs of one system, found by an adjoint, with the gradients of their times.

    Args:
        field: f on flat tensors.
        t: Output times, [T], with a gradient.
        y0: Initial state before its own `shift`, [1, N]: output 0, which no time moves.
        out: States at the output times, [T, 1, N].

    Returns:
        States [T, 1, N], equal to `out`.

    Cost:
        One evaluation of f for each output time.
    """
    shifted = [y0]
    for at, y in zip(t[1:].split(1), out[1:].unbind(), strict=True):
        with torch.no_grad():
            f = field(at.to(y.dtype), y)
        shifted.append(shift(field, at, y, 1.0, f, "adjoint"))
    return torch.stack(shifted)


def event_time(
    value: Callable[[Tensor, Tensor], Tensor],
    field: Slope,
    t: Tensor,
    y: Tensor,
    slope: Tensor,
    gradient: str,
) -> tuple[Tensor, Tensor]:
    """Time and state of an event, with what they depend on recorded for the backward pass.

    The time is where  g(t, y(t)) = 0  on the solution through y at t, so that

        dt* = -(dg/dp dp + dg/dy dy) / (dg/dt + dg/dy f),    dy* = dy + f dt*.

    With "direct" one more step of Newton's method, on a state that moves with t, makes the second
    derivatives right as well: a step with a fixed slope gains one order in what moves the zero.

    Args:
        value: g at times [B] and states [B, N]; [B].
        field: f on flat tensors.
        t: Times at which g is zero, [B], constants.
        y: States there, [B, N], with the history of the solve up to the fixed t.
        slope: dg/dt + dg/dy f there, [B], constants.
        gradient: Name of the gradient method.

    Returns:
        t and y as they are, [B] and [B, N].

    Cost:
        One evaluation of g and of f; two with "direct". None where nothing wants a gradient.

    Source:
        Chen, Amos, Nickel 2021 (arXiv 2011.03902), eq. 8 and 9.
    """
    first = _Solved.apply(t, value(t, y), slope, gradient)  # pyright: ignore
    if not first.requires_grad:
        return t, y
    if gradient != "direct":
        with torch.no_grad():
            f = field(t.to(y.dtype), y.detach())
        return first, shift(field, first, y, 1.0, f, gradient)
    moved = shift(field, first, y, 1.0, None, gradient)
    second = _Twice.apply(_Solved.apply(first, value(first, moved), slope, gradient))  # pyright: ignore
    return second, shift(field, second, y, 1.0, None, gradient)


def evaluations_of_shift() -> int:
    """How many evaluations of f a `shift` without `f` takes."""
    return 2 if active() else 1


def _small_step(field: Slope, t: Tensor, y: Tensor, sign: float) -> Tensor:
    """The midpoint step of length zero, every operation of it recorded, in either mode."""
    start = t.detach()
    zero = t - start
    h = (sign * zero).to(y.dtype).unsqueeze(1)
    middle = y + 0.5 * h * _where_finite(field(start.to(y.dtype), y))
    return y + h * _where_finite(field((start + 0.5 * zero).to(y.dtype), middle))


def _where_finite(f: Tensor) -> Tensor:
    return torch.where(torch.isfinite(f).all(dim=1, keepdim=True), f, 0.0)


def _finite(f: Tensor) -> Tensor:
    """Zero slopes for samples that cannot start: they send a zero gradient, and 0 * inf is NaN."""
    finite = torch.isfinite(f).all(dim=1, keepdim=True)
    return f if bool(finite.all()) else torch.where(finite, f, 0.0)


class _Shift(torch.autograd.Function):
    """y with dy/dt = sign * slope; the slope is an input with a history, or else a constant."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        t: Tensor,
        slope: Tensor | None,
        sign: float,
        known: list[Tensor],
        gradient: str | None,
    ) -> Tensor:
        """Hand the state on."""
        ctx.save_for_backward(t, slope)
        ctx.sign, ctx.known, ctx.gradient = sign, known, gradient
        ctx.set_materialize_grads(False)  # the history of f is visited with no gradient at all
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # noqa: ANN401
        """Contract the slope with the gradient."""
        (g,) = gradients
        if g is None:
            return (None,) * 6
        t, slope = ctx.saved_tensors
        f = ctx.known[0] if slope is None else slope
        dt = ctx.sign * (g * f).sum(dim=1).to(t.dtype)
        if slope is None:
            if ctx.gradient is not None:
                (dt,) = refuse_second((dt,), ctx.gradient, (g, t))
            return g, dt, None, None, None, None
        if not torch.is_grad_enabled():
            return g, dt, None, None, None, None
        h = (t - t.detach()).to(g.dtype).unsqueeze(1)  # zero, but its derivative is not
        dt, df = (_LastTime.apply(x, g, t, slope) for x in (dt, ctx.sign * g * h))
        return g, dt, df, None, None, None


class _LastTime(torch.autograd.Function):
    """The identity on a first derivative, of which no more than one further one may be taken."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        """Hand the gradient on."""
        ctx.save_for_backward(*inputs)
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Hand the second gradient on, behind a refusal."""
        message = (
            "a solve whose `t` requires a gradient, or one through events, can be differentiated "
            "twice, not a third time. Detach `t`, or what moves the events."
        )
        (second,) = refuse(gradients, message, ctx.saved_tensors)
        return second, *(None for _ in ctx.saved_tensors)


class _Solved(torch.autograd.Function):
    """One step of Newton's method on g at its zero: t itself, with  dt* = dt - dg / slope."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, g: Tensor, slope: Tensor, gradient: str) -> Tensor:  # noqa: ANN401
        """Hand the time on."""
        ctx.save_for_backward(g, slope)
        ctx.gradient = gradient
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Divide by the slope."""
        g, slope = ctx.saved_tensors
        dt, dg = gradients[0], -(gradients[0] / slope).to(g.dtype)
        if ctx.gradient != "direct":
            dt, dg = refuse_second((dt, dg), ctx.gradient, (gradients[0], g))
        return dt, dg, None, None


class _Twice(torch.autograd.Function):
    """The identity on a time whose first two derivatives are right, and no further one."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:  # noqa: ANN401
        """Hand the time on."""
        ctx.save_for_backward(t)
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Hand the gradient on, behind a refusal of the third."""
        (t,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return gradients[0]
        still = 0.0 * (t - t.detach())  # zero, but it ties the second derivative to the refusal
        return _LastTime.apply(gradients[0] + still, gradients[0], t)
