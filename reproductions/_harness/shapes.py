"""Two circles and two moons as distributions: fresh samples without end, and their entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SHAPES", "Shape", "energy_distance"]


@dataclass(frozen=True)
class Shape:
    """Two arcs blurred by a Gaussian: what scikit-learn's make_circles and make_moons draw from.

    Args:
        name: For titles.
        noise: Standard deviation of the blur.
        arcs: For each arc its centre, radius, and first and last angle.
    """

    name: str
    noise: float
    arcs: tuple[tuple[tuple[float, float], float, float, float], ...]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh points [n, 2], an arc chosen at random for each."""
        which = torch.randint(len(self.arcs), (n,), generator=generator)
        centre, radius, first, last = (
            torch.tensor([arc[i] for arc in self.arcs])[which] for i in range(4)
        )
        angle = first + (last - first) * torch.rand(n, generator=generator)
        arc = centre + radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
        return arc + self.noise * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor, along: int = 720) -> Tensor:
        """Log-density in nats at x [n, 2]: the midpoint rule along each arc, in x's dtype.

        The rule's points lie a seventh of the noise apart or closer, so its error is far below
        rounding (on a closed arc, and at 1e-4 at the ends of an open one).
        """
        parts: list[Tensor] = []
        for centre, radius, first, last in self.arcs:
            place = (torch.arange(along, dtype=x.dtype) + 0.5) / along
            angle = first + (last - first) * place
            arc = torch.tensor(centre, dtype=x.dtype) + radius * torch.stack(
                [angle.cos(), angle.sin()], dim=1
            )
            far = torch.cdist(x, arc).square() / (2 * self.noise**2)
            parts.append(torch.logsumexp(-far, dim=1) - math.log(along))
        whole = torch.logsumexp(torch.stack(parts), dim=0) - math.log(len(self.arcs))
        return whole - math.log(2 * math.pi * self.noise**2)

    def entropy(self, spacing: float = 0.02) -> float:
        """-E[log p] in nats, by quadrature: the least mean negative log-likelihood."""
        side_x = torch.arange(-2.0, 3.0, spacing, dtype=torch.float64)
        side_y = torch.arange(-2.0, 2.0, spacing, dtype=torch.float64)
        total = 0.0
        for part in side_x.split(20):
            log_prob = self.log_prob(torch.cartesian_prod(part, side_y))
            total -= float((log_prob.exp() * log_prob).sum())
        return total * spacing**2


# scikit-learn's shapes; noise 0.06 and factor 0.5 as in torchdiffeq's example, moons as replicated
# from it (PyTorch-CNF, fig5.py).
SHAPES = {
    "circles": Shape(
        "circles",
        0.06,
        (((0.0, 0.0), 1.0, 0.0, 2 * math.pi), ((0.0, 0.0), 0.5, 0.0, 2 * math.pi)),
    ),
    "moons": Shape(
        "moons",
        0.07,
        (((0.0, 0.0), 1.0, 0.0, math.pi), ((1.0, 0.5), 1.0, math.pi, 2 * math.pi)),
    ),
}


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, zero for equal distributions; unbiased.

    Args:
        x: Points, [n, D].
        y: Points, [m, D].

    Source:
        Szekely and Rizzo 2013, eq. 2.5.
    """
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)
