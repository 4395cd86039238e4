"""States inside a step, by the method's own interpolant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ctflow.backends.native.method import Method
from ctflow.backends.native.step import Step, combine

__all__ = ["at", "coefficients", "evaluate", "spread", "stage_weights"]


def stage_weights(tableau: Method, s: Tensor) -> Tensor:
    """Weights of the stages at fractions s of a step: [M] -> [M, S].

    They are polynomials in s without constant term:  w_i(s) = sum_j p_ij s^(j+1).
    """
    p = _coefficients(tableau, s.dtype, s.device)
    s = s.unsqueeze(1)
    weights = p[-1] * s  # Horner, element by element: a matrix product rounds by batch size
    for row in reversed(p[:-1]):
        weights = (weights + row) * s
    return weights


def evaluate(tableau: Method, step: Step, row: Tensor, times: Tensor) -> Tensor:
    """States at times inside a step.

    Args:
        tableau: The method, whose interpolant is used.
        step: The step, `extended` where a time is inside it.
        row: Sample of each time, [M].
        times: Times in (t0, t1] of that sample, [M], in time's own dtype.

    Returns:
        States, [M, N]; at t1 exactly y1, bit for bit.

    Cost:
        No evaluation of f; M x N for each stage.
    """
    start, end = _rows(step.t0, row), _rows(step.t1, row)
    y1 = _rows(step.y1, row)
    at_end = times == end
    if bool(at_end.all()):
        return y1 if len(y1) == len(row) else y1.expand(len(row), -1)
    # In time's own dtype: the powers of a high-order interpolant cancel.
    weights = stage_weights(tableau, (times - start) / (end - start)).to(y1.dtype)
    columns = weights.split(1, dim=1)
    total = columns[0] * _rows(step.k[0], row)
    for i in range(1, len(tableau.p)):
        if any(tableau.p[i]):
            total = torch.addcmul(total, columns[i], _rows(step.k[i], row))
    inside = torch.addcmul(_rows(step.y0, row), total, _rows(step.h, row))
    return torch.where(at_end.unsqueeze(1), y1, inside)


def coefficients(
    tableau: Method, step: Step, dtype: torch.dtype, stages: int | None = None
) -> tuple[Tensor, ...]:
    """The interpolant as a polynomial:  y(t0 + s h) = y0 + sum_j q_j s^(j+1).

    Args:
        tableau: The method.
        step: The step, `extended`.
        dtype: That of the q_j: time's own for a high order, whose powers cancel.
        stages: How many of its stages to count; those after them are left out.

    Returns:
        One q_j [B, N] for each power.
    """
    rows = tableau.p[:stages]
    k, h = [x.to(dtype) for x in step.k], step.h.to(dtype)
    return tuple(combine([row[j] for row in rows], k) * h for j in range(len(tableau.p[0])))


def at(y0: Tensor, q: Sequence[Tensor], s: Tensor) -> Tensor:
    """The polynomial of `coefficients` at fractions s of the step; shapes broadcast."""
    total = q[-1]
    for lower in reversed(q[:-1]):
        total = lower + total * s
    return y0 + total * s


def spread(g: Tensor, s: Tensor, n_powers: int) -> tuple[Tensor, ...]:
    """Cotangents of y0 and of each q_j, from those of states at fractions s: `at` transposed.

    Args:
        g: Cotangents, [W, B, N].
        s: Fractions, [W, B, 1].
        n_powers: Number of the q_j.

    Returns:
        n_powers + 1 tensors [B, N].
    """
    found = [g.sum(0)]
    for _ in range(n_powers):
        g = g * s
        found.append(g.sum(0))
    return tuple(found)


def _rows(x: Tensor, row: Tensor) -> Tensor:
    """Rows of x, not copied where there is only one to choose from."""
    return x if x.shape[0] == 1 else x[row]


@lru_cache(maxsize=64)
def _coefficients(tableau: Method, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Row j holds the coefficients of s^(j+1), [S]."""
    with torch.inference_mode(False):
        return torch.tensor(tableau.p, dtype=dtype, device=device).T.contiguous().unbind(0)
