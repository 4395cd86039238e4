"""Unnormalised densities in the plane, exp(-U), and their normalisers by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["ENERGIES", "WINDOW", "confined", "log_z"]

WINDOW = 4.0  # half the side of the square that the paper draws
_WALL = 100.0  # stiffness of the wall around it


def two_rings(z: Tensor) -> Tensor:
    """U1: a ring of radius 2 with two dense sides."""
    x, r = z[..., 0], z.norm(dim=-1)
    sides = torch.stack([-0.5 * ((x - 2) / 0.6) ** 2, -0.5 * ((x + 2) / 0.6) ** 2])
    return 0.5 * ((r - 2) / 0.4) ** 2 - torch.logsumexp(sides, dim=0)


def sine_with_a_loop(z: Tensor) -> Tensor:
    """U3: a sine that splits into two around x = 1."""
    off = z[..., 1] - torch.sin(math.pi * z[..., 0] / 2)
    bump = 3 * torch.exp(-0.5 * ((z[..., 0] - 1) / 0.6) ** 2)
    both = torch.stack([-0.5 * (off / 0.35) ** 2, -0.5 * ((off + bump) / 0.35) ** 2])
    return -torch.logsumexp(both, dim=0)


def sine_with_a_branch(z: Tensor) -> Tensor:
    """U4: a sine with a second one that leaves it at x = 1."""
    off = z[..., 1] - torch.sin(math.pi * z[..., 0] / 2)
    step = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    both = torch.stack([-0.5 * (off / 0.4) ** 2, -0.5 * ((off + step) / 0.35) ** 2])
    return -torch.logsumexp(both, dim=0)


# Rezende and Mohamed 2015 (arXiv 1505.05770), table 1; the three that the paper's figure 4 shows.
ENERGIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "U1": two_rings,
    "U3": sine_with_a_loop,
    "U4": sine_with_a_branch,
}


def confined(name: str) -> Callable[[Tensor], Tensor]:
    """An energy with a wall around the window:  U + 100 relu(|z_i| - 4)^2  for both coordinates.

    U3 and U4 go on without end to both sides, so that no density exp(-U) exists on the plane and a
    flow could lower its loss for ever by spreading out.
    """
    energy = ENERGIES[name]

    def walled(z: Tensor) -> Tensor:
        return energy(z) + _WALL * (z.abs() - WINDOW).clamp(min=0).square().sum(dim=-1)

    return walled


def log_z(name: str, spacing: float = 0.01) -> float:
    """log of the integral of exp(-U) with the wall, in nats; minus it is the least loss.

    Args:
        name: Which energy.
        spacing: Of the grid; the trapezoidal rule is good to 1e-6 at 0.01.
    """
    side = torch.arange(-5.0, 5.0 + spacing / 2, spacing, dtype=torch.float64)
    rows = [  # in slices, to hold little at once
        torch.logsumexp(-confined(name)(torch.cartesian_prod(part, side)), dim=0)
        for part in side.split(100)
    ]
    return float(torch.logsumexp(torch.stack(rows), dim=0)) + 2 * math.log(spacing)
