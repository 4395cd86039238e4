"""Log-densities of points, whatever becomes of each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from ctflow.flows.arguments import check_points
from ctflow.flows.support import log_prob_on_support
from ctflow.flows.transform import FlowTransform
from ctflow.solution import Solution, Status

__all__ = ["LogDensity", "evaluated", "not_finite"]


@dataclass(frozen=True)
class LogDensity:
    """Log-densities of points, and how each of them fared.

    Args:
        value: Log-density in nats, [...]; -inf off the support, NaN where the status is not OK.
        status: A `Status` for each point, int64 [...]; NON_FINITE for a point that is not finite.
        z: The points at t0, [..., *event]; NaN where the status is not OK.
        costs: Integrals of the running costs, [..., C].
        solution: All that the solve found out, samples in one row.
    """

    value: Tensor
    status: Tensor
    z: Tensor
    costs: Tensor
    solution: Solution


def evaluated(base: Distribution, transform: FlowTransform, value: Tensor) -> LogDensity:
    """Log-densities of points under base samples that a transform carries.

    Args:
        base: Distribution at t0.
        transform: From there to the data.
        value: Points, [..., *event]; one that is not finite is left out of the solve.

    Raises:
        InvalidProblem: If the points have another event shape, or do not broadcast.
    """
    shape = check_points(value, base)
    event = len(base.event_shape)
    points = value.expand(shape)
    bad = not_finite(points, event)
    batch = bad.shape
    clean = torch.where(bad.reshape(*batch, *(1,) * event), torch.zeros_like(points), points)
    flat, context = transform.flat(clean)
    carried = transform.carry(flat, context, forwards=False)
    status = carried.status.reshape(batch).to(bad.device)
    status = torch.where(bad, torch.full_like(status, int(Status.NON_FINITE)), status)
    failed = status != int(Status.OK)
    z = carried.z.reshape(shape)
    nan = z.new_full((), torch.nan)
    log_base = log_prob_on_support(base, z, usable=~failed)
    log_prob = torch.where(failed, nan, log_base + carried.log_det.reshape(batch))
    costs = torch.where(failed.unsqueeze(-1), nan, carried.costs.reshape(*batch, -1))
    z = torch.where(failed.reshape(*batch, *(1,) * event), nan, z)
    return LogDensity(log_prob, status, z, costs, carried.solution)


def not_finite(points: Tensor, event_dim: int) -> Tensor:
    """Which points [..., *event] hold a NaN or an infinity, [...]."""
    return ~torch.isfinite(points.detach()).flatten(-event_dim).all(dim=-1)
