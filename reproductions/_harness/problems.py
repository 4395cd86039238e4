"""Initial value problems that the adjoint finds easy or hard, by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["KINDS", "PROBLEMS", "Field", "Problem"]

FLOAT = torch.float64
KINDS = ("stable", "oscillating", "chaotic", "stiffening")


class Field(nn.Module):
    """dy/dt = rule(t, y, theta)."""

    def __init__(
        self, rule: Callable[[Tensor, Tensor, Tensor], Tensor], theta: list[float]
    ) -> None:
        """Keep the rule and its parameters."""
        super().__init__()
        self.rule = rule
        self.theta = nn.Parameter(torch.tensor(theta, dtype=FLOAT))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        return self.rule(t, y, self.theta)


def decay(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """Each variable at its own rate."""
    return -theta * y


def network(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """A tanh layer of eight units on three variables."""
    first, second = theta[:24].view(8, 3), theta[24:].view(3, 8)
    return second @ torch.tanh(first @ y)


def rotation(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """A circle."""
    return theta * torch.stack([-y[1], y[0]])


def predator_and_prey(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """Lotka and Volterra's equations."""
    prey, predator = y
    a, b, c, d = theta
    return torch.stack([a * prey - b * prey * predator, d * prey * predator - c * predator])


def van_der_pol(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """Oscillates mildly for theta = 1, and is stiff for most of its period for theta = 8."""
    return torch.stack([y[1], theta[0] * (1 - y[0] ** 2) * y[1] - y[0]])


def lorenz(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG001
    """Lorenz' equations; chaotic, and a volume shrinks by exp(-13.7 t)."""
    a, b, c = theta
    return torch.stack([a * (y[1] - y[0]), y[0] * (b - y[2]) - y[1], y[0] * y[1] - c * y[2]])


def relaxation(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """y is drawn to cos t at a rate that grows with time."""
    return -theta * (1 + 2 * t) * (y - torch.cos(t))


@dataclass(frozen=True)
class Problem:
    """A field that is made anew for each solve, where it starts, and how far it is solved at most.

    Args:
        kind: One of `KINDS`.
        field: Makes the field.
        y0: Initial state.
        longest: Longest horizon.
    """

    kind: str
    field: Callable[[], nn.Module]
    y0: tuple[float, ...]
    longest: float


PROBLEMS = {
    "decay": Problem("stable", lambda: Field(decay, [0.5, 1.0]), (1.0, 1.0), 8.0),
    "network": Problem(
        "stable", lambda: Field(network, (0.6 * torch.randn(48)).tolist()), (1.0, -0.5, 0.3), 8.0
    ),
    "rotation": Problem("oscillating", lambda: Field(rotation, [2.0]), (1.0, 0.0), 16.0),
    "predator and prey": Problem(
        "oscillating", lambda: Field(predator_and_prey, [1.5, 1.0, 3.0, 1.0]), (1.0, 1.0), 8.0
    ),
    "van der Pol 1": Problem("oscillating", lambda: Field(van_der_pol, [1.0]), (2.0, 0.0), 8.0),
    "Lorenz": Problem("chaotic", lambda: Field(lorenz, [10.0, 28.0, 8 / 3]), (1.0,) * 3, 2.0),
    "van der Pol 8": Problem("stiffening", lambda: Field(van_der_pol, [8.0]), (2.0, 0.0), 2.0),
    "relaxation": Problem("stiffening", lambda: Field(relaxation, [1.0]), (0.0,), 4.0),
}
