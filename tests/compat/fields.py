"""Dynamics that both libraries are asked to solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq as theirs
from torch import Tensor, nn

from ctflow.compat import torchdiffeq as ours

__all__ = [
    "ADAPTIVE",
    "BOTH",
    "DOUBLE",
    "GRID",
    "IMPLICIT",
    "Count",
    "Network",
    "State",
    "start",
    "times",
]

DOUBLE = torch.float64
BOTH = (theirs, ours)
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
GRID = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
IMPLICIT = (
    "implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "gl4", "radauIIA5", "gl6",
    "sdirk2", "trbdf2",
)  # fmt: skip


State = Tensor | tuple[Tensor, ...]


class Network(nn.Module):
    """A small network of y that turns with time; the same weights each time it is made."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 8, generator=generator, dtype=DOUBLE) / 2)
        self.second = nn.Parameter(torch.randn(8, 3, generator=generator, dtype=DOUBLE) / 2)
        self.unused = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
        self.n_calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        self.n_calls += 1
        return torch.cos(t) * torch.tanh(y @ self.first) @ self.second


class Count:
    """Callbacks that are counted, on dynamics of any kind.

    Args:
        f: The dynamics.
        names: Of the callbacks.
    """

    def __init__(self, f: Callable[..., Any], *names: str) -> None:
        self._f = f
        self.seen: dict[str, list[tuple[float, Any, float]]] = {name: [] for name in names}
        for name in names:
            setattr(self, name, self._note(name))

    def __call__(self, t: Tensor, y: State) -> State:
        """dy/dt."""
        return self._f(t, y)

    def _note(self, name: str) -> Callable[..., None]:
        def note(t0: Tensor, y0: State, dt: Tensor) -> None:
            self.seen[name].append((float(t0.detach()), y0, float(dt.detach())))

        return note


def start() -> Tensor:
    """Two initial states of three variables, with a gradient."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, generator=generator, dtype=DOUBLE).requires_grad_()


def times(n: int = 5, end: float = 2.0, grad: bool = False) -> Tensor:
    """n output times from 0 to the end."""
    return torch.linspace(0.0, end, n, dtype=DOUBLE).requires_grad_(grad)
