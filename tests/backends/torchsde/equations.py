"""Stochastic equations whose solutions are known in closed form, path by path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow import Solver
from ctflow.backends.torchsde import brownian_path
from ctflow.sde import BrownianPath, Calculus, Noise, SDEProblem

__all__ = ["DTYPE", "EQUATIONS", "STEP", "Y0", "Equation", "path_for", "shake", "shrink"]

DTYPE = torch.float64
Y0 = torch.ones(3, 2)
STEP = Solver("torchsde", step=0.1)
DRIFT, VOLATILITY = 0.3, 0.7  # of geometric Brownian motion
ALPHA, BETA = 0.8, 0.5  # of the equation with additive noise


def shrink(t: Tensor, y: Tensor) -> Tensor:
    """A drift."""
    return -y


def shake(t: Tensor, y: Tensor) -> Tensor:
    """A diagonal diffusion."""
    return 0.3 * y


class Equation(NamedTuple):
    """One equation on [0, 1], with `exact(y0, W)` at time 1 for a path that ends at W [B, M]."""

    f: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor], Tensor]
    noise: Noise
    calculus: Calculus
    n_noises: int

    def problem(self, y0: Tensor, path: BrownianPath | None, seed: int | None = None) -> SDEProblem:
        """From y0 at 0 to 1."""
        ends = torch.tensor([0.0, 1.0], dtype=DTYPE)
        return SDEProblem(
            self.f, self.g, y0, ends, noise=self.noise, calculus=self.calculus, seed=seed, path=path
        )


def path_for(equation: Equation, batch: int, seed: int, levy: str = "none") -> BrownianPath:
    """A path of the equation's width."""
    like = torch.empty(0, dtype=DTYPE)
    shape = (batch, equation.n_noises)
    return brownian_path(0.0, 1.0, shape, seed, like=like, levy_area=levy)  # pyright: ignore[reportArgumentType]


def _geometric(correction: float) -> Callable[[Tensor, Tensor], Tensor]:
    """y0 exp((drift - correction) + volatility sum of W), at time 1."""
    return lambda y0, w: (
        y0 * torch.exp(DRIFT - correction + VOLATILITY * w.sum(dim=1, keepdim=True))
    )


def _grow(t: Tensor, y: Tensor) -> Tensor:
    return DRIFT * y


def _diagonal(t: Tensor, y: Tensor) -> Tensor:
    return VOLATILITY * y


def _scalar(t: Tensor, y: Tensor) -> Tensor:
    return VOLATILITY * y.unsqueeze(-1)


def _two(t: Tensor, y: Tensor) -> Tensor:
    return VOLATILITY * y.unsqueeze(-1).expand(-1, -1, 2)


def _damped(t: Tensor, y: Tensor) -> Tensor:
    return BETA / torch.sqrt(1 + t) - y / (2 * (1 + t))


def _additive(t: Tensor, y: Tensor) -> Tensor:
    return (ALPHA * BETA / torch.sqrt(1 + t)).expand(len(y), 1, 1)


def _exact_additive(y0: Tensor, w: Tensor) -> Tensor:
    """Kloeden, Platen 1992, section 4.4: dy with additive noise, solved by y sqrt(1 + t)."""
    return (y0 + BETA * (1 + ALPHA * w)) / math.sqrt(2)


_HALF = VOLATILITY**2 / 2
EQUATIONS: dict[str, Equation] = {
    "ito diagonal": Equation(_grow, _diagonal, _geometric(_HALF), "diagonal", "ito", 1),
    "ito scalar": Equation(_grow, _scalar, _geometric(_HALF), "scalar", "ito", 1),
    "ito additive": Equation(_damped, _additive, _exact_additive, "additive", "ito", 1),
    "ito general": Equation(_grow, _two, _geometric(2 * _HALF), "general", "ito", 2),
    "stratonovich diagonal": Equation(
        _grow, _diagonal, _geometric(0.0), "diagonal", "stratonovich", 1
    ),
    "stratonovich scalar": Equation(_grow, _scalar, _geometric(0.0), "scalar", "stratonovich", 1),
    "stratonovich additive": Equation(
        _damped, _additive, _exact_additive, "additive", "stratonovich", 1
    ),
    "stratonovich general": Equation(_grow, _two, _geometric(0.0), "general", "stratonovich", 2),
}
