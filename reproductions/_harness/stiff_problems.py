"""Four stiff initial value problems of the literature, with the parameters that they depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PROBLEMS", "StiffProblem"]

_POINTS = 64  # of the heat equation, between its two ends


@dataclass(frozen=True)
class StiffProblem:
    """dy/dt = f(t, y, p), with the logarithms of factors on p as what is differentiated by.

    Args:
        f: The right-hand side.
        y0: Initial state.
        end: Last time; the first is 0.
        parameters: p.
        atol: Absolute tolerance at a relative one of 1e-6; it is scaled with that.
        difference: Step of finite differences in the logarithms.
        source: Where the problem is from.
    """

    f: Callable[[Tensor, Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    end: float
    parameters: tuple[float, ...]
    atol: float
    difference: float
    source: str

    def field(self, t: Tensor, y: Tensor, factors: Tensor) -> Tensor:
        """f with its parameters times exp(factors)."""
        return self.f(t, y, torch.tensor(self.parameters, dtype=y.dtype) * torch.exp(factors))

    def start(self) -> Tensor:
        """The initial state."""
        return torch.tensor(self.y0, dtype=torch.float64)

    def factors(self) -> Tensor:
        """Zeros that want a gradient."""
        return torch.zeros(len(self.parameters), dtype=torch.float64, requires_grad=True)


def _robertson(_: Tensor, y: Tensor, p: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    slow, back, fast = p[0] * a, p[1] * b * c, p[2] * b * b
    return torch.stack([back - slow, slow - back - fast, fast], dim=-1)


def _van_der_pol(_: Tensor, y: Tensor, p: Tensor) -> Tensor:
    x, v = y.unbind(-1)
    return torch.stack([v, p[0] * (1 - x * x) * v - x], dim=-1)


def _hires(_: Tensor, y: Tensor, p: Tensor) -> Tensor:
    y1, y2, y3, y4, y5, y6, y7, y8 = y.unbind(-1)
    bound = p[9] * y6 * y8
    released = bound - p[11] * y7
    return torch.stack(
        [
            -p[0] * y1 + p[1] * y2 + p[2] * y3 + p[3],
            p[0] * y1 - p[4] * y2,
            -p[5] * y3 + p[1] * y4 + p[6] * y5,
            p[2] * y2 + p[0] * y3 - p[7] * y4,
            -p[8] * y5 + p[1] * (y6 + y7),
            -bound + p[10] * y4 + p[0] * y5 - p[1] * y6 + p[10] * y7,
            released,
            -released,
        ],
        dim=-1,
    )


def _heat(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    width = 1.0 / (_POINTS + 1)
    x = torch.linspace(width, 1.0 - width, _POINTS, dtype=y.dtype)
    u = torch.nn.functional.pad(y, (1, 1))  # both ends are kept at zero
    curvature = (u[..., 2:] - 2 * u[..., 1:-1] + u[..., :-2]) / width**2
    return p[0] * curvature + p[1] * torch.sin(2 * t) * x * (1 - x)


def _hot_half() -> tuple[float, ...]:
    """A sine with a jump in the middle, which no smooth solution has."""
    places = [(i + 1) / (_POINTS + 1) for i in range(_POINTS)]
    return tuple(math.sin(math.pi * x) + 0.5 * (x > 0.5) for x in places)


PROBLEMS = {
    "Robertson": StiffProblem(
        _robertson,
        (1.0, 0.0, 0.0),
        1e5,
        (0.04, 1e4, 3e7),
        1e-10,
        1e-4,
        "Robertson 1966; Hairer, Wanner, Solving Ordinary Differential Equations II, eq. IV.1.4",
    ),
    "van der Pol": StiffProblem(
        _van_der_pol,
        (2.0, 0.0),
        2000.0,
        (1000.0,),
        1e-6,
        1e-8,  # a jump of width 1/p moves by p times this
        "van der Pol 1926; Hairer, Wanner II, eq. IV.1.5, in the time before scaling",
    ),
    "HIRES": StiffProblem(
        _hires,
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
        321.8122,
        (1.71, 0.43, 8.32, 0.0007, 8.75, 10.03, 0.035, 1.12, 1.745, 280.0, 0.69, 1.81),
        1e-8,
        1e-5,
        "Schafer 1975; Hairer, Wanner II, eq. IV.10.4",
    ),
    "heat": StiffProblem(
        _heat,
        _hot_half(),
        2.0,
        (1.0, 1.0),
        1e-6,
        1e-4,
        "u_t = p_1 u_xx + p_2 sin(2 t) x (1 - x) on 64 points of (0, 1)",
    ),
}
"""By name."""
