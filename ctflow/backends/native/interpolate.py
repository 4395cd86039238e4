"""States inside a step, by the method's own interpolant."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ctflow.backends.native.step import Step
from ctflow.backends.native.tableau import Tableau

__all__ = ["evaluate", "stage_weights"]


def stage_weights(tableau: Tableau, s: Tensor) -> Tensor:
    """Weights of the stages at fractions s of a step: [M] -> [M, S].

    They are polynomials in s without constant term:  w_i(s) = sum_j p_ij s^(j+1).
    """
    p = _coefficients(tableau, s.dtype, s.device)
    powers = torch.stack([s ** (j + 1) for j in range(p.shape[1])], dim=-1)
    return powers @ p.T


def evaluate(tableau: Tableau, step: Step, row: Tensor, times: Tensor) -> Tensor:
    """States at times inside a step.

    Args:
        tableau: The method, whose interpolant is used.
        step: The step.
        row: Sample of each time, [M].
        times: Times in (t0, t1] of that sample, [M], in time's own dtype.

    Returns:
        States, [M, N]; at t1 exactly y1, bit for bit.

    Cost:
        No evaluation of f; M x N for each stage.
    """
    start, end = step.t0[row], step.t1[row]
    at_end = times == end
    y1 = _rows(step.y1, row)
    if bool(at_end.all()):
        return y1.expand(len(row), -1)
    s = ((times - start) / (end - start)).to(step.y0.dtype)
    weights = stage_weights(tableau, s)
    total = torch.zeros_like(y1)
    for i, k in enumerate(step.k):
        if any(tableau.p[i]):
            total = torch.addcmul(total, weights[:, i : i + 1], _rows(k, row))
    inside = torch.addcmul(_rows(step.y0, row), total, _rows(step.h, row))
    return torch.where(at_end.unsqueeze(-1), y1, inside)


def _rows(x: Tensor, row: Tensor) -> Tensor:
    """Rows of x, not copied where there is only one to choose from."""
    return x if x.shape[0] == 1 else x[row]


@lru_cache(maxsize=64)
def _coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(tableau.p, dtype=dtype, device=device)
