"""One Runge-Kutta step: a pure function of tensors, used by every backend of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.tableau import Tableau

__all__ = ["FlatField", "Step", "combine", "rk_step"]


class FlatField(Protocol):
    """dy/dt on flat tensors: times [B] in the dtype of y, states [B, N] -> [B, N]."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        ...


class Step(NamedTuple):
    """What one step of every sample computed.

    Attributes:
        t0: Start, [B], in time's own dtype.
        t1: End, [B].
        y0: State at the start, [B, N].
        y1: State at the end, [B, N].
        h: t1 - t0 in the dtype of y, [B, 1]; negative where time runs down.
        k: The stages, each [B, N].
    """

    t0: Tensor
    t1: Tensor
    y0: Tensor
    y1: Tensor
    h: Tensor
    k: tuple[Tensor, ...]


def rk_step(
    field: FlatField, tableau: Tableau, t0: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None
) -> Step:
    """Advance every sample from t0 to t1 by one explicit Runge-Kutta step.

    A sample with t1 = t0 keeps its state bit for bit.

    Args:
        field: dy/dt on flat tensors.
        tableau: The method.
        t0: Start, [B].
        t1: End, [B]; no stage is evaluated beyond it.
        y0: State at t0, [B, N].
        f0: `field(t0, y0)` where it is known already, else None.

    Returns:
        The step.

    Cost:
        One evaluation for each stage; one less with `f0`.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, definition II.1.1.
    """
    dt = t1 - t0
    h = dt.to(y0.dtype).unsqueeze(-1)
    k = [field(t0.to(y0.dtype), y0) if f0 is None else f0]
    y = y0
    for i in range(1, tableau.stages):
        c = tableau.c[i]
        t = t1 if c == 1.0 else torch.add(t0, dt, alpha=c)  # t1 itself: t0 + dt may round past it
        y = torch.addcmul(y0, combine(tableau.a[i], k), h)
        k.append(field(t.to(y0.dtype), y))
    y1 = y if tableau.fsal else torch.addcmul(y0, combine(tableau.b, k), h)
    return Step(t0, t1, y0, y1, h, tuple(k))


def combine(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """Sum of the stages by their weights, zero weights left out; [B, N]."""
    terms = [(w, x) for w, x in zip(weights, k, strict=False) if w != 0.0]
    if not terms:
        return torch.zeros_like(k[0])
    (w, x), *rest = terms
    total = x * w
    for w, x in rest:
        total = torch.add(total, x, alpha=w)
    return total
