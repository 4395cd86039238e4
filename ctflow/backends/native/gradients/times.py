"""Gradients of the times, in one closed form for every method.

    dL/dt_i = g_i . f(t_i, y_i)  for i >= 1,      dL/dt_0 = -a(t_0+) . f(t_0, y_0),

where g_i is the gradient that reaches output i and a(t_0+) the one that reaches the initial state
through the solve, before g_0 is added (arXiv 1806.07366v5, appendix C, Algorithm 2, where the sign
follows from a.f obeying d(a.f)/dt = a.df/dt).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctflow.backends.captures import refuse_second
from ctflow.backends.native.gradients.replay import exchange, well
from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.step import FlatField

__all__ = ["attach", "shift"]


def shift(field: FlatField, t: Tensor, y: Tensor, sign: float, f: Tensor | None = None) -> Tensor:
    """The state itself, with  dy/dt = sign * f(t, y)  recorded for the backward pass.

    Args:
        field: dy/dt on flat tensors.
        t: Times [B], with a gradient.
        y: States [B, N].
        sign: +1 for an output at t; -1 for an initial state at t.
        f: `field(t, y)` as a constant, where it is known already.

    Returns:
        States [B, N], equal to y. Without `f` right to second order, and refused beyond; with `f`
        right to first order.

    Cost:
        One evaluation of f; none with `f`.
    """
    known: list[Tensor] = []
    if f is not None:
        known.append(_finite(f))
        return _Shift.apply(y, t, None, sign, known, "checkpointed/adjoint")  # pyright: ignore
    once = _Shift.apply(y, t, None, sign, known, "direct")  # pyright: ignore
    slope = _finite(field(t.to(y.dtype), once))  # its own dependence on t goes through `once`
    known.append(slope.detach())
    return _Shift.apply(y, t, slope, sign, known, "direct")  # pyright: ignore


def _finite(f: Tensor) -> Tensor:
    """Zero slopes for samples that cannot start: they send a zero gradient, and 0 * inf is NaN."""
    finite = torch.isfinite(f).all(dim=1, keepdim=True)
    return f if bool(finite.all()) else torch.where(finite, f, 0.0)


def attach(  # noqa: PLR0913
    field: FlatField, times: Tensor, y0: Tensor, out: Tensor, outcome: Outcome, record: bool
) -> Tensor:
    """The outputs with the gradients of their times.

    Args:
        field: dy/dt on flat tensors.
        times: Output times, [B, T].
        y0: Initial state before its own `shift`, [B, N]: output 0, which no time moves.
        out: States at the output times, [T, B, N].
        outcome: How the solve went; failed samples stay constants.
        record: Whether the slopes are recorded, for second derivatives.

    Returns:
        States [T, B, N], equal to `out`.

    Cost:
        One evaluation of f for each output time, if a time wants a gradient; else nothing.
    """
    source = well(outcome)
    if not times.requires_grad or source is None:
        return out
    failed = (outcome.status != 0).to(out.device).unsqueeze(1)
    shifted = [y0]
    for t, y in zip(times.unbind(1)[1:], out.unbind(0)[1:], strict=True):
        t_well, y_well = exchange(source, t), exchange(source, y)
        with torch.set_grad_enabled(record):
            f = None if record else field(t_well.to(y.dtype), y_well)
        moved = shift(field, t_well, y_well, 1.0, f)
        shifted.append(torch.where(failed, y, moved) if outcome.stops else moved)
    return torch.stack(shifted)


class _Shift(torch.autograd.Function):
    """y with dy/dt = sign * f; f is an input with a history, or else the constant `known[0]`."""

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        t: Tensor,
        f: Tensor | None,
        sign: float,
        known: list[Tensor],
        name: str,
    ) -> Tensor:
        """Hand the state on."""
        ctx.save_for_backward(t, f)
        ctx.sign, ctx.known, ctx.name = sign, known, name
        ctx.set_materialize_grads(False)  # the history of f is visited with no gradient at all
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # noqa: ANN401
        """Contract the slope with the gradient."""
        (g,) = gradients
        if g is None:
            return (None,) * 6
        t, f = ctx.saved_tensors
        slope = ctx.known[0] if f is None else f
        dt = ctx.sign * (g * slope).sum(dim=1).to(t.dtype)
        if f is None:
            (dt,) = refuse_second((dt,), ctx.name, (g, t))
        return g, dt, None, None, None, None
