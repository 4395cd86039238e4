"""ODE-RNN: a recurrent state that flows along an ODE between observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow.api import as_solver, solve
from ctflow.backends.protocol import Solver
from ctflow.dynamics import MLP
from ctflow.latent.encoders import NormalHead, check_features, reversed_steps
from ctflow.latent.observations import Observations
from ctflow.problem import ODEProblem
from ctflow.solution import raise_if_failed

__all__ = ["ODERNNEncoder"]


class ODERNNEncoder(nn.Module):
    """Observations last to first: a GRU takes one in, an ODE carries its state to the one before.

    Between two observations a gap apart the state obeys dh/ds = gap * f(h) on s in [0, 1]: every
    series has its own gap and all share one solve, without a grid of everybody's times.

    Args:
        features: Features of the data, D.
        latent: Variables of the latent state, L.
        hidden: Width of the recurrent state.
        field: `f(t, h)` of the recurrent state; None for an MLP with one hidden layer as wide.
        solver: How the gaps are solved; None for one step of rk4 a gap, which suits a state that
            is corrected at every observation.

    Raises:
        InvalidProblem: When called, if a series has no observation or the data another D.
        SolveFailed: When called, if a gap could not be solved.

    Cost:
        One solve for each observation of the longest series.

    Source:
        Rubanova, Chen, Duvenaud 2019 (arXiv 1907.03907), algorithm 1 and section 4.

    Example:
        >>> encoder = ODERNNEncoder(2, 4, hidden=8)
        >>> data = Observations(torch.zeros(3, 5, 2), torch.linspace(0, 1, 5))
        >>> encoder(data, 0.0).mean.shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        features: int,
        latent: int,
        hidden: int = 25,
        *,
        field: Callable[..., Any] | None = None,
        solver: Solver | str | None = None,
    ) -> None:
        """Make the cell, the field and what reads the distribution off the last state."""
        super().__init__()
        self.features, self.hidden = features, hidden
        self.cell = nn.GRUCell(2 * features, hidden)
        self.field = field or MLP(hidden, (hidden,))
        self.head = NormalHead(hidden, latent)
        self.solver = as_solver(solver or Solver(method="rk4", step=1.0, coupling="shared"))

    def forward(self, data: Observations, t0: float) -> Normal:
        """q(z(t0) | data), [B, L]."""
        check_features(data, self.features, self.head.linear.weight)
        data.require_some()
        steps, gaps = reversed_steps(data, t0)
        counts = data.counts.unsqueeze(1)
        h = steps.new_zeros(len(steps), self.hidden)
        for i in range(steps.shape[1]):
            taken = torch.where(i < counts, self.cell(steps[:, i], h), h)
            h = self._flow(taken, gaps[:, i])
        return self.head(h)

    def _flow(self, h: Tensor, gap: Tensor) -> Tensor:
        """The state a gap [B, 1] further; unchanged where the gap is zero."""
        if not bool(gap.any()):
            return h
        problem = ODEProblem(self._scaled, h, [0.0, 1.0], args=gap, batched=True)  # pyright: ignore[reportArgumentType] - normalises t
        return raise_if_failed(solve(problem, self.solver)).y[-1]

    def _scaled(self, s: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        return gap * self.field(s, h)
