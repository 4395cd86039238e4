"""Gradients of the output times of a native solve."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.backends.native.gradients.replay import exchange, well
from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.step import FlatField
from ctflow.backends.times import evaluations_of_shift, shift
from ctflow.transforms import is_moving

__all__ = ["attach"]


def attach(
    field: FlatField, times: Tensor, y0: Tensor, out: Tensor, outcome: Outcome, gradient: str
) -> Tensor:
    """The outputs with the gradients of their times.

    Args:
        field: dy/dt on flat tensors.
        times: Output times, [B, T].
        y0: Initial state before its own `shift`, [B, N]: output 0, which no time moves.
        out: States at the output times, [T, B, N].
        outcome: How the solve went; failed samples stay constants.
        gradient: The gradient method; with "direct" second derivatives are recorded too.

    Returns:
        States [T, B, N], equal to `out`.

    Cost:
        One evaluation of f for each output time, if a time wants a gradient, two under
        transforms; else nothing.
    """
    source = well(outcome)
    if not is_moving(times) or source is None:
        return out
    failed = (outcome.status != 0).to(out.device).unsqueeze(1)
    shifted = [torch.where(failed, out[0], y0) if outcome.stops else y0]
    for t, y in zip(times.unbind(1)[1:], out.unbind(0)[1:], strict=True):
        t_well, y_well = exchange(source, t), exchange(source, y)
        f = None
        if gradient != "direct":
            with torch.no_grad():
                f = field(t_well.to(y.dtype), y_well)
        moved = shift(field, t_well, y_well, 1.0, f, gradient)
        shifted.append(torch.where(failed, y, moved) if outcome.stops else moved)
    outcome.counts.n_f_evals.add_((len(shifted) - 1) * evaluations_of_shift())
    return torch.stack(shifted)
