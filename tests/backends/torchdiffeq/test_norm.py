"""What takes part in accepting a step, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem
from tests.backends.torchdiffeq.cases import TDQ, TOL, solved
from tests.checks import check, check_close
from tests.problems import FLOAT

GRADIENTS = ("direct", "adjoint")
Y0 = torch.tensor([0.7, -0.2], dtype=FLOAT)


def _cost(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(30 * t) * (y * y).sum()  # far rougher than the path


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_running_cost_takes_part_unless_it_is_told_not_to(gradient: str) -> None:
    """Outside the norm the steps are those of the path alone, forward and backward."""

    def problem(**cost: object) -> ODEProblem:
        return ODEProblem(lambda t, y: -y, Y0.clone().requires_grad_(), [0.0, 0.5, 1.0], **cost)

    path, outside, inside = (
        solved(p, TDQ, gradient=gradient)
        for p in (
            problem(),
            problem(running_cost=_cost, cost_in_norm=False),
            problem(running_cost=_cost),
        )
    )
    for solution in (path, outside, inside):
        solution.y.sum().backward()
    check_close(outside.y, path.y, rtol=1e-12)
    check_close(outside.stats.step_times, path.stats.step_times, rtol=1e-9)
    check(inside.stats.forward.n_steps > path.stats.forward.n_steps, "the cost is not in the norm")
    check(outside.stats.backward.n_steps <= path.stats.backward.n_steps + 2, "backward differs")


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_running_cost_is_the_native_one(gradient: str) -> None:
    """Value, and gradient through it."""
    found: list[Tensor] = []
    for solver in (replace(TDQ, gradient=gradient), replace(TDQ, backend="native")):
        y0 = Y0.clone().requires_grad_()
        cost = solved(ODEProblem(lambda t, y: -y, y0, [0.0, 1.0], running_cost=_cost), solver).cost
        found += [cost.detach()[-1], *torch.autograd.grad(cost[-1], y0)]
    check_close(found[0], found[2], rtol=0, atol=10 * TOL)
    check_close(found[1], found[3], rtol=0, atol=10 * TOL)
