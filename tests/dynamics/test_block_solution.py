"""`ODEBlock.solve` gives the whole solution, and `random_end` moves the end in training alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, SolveFailed, Solver
from ctflow.dynamics import MLP, ODEBlock
from tests.checks import check_close

FLOAT = torch.float64


def growth(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = y."""
    return y


def test_the_solution_has_state_cost_and_error() -> None:
    """What was asked for, with one value a sample."""
    block, x = ODEBlock(growth), torch.tensor([[1.0], [2.0]], dtype=FLOAT)
    solution = block.solve(x, running_cost=lambda t, y: y[:, 0], local_error=True)
    check_close(solution.y[-1], x * math.e, rtol=1e-6)
    check_close(solution.cost[-1], x[:, 0] * (math.e - 1), rtol=1e-6)
    assert solution.local_error.shape == (2,)
    assert block.stats is solution.stats
    assert torch.equal(solution.y[-1], block.solve(x, running_cost=lambda t, y: y[:, 0]).y[-1])


def test_what_was_not_asked_for_is_none() -> None:
    """And the state is that of a call."""
    block, x = ODEBlock(MLP(2, (4,))), torch.randn(3, 2)
    solution = block.solve(x)
    assert solution.cost is None
    assert solution.local_error is None
    assert torch.equal(solution.y[-1], block(x))


def test_a_failed_solve_raises() -> None:
    """As a call does."""
    block = ODEBlock(lambda t, y: y**2, (0.0, 2.0))
    with pytest.raises(SolveFailed):
        block.solve(torch.ones(1, 1, dtype=FLOAT))


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0)])
def test_a_random_end_is_drawn_in_training_alone(t: tuple[float, float]) -> None:
    """Evenly around t1, anew for each call, from torch's generator."""
    torch.manual_seed(0)
    block = ODEBlock(lambda t, y: torch.ones_like(y), t, random_end=0.5)
    x = torch.zeros(1, 1, dtype=FLOAT)
    ends = torch.tensor([float(block(x)) for _ in range(200)]) + t[0]
    assert float(ends.min()) < t[1] - 0.4
    assert float(ends.max()) > t[1] + 0.4
    assert abs(float(ends.mean()) - t[1]) < 0.1
    assert len(ends.unique()) == 200
    check_close(block.eval()(x), torch.tensor([[t[1] - t[0]]], dtype=FLOAT), rtol=1e-9)
    assert "random_end=0.5" in repr(block)


def test_times_of_ones_own_are_not_moved() -> None:
    """`trajectory` says where it wants to know."""
    block = ODEBlock(lambda t, y: torch.ones_like(y), random_end=0.5, solver=Solver(rtol=1e-6))
    y = block.trajectory(torch.zeros(1, 1, dtype=FLOAT), [0.0, 1.0])
    check_close(y[-1], torch.ones(1, 1, dtype=FLOAT), rtol=1e-9)


@pytest.mark.parametrize("random_end", [-0.1, 1.0, math.nan, "0.5"])
def test_a_random_end_that_reaches_the_start_is_refused(random_end: float) -> None:
    """Negative, too wide, or no number."""
    with pytest.raises(InvalidProblem, match="`random_end` must be"):
        ODEBlock(growth, random_end=random_end)
