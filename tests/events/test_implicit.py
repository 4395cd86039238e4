"""Events on a stiff problem, by the implicit method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import Event, Solver, odeint_event
from tests.problems import FLOAT


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_a_stiff_charge_fires_at_the_time_of_its_closed_form(gradient: str) -> None:
    """y' = rate (1 - y) beside a decay a thousand times faster, reset at a level; two at once."""
    rate = torch.tensor(1.3, dtype=FLOAT, requires_grad=True)
    level = torch.tensor(0.6, dtype=FLOAT, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        slow, fast = y.unbind()
        return torch.stack([rate * (1 - slow), -1e3 * (fast - torch.cos(t)) - torch.sin(t)])

    fires = Event(lambda t, y: y[0] - level, change=lambda t, y: torch.stack([0 * y[0], y[1]]))
    twice = Event(lambda t, y: 2 * (level - y[0]))
    solver = Solver(method="rodas5p", rtol=1e-10, atol=1e-12, gradient=gradient)  # pyright: ignore
    y0 = torch.tensor([0.0, 1.0], dtype=FLOAT)
    found = odeint_event(f, y0, [0.0, 2.0], [fires, twice], solver=solver)
    period = -math.log1p(-0.6) / 1.3
    times = found.t[found.which == 0]
    assert float(times[0].detach()) == pytest.approx(period, rel=1e-8)
    by_rate, by_level = torch.autograd.grad(times[0], [rate, level])
    assert float(by_rate) == pytest.approx(-period / 1.3, rel=1e-7)
    assert float(by_level) == pytest.approx(1 / (1.3 * 0.4), rel=1e-7)
