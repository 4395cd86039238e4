"""Gradients of events where nothing is known in closed form, against finite differences.

Times of events are smooth functions of what moves them as long as their order stays, and so close
to their limit at these tolerances that differences of them may be taken.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, Solution, Solver, solve
from tests.checks import check_close
from tests.events.known import FLOAT

THETA = torch.tensor([1.2, 0.7, 0.9, 0.5], dtype=FLOAT)
WAY = torch.tensor([0.9, -1.3, 0.4, 1.1], dtype=FLOAT)
STEP = 1e-3  # its fourth power times the fifth derivative, and 1e-11 over it, are below 1e-8


def run(theta: Tensor, gradient: Any) -> Solution:  # noqa: ANN401
    """Van der Pol's oscillator, kicked where a nonlinear function of t and y is zero."""
    mu, c, k, x0 = theta.unbind()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0] + 0.1 * torch.sin(t)])

    def surface(t: Tensor, y: Tensor) -> Tensor:
        return y[0] ** 2 + 0.5 * torch.tanh(c * y[1]) - 1.2 + 0.1 * torch.cos(t * c)

    def kick(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0] * (1 + 0.1 * k), y[1] * k + 0.05 * torch.sin(t)])

    events = [
        Event(surface, terminal=False, change=kick),
        Event(lambda t, y: y[1] - 0.3 * c, direction=1, terminal=False),
    ]
    t = torch.linspace(0.0, 4.1, 4, dtype=FLOAT)
    problem = ODEProblem(f, torch.stack([x0, 0.3 * x0]), t, event=events)
    return solve(problem, Solver(method="dop853", gradient=gradient, rtol=1e-11, atol=1e-12))


def loss(solution: Solution) -> Tensor:
    """Something of everything: times, states before and after, outputs, the end."""
    found = solution.event
    assert found is not None
    assert found.which.tolist() == [0, 1, 0]
    weights = torch.tensor([1.0, 0.5, -0.8], dtype=FLOAT)
    states = (found.y**2).sum() + found.y_after.sum() + found.y_end.prod()
    return (weights * found.t).sum() + states + (solution.y**3).sum()


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """Central difference of fourth order along WAY: the same for every gradient method."""
    with torch.no_grad():
        a, b, c, d = (loss(run(THETA + n * STEP * WAY, "direct")) for n in (1, -1, 2, -2))
    return (8 * (a - b) - (c - d)) / (12 * STEP)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
def test_gradients_through_changes_agree_with_finite_differences(
    gradient: Any,  # noqa: ANN401
    expected: Tensor,
) -> None:
    """Of the start, the field, both event functions and the change, through three events."""
    theta = THETA.clone().requires_grad_()
    (ours,) = torch.autograd.grad(loss(run(theta, gradient)), theta)
    check_close((ours * WAY).sum(), expected, rtol=1e-7, atol=0.0)
