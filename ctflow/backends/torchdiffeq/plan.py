"""ctflow's settings in torchdiffeq's words: methods, grids, and where its steps must end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.protocol import Solver

__all__ = ["ADAPTIVE", "FIXED", "Norm", "Plan"]

Norm = Callable[[Any], Tensor]
"""Size of a tensor or of a tuple of tensors, 0-dim."""

# ctflow's name -> torchdiffeq's. Its `rk4` is Kutta's 3/8 rule, ours the classic one.
ADAPTIVE = {name: name for name in ("dopri5", "bosh3", "dopri8", "adaptive_heun", "fehlberg2")}
FIXED = {name: name for name in ("euler", "midpoint", "heun2", "heun3")} | {"rk4_38": "rk4"}

_SHARP = frozenset({"dopri5"})
"""Methods whose interpolant is as good as their steps.

The others have a midpoint of first order: at rtol = atol = 1e-8 on y'' = -y, outputs inside steps
are off by 9e-6 with bosh3 and by 1e-5 with dopri8. Their steps are made to end at every output.
"""

_SAME = 1e-12  # part of a step within which an output counts as lying on the grid
_FULL = 1e-9  # a rest shorter than this part of a step is taken along with it


class Plan(NamedTuple):
    """One solve in torchdiffeq's terms, in time that grows.

    Attributes:
        solver: Complete settings.
        times: Output times multiplied by the direction, [T], ascending, detached.
        direction: +1.0, or -1.0 where the problem runs back in time.
    """

    solver: Solver
    times: Tensor
    direction: float

    @classmethod
    def of(cls, solver: Solver, t: Tensor) -> Plan:
        """Plan for output times t [T] in time's own dtype."""
        t = t.detach()
        direction = 1.0 if float(t[-1]) > float(t[0]) else -1.0
        return cls(solver, t * direction, direction)

    @property
    def length(self) -> float:
        """Length of the whole interval."""
        return float(self.times[-1] - self.times[0])

    @property
    def is_adaptive(self) -> bool:
        """Whether the steps adapt."""
        return self.solver.step is None

    def forward(self, norm: Norm) -> dict[str, Any]:
        """Keywords of torchdiffeq's odeint."""
        method = str(self.solver.method)
        if not self.is_adaptive:
            cubic = method != "euler" and not self._outputs_on_grid()
            options = {"grid_constructor": self._grid, "interp": "cubic" if cubic else "linear"}
            return {"method": FIXED[method], "options": options}
        stops = self.times[-1:] if method in _SHARP else self.times[1:]
        return {
            "method": ADAPTIVE[method],
            "rtol": self.solver.rtol,
            "atol": self.solver.atol,
            "options": {"step_t": stops, "norm": norm, "dtype": self.times.dtype},
        }

    def backward(self, norm: Norm) -> dict[str, Any]:
        """Further keywords of its odeint_adjoint, for the backward solve."""
        if not self.is_adaptive:
            return {"adjoint_options": {"grid_constructor": self._grid}}
        own = self.solver.backward or self.solver
        return {
            "adjoint_rtol": own.rtol,
            "adjoint_atol": own.atol,
            "adjoint_options": {"step_t": self.times, "norm": norm, "dtype": self.times.dtype},
        }

    def _grid(self, _f: object, _y0: Tensor, t: Tensor) -> Tensor:
        """Steps of one size, the last one cut; hardly more than may be attempted."""
        step = float(self.solver.step or 0)
        length = float(t[-1] - t[0])
        n = min(math.ceil(abs(length) / step - _FULL), self.solver.max_steps + 2)
        nodes = torch.arange(max(n, 1), dtype=t.dtype, device=t.device)
        return torch.cat([t[0] + nodes * math.copysign(step, length), t[-1:]])

    def _outputs_on_grid(self) -> bool:
        step = float(self.solver.step or 0)
        inside = (self.times[1:-1] - self.times[0]) / step
        return bool(((inside - inside.round()).abs() <= _SAME).all())
