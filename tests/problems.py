"""Initial value problems whose solutions are known, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FLOAT", "Known", "Linear", "blow_up", "decay", "limit_cycle", "row_wise", "swing"]

FLOAT = torch.float64


def decay(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = -y."""
    return -y


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = y^2: y = y0 / (1 - t y0), which has a pole at t = 1 / y0."""
    return y * y


def row_wise(t: Tensor, y: Tensor) -> Tensor:
    """A non-linear, time-dependent f of additions and products alone.

    Their bits do not depend on the place of an element in its tensor; those of sin, exp and pow do
    (torch evaluates the tail of a tensor by other code than its vectors).
    """
    return t * y - 0.5 * (y * y * y) + 0.25


@dataclass(frozen=True)
class Known:
    """A problem and its solution y(t; t0, y0), differentiable in all of them."""

    f: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]


def _spiral(t: Tensor, y: Tensor) -> Tensor:
    turn = torch.stack([-y[..., 1], y[..., 0]], dim=-1)
    return y * (1 - (y * y).sum(-1, keepdim=True)) + (0.5 + 0.5 * torch.cos(t))[..., None] * turn


def _spiral_exact(t: Tensor, t0: Tensor, y0: Tensor) -> Tensor:
    radius = 1 / torch.sqrt(1 + (1 / (y0 * y0).sum(-1) - 1) * torch.exp(-2 * (t - t0)))
    turned = 0.5 * (t - t0) + 0.5 * (torch.sin(t) - torch.sin(t0))
    angle = torch.atan2(y0[..., 1], y0[..., 0]) + turned
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)


limit_cycle = Known(_spiral, _spiral_exact)
"""States [..., 2] drawn to the unit circle, on which they turn at a rate that depends on time."""

swing = Known(
    lambda t, y: t * y,
    lambda t, t0, y0: y0 * torch.exp((t * t - t0 * t0) / 2),
)
"""Linear with a rate that depends on time."""


class Linear(nn.Module):
    """dy/dt = A y for states [..., N], with A [N, N] as its parameter."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.a.T

    def exact(self, dt: Tensor, y0: Tensor) -> Tensor:
        """The state after dt, by the matrix exponential."""
        return y0 @ torch.linalg.matrix_exp(self.a * dt).T
