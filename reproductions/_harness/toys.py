"""Toy data in the plane, as FFJORD's examples draw it: fresh samples without end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["TOYS", "Sampler", "entropies"]

Sampler = Callable[[int], Tensor]
"""So many points [n, 2], by torch's generator."""


def checkerboard(n: int) -> Tensor:
    """Uniform on every other square of side 2 within [-4, 4]^2."""
    x = torch.rand(n) * 4 - 2
    y = torch.rand(n) - 2 * torch.randint(0, 2, (n,)) + x.floor() % 2
    return 2 * torch.stack([x, y], dim=1)


def eight_gaussians(n: int) -> Tensor:
    """Eight Gaussians of width 0.354 on a circle of radius 2.83."""
    angle = torch.randint(0, 8, (n,)) * math.pi / 4
    centre = 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return (centre + 0.5 * torch.randn(n, 2)) / math.sqrt(2)


def rings(n: int) -> Tensor:
    """Four concentric circles, of radius 0.75 to 3, blurred by 0.08."""
    radius = 0.75 * torch.randint(1, 5, (n,))
    angle = 2 * math.pi * torch.rand(n)
    circle = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return circle + 0.08 * torch.randn(n, 2)


def pinwheel(n: int) -> Tensor:
    """Five bent arms."""
    radius, across = 1 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = torch.randint(0, 5, (n,)) * 2 * math.pi / 5 + 0.25 * radius.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([radius * cos - across * sin, radius * sin + across * cos], dim=1)


def spirals(n: int) -> Tensor:
    """Two interleaved spirals of one and a half turns."""
    turn = torch.rand(n).sqrt() * 3 * math.pi
    x = -turn.cos() * turn + 0.5 * torch.rand(n)
    y = turn.sin() * turn + 0.5 * torch.rand(n)
    side = 2 * torch.randint(0, 2, (n, 1)) - 1
    return side * torch.stack([x, y], dim=1) / 3 + 0.1 * torch.randn(n, 2)


# Grathwohl et al. 2019 (arXiv 1810.01367), released code, lib/toy_data.py.
TOYS: Mapping[str, Sampler] = {
    "checkerboard": checkerboard,
    "8 gaussians": eight_gaussians,
    "rings": rings,
    "pinwheel": pinwheel,
    "spirals": spirals,
}


def _entropy_of_eight_gaussians() -> float:
    """By quadrature."""
    side = torch.arange(-5.5, 5.5, 0.05, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 4 / math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=1)
    variance = 0.125  # (0.5 / sqrt 2)^2
    far = torch.cdist(points, centres).square() / (2 * variance)
    log_prob = torch.logsumexp(-far, dim=1) - math.log(8 * 2 * math.pi * variance)
    return float(-(log_prob.exp() * log_prob).sum()) * 0.05**2


def entropies() -> dict[str, float]:
    """The least mean negative log-likelihood in nats, where it is known."""
    return {"checkerboard": math.log(32), "8 gaussians": _entropy_of_eight_gaussians()}
