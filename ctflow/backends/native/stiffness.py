"""Whether stability and not accuracy bounded the steps of a solve that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ctflow.backends.jacobian import products
from ctflow.backends.native.control import Fixed
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.step import FlatField
from ctflow.backends.tableau import Tableau
from ctflow.errors import CtflowError
from ctflow.solution import Status, Stop
from ctflow.transforms import active

__all__ = ["explained", "fastest_decay", "stability_bound"]

_LARGEST = 30  # dimension of the Krylov space: exact for as many variables, else the outermost
_FEWEST = 15  # steps that must agree, as in Hairer's dopri5.f: by then a decay has decayed
_FINE = 0.01  # resolution of the bound


def explained(
    field: FlatField, plan: Integration, y0: Tensor, outcome: Outcome
) -> tuple[Stop, ...]:
    """Where failed samples stood, the first with an estimate of stiffness.

    Args:
        field: dy/dt on flat tensors.
        plan: How it was solved.
        y0: Initial state, [B, N].
        outcome: How it went.

    Cost:
        For a solve that failed, at most 30 vector-Jacobian products; else nothing.
    """
    if not outcome.stops or active():
        return outcome.stops
    first = outcome.stops[0]
    value = _stiffness(field, plan, y0, outcome, first)
    return (replace(first, stiffness=value), *outcome.stops[1:])


def _stiffness(
    field: FlatField, plan: Integration, y0: Tensor, outcome: Outcome, stop: Stop
) -> float | None:
    if plan.tableau.implicit is True:
        return 0.0
    row, batch, control = stop.sample, len(y0), plan.control
    overflowed = int(outcome.status[row]) == Status.NON_FINITE
    if overflowed != isinstance(control, Fixed):  # adaptive steps avoid what fixed ones run into
        return 0.0
    if isinstance(control, Fixed):  # an instability is judged where it began
        t, y, size = float(plan.grid[row, 0]), y0[row], float(control.size)
    else:
        t, y, size = stop.t, outcome.stood[0], _last_step(outcome.trace, row)
    if size is None:
        return 0.0
    times = y0.new_full((batch,), t)
    try:
        with torch.inference_mode(False):
            forward = float(plan.span.direction[row])
            rate = fastest_decay(field, times, y.expand(batch, -1), row, forward)
    except (RuntimeError, CtflowError):  # `f` need not be differentiable for a solve
        return None
    ratio = max(0.0, rate) * size / stability_bound(plan.tableau)
    return ratio if ratio > 1 or not overflowed else 0.0


def _last_step(trace: Sequence[Tensor], row: int) -> float | None:
    """Mean length of a sample's last steps; None where too few were accepted."""
    times = torch.stack([t[row] for t in trace])
    steps = times.diff().abs()
    steps = steps[steps > 0][-_FEWEST:]
    return float(steps.mean()) if len(steps) == _FEWEST else None


def fastest_decay(
    field: FlatField, t: Tensor, y: Tensor, row: int, direction: float = 1.0
) -> float:
    """Largest  -Re lambda  of df/dy of one sample, or largest Re lambda where time runs down.

    Arnoldi's method on the transposed Jacobian: its outermost eigenvalues, by products alone.

    Args:
        field: dy/dt on flat tensors.
        t: Times [B].
        y: States [B, N].
        row: The sample.
        direction: +1 or -1, of time.

    Cost:
        One evaluation and min(N, 30) vector-Jacobian products.

    Source:
        Golub, Van Loan, Matrix Computations, 4th ed., section 10.5.
    """
    with torch.enable_grad():
        place = y.detach().clone().requires_grad_()
        dy = field(t, place)
    if not dy.requires_grad:
        return 0.0
    n = min(y.shape[1], _LARGEST)
    noise = torch.randn(y.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = [(noise / noise.norm()).to(y)]
    h = torch.zeros(n + 1, n, dtype=torch.float64)
    for j in range(n):
        cotangent = torch.zeros_like(dy)
        cotangent[row] = basis[j]
        pulled = products(dy, (place,), cotangent, batched=False, create=False)[0]
        w = torch.zeros_like(basis[0]) if pulled is None else pulled[row]
        for _ in range(2):  # once more for orthogonality to rounding
            for i, v in enumerate(basis):
                share = torch.dot(v, w)
                h[i, j] += float(share)
                w = w - share * v
        size = float(w.norm())
        if not size > 1e-10 * float(h.abs().amax()):  # an invariant subspace; NaN too
            n = j + 1
            break
        h[j + 1, j] = size
        basis.append(w / size)
    square = h[:n, :n]
    if not bool(torch.isfinite(square).all()):
        return 0.0
    return float((-direction * torch.linalg.eigvals(square).real).amax())


@lru_cache(maxsize=64)
def stability_bound(tableau: Tableau) -> float:
    """Largest x such that the method is stable for  h lambda  in [-x, 0].

    Source:
        Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.2.

    Example:
        >>> from ctflow.backends.native.methods import METHODS
        >>> stability_bound(METHODS["euler"]), round(stability_bound(METHODS["dopri5"]), 2)
        (2.0, 3.3)
    """
    n = 1
    while n * _FINE < 100 and abs(tableau.stability(-n * _FINE)) <= 1 + 1e-9:
        n += 1
    return (n - 1) * _FINE
