"""A sample's result is the same alone and in any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, Status, solve
from ctflow.backends.native.methods import IMPLICIT, METHODS
from ctflow.dynamics import MLP
from tests.checks import check, check_relative
from tests.problems import FLOAT, blow_up, row_wise

pytestmark = pytest.mark.once

TIMES = torch.tensor([0.0, 0.21, 0.5, 1.3], dtype=FLOAT)
EVERY = METHODS | IMPLICIT
SETTINGS = [
    Solver(method=name, rtol=1e-5, atol=1e-7) for name, method in EVERY.items() if method.e
] + [Solver(method=name, step=0.07) for name in EVERY]
settings = pytest.mark.parametrize("solver", SETTINGS, ids=str)


def states(batch: int, *shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    """Normal states, the same for every call."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *shape, dtype=FLOAT, generator=generator).to(dtype)


def run(f: Any, y0: Tensor, t: Tensor, solver: Solver | None = None) -> Solution:  # noqa: ANN401
    """Solve with a step size for each sample."""
    return solve(ODEProblem(f, y0, t, batched=True), solver)


def alone(f: Any, y0: Tensor, t: Tensor, b: int, solver: Solver | None = None) -> Solution:  # noqa: ANN401
    """The same for sample b by itself."""
    return run(f, y0[b : b + 1], t if t.dim() == 1 else t[b : b + 1], solver)


def check_same_bits(batch: Solution, b: int, single: Solution) -> None:
    """Raise unless values, status, costs and step times of a sample agree bit for bit."""
    check(torch.equal(batch.y[:, b].nan_to_num(), single.y[:, 0].nan_to_num()), f"values of {b}")
    check(torch.equal(batch.status[b : b + 1], single.status), f"status of {b}")
    for name, column in vars(batch.stats.forward).items():
        check(column[b] == getattr(single.stats.forward, name)[0], f"{name} of {b}")
    steps = single.stats.step_times[0]
    check(torch.equal(batch.stats.step_times[b, : len(steps)], steps), f"steps of {b}")


@settings
def test_sample_result_does_not_depend_on_its_batch(solver: Solver) -> None:
    """Outputs at interior times, costs and steps are those of the sample alone, bit for bit."""
    y0 = states(9, 3)
    batch = run(row_wise, y0, TIMES, solver)
    for b in range(9):
        check_same_bits(batch, b, alone(row_wise, y0, TIMES, b, solver))


@pytest.mark.parametrize("shape", [(1,), (2,), (17,), (4, 5)], ids=str)
@pytest.mark.parametrize("batch", [2, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bits_do_not_depend_on_size_or_dtype(
    shape: tuple[int, ...], batch: int, dtype: torch.dtype
) -> None:
    """Sums over a sample's variables are taken in the same order in any batch."""
    y0 = states(batch, *shape, dtype=dtype)
    together = run(row_wise, y0, TIMES)
    check_same_bits(together, 0, alone(row_wise, y0, TIMES, 0))
    check_same_bits(together, batch - 1, alone(row_wise, y0, TIMES, batch - 1))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_bits_do_not_depend_on_threads_that_split_a_large_sample(n_threads: int) -> None:
    """40 000 variables, enough for torch to split one sample's sum, give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        y0 = states(3, 40_000)
        solver = Solver(rtol=1e-3, atol=1e-3)
        batch = run(row_wise, y0, TIMES, solver)
        check_same_bits(batch, 1, alone(row_wise, y0, TIMES, 1, solver))
    finally:
        torch.set_num_threads(before)


def test_each_sample_may_have_times_and_a_direction_of_its_own() -> None:
    """Rows of [B, T], up and down, long and short, are solved as if alone."""
    y0 = states(4, 2)
    t = torch.tensor([[0, 0.5, 2], [1, 0.5, -1], [-3, -2.9, -2.8], [0.3, 0.2, -2]], dtype=FLOAT)
    batch = run(row_wise, y0, t)
    for b in range(4):
        check_same_bits(batch, b, alone(row_wise, y0, t, b))


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_an_exploding_neighbour_changes_no_bit(gradient: str) -> None:
    """Beside a sample that fails, values and gradient of the others are those without it."""
    y0 = torch.tensor([[0.3], [4.0], [-0.7]], dtype=FLOAT)
    solver = Solver(gradient=gradient)

    def solved(rows: list[int]) -> tuple[Solution, Tensor]:
        start = y0[rows].clone().requires_grad_()
        solution = run(blow_up, start, TIMES, solver)
        (slope,) = torch.autograd.grad(solution.y[:, [0, -1]].square().sum(), start)
        return solution, slope

    (batch, slope), (pair, wanted) = solved([0, 1, 2]), solved([0, 2])
    assert batch.status.tolist() == [Status.OK, batch.status[1], Status.OK] != [0, 0, 0]
    assert torch.equal(batch.y[:, [0, 2]], pair.y)
    assert torch.equal(slope[[0, 2]], wanted)
    assert slope[1].item() == 0


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_gradient_of_a_sample_does_not_depend_on_its_batch(gradient: str) -> None:
    """The gradient of y0 and of per-sample times is that of the sample alone, bit for bit."""
    y0, t = states(5, 2), TIMES.expand(5, -1) + torch.arange(5)[:, None] / 8
    solver = Solver(gradient=gradient)

    def slopes(rows: slice) -> tuple[Tensor, ...]:
        start, times = y0[rows].clone().requires_grad_(), t[rows].clone().requires_grad_()
        solution = run(row_wise, start, times, solver)
        return torch.autograd.grad(solution.y.square().sum(), (start, times))

    batch = slopes(slice(0, 5))
    for b in range(5):
        for found, wanted in zip(batch, slopes(slice(b, b + 1)), strict=True):
            assert torch.equal(found[b], wanted[0])


def test_matrix_products_agree_within_rounding() -> None:
    """Where f multiplies matrices, whose bits depend on the batch, a sample agrees to 100 eps."""
    torch.manual_seed(0)
    f, y0 = MLP(3, (8,)).double(), states(7, 3)
    batch = run(f, y0, TIMES)
    eps = torch.finfo(FLOAT).eps
    for b in range(7):
        check_relative(batch.y[:, b], alone(f, y0, TIMES, b).y[:, 0], rtol=100 * eps)


def test_shared_steps_are_those_of_the_whole_batch() -> None:
    """Under coupling='shared' the batch is one system with one row of costs."""
    solution = run(row_wise, states(4, 2), TIMES, Solver(coupling="shared"))
    assert solution.status.shape == solution.stats.forward.n_steps.shape == (1,)


def test_two_variables_are_not_two_samples() -> None:
    """A bare problem is one system whatever its shape."""
    problem = ODEProblem(row_wise, states(4, 2), TIMES)
    assert solve(problem).stats.solver.coupling == "shared"
    assert solve(replace(problem, batched=True)).stats.solver.coupling == "per_sample"
