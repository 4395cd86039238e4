"""Problems that tolerances are too loose for, though nothing says so."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow import ODEProblem
from tests.problems import FLOAT

__all__ = ["bump", "lorenz", "oscillating", "zero_initialised"]


def oscillating() -> ODEProblem:
    """y' = (sin(5 a t) - 1) y over [0, 5], at a = 1."""
    a = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
    return ODEProblem(
        lambda t, y: (torch.sin(5 * a * t) - 1) * y, torch.ones(1, dtype=FLOAT), [0.0, 5.0]
    )


def lorenz(length: float) -> ODEProblem:
    """The butterfly."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=-1)

    return ODEProblem(f, torch.ones(3, dtype=FLOAT), [0.0, length])


def zero_initialised() -> ODEProblem:
    """y' = theta sin^2(20 t) - y / 10 at theta = 0."""
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    return ODEProblem(
        lambda t, y: theta * torch.sin(20 * t) ** 2 - 0.1 * y,
        torch.ones(1, dtype=FLOAT),
        [0.0, 3.0],
    )


def bump(width: float = 0.01, centre: float = 0.5, height: float = 50.0) -> ODEProblem:
    """A kick, by default of a hundredth of the interval's length, between the two outputs."""
    return ODEProblem(
        lambda t, y: height * torch.exp(-(((t - centre) / width) ** 2)) + 0 * y,
        torch.ones(1, dtype=FLOAT),
        [0.0, 1.0],
    )
