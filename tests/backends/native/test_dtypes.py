"""Every dtype of the state has its own precision, time has its own, and nothing becomes another."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, solve
from ctflow.errors import GradientWarning
from tests.checks import check_relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_values_and_gradients_are_right_by_the_default_tolerance(
    dtype: torch.dtype, gradient: Any, coupling: Any  # noqa: ANN401
) -> None:  # fmt: skip
    """Time in the dtype of the state inside f, in float64 outside; a warning only with reason.

    With two bytes there is one: their tolerance is larger than the error that is warned of.
    """
    seen: set[torch.dtype] = set()
    rate = torch.tensor(1.0, dtype=dtype, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return -rate * y

    y0 = torch.tensor([[1.0], [2.0]], dtype=dtype, requires_grad=True)
    t = torch.linspace(0, 2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if dtype.itemsize == 2 else "error", GradientWarning)
        solution = solve(ODEProblem(f, y0, t), Solver(gradient=gradient, coupling=coupling))
        solution.y.float().sum().backward()
    if gradient == "adjoint":
        assert float(solution.gradient_report.error.max()) < 0.05
    rtol = solution.stats.solver.rtol
    assert rtol is not None
    decayed = torch.exp(-t.double()).reshape(-1, 1, 1)
    start = y0.detach().double()
    assert y0.grad is not None
    assert rate.grad is not None
    pairs = ((solution.y, decayed * start), (y0.grad, decayed.sum() + 0 * start),
             (rate.grad, -(t.double().reshape(-1, 1, 1) * decayed * start).sum()))  # fmt: skip
    for found, wanted in pairs:
        assert found.dtype == dtype
        check_relative(found.detach().double(), wanted, rtol=10 * rtol)
    assert seen == {dtype}
    assert {x.dtype for x in solution.stats.trace} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_time_keeps_its_digits_beside_a_narrow_state(dtype: torch.dtype) -> None:
    """Ten steps of 2^-18 at t = 1000, which neither dtype can tell apart."""
    h = 2.0**-18
    t = torch.tensor([1000.0, 1000.0 + 10 * h], dtype=torch.float64)
    y0 = torch.zeros(1, dtype=dtype)
    solution = solve(ODEProblem(lambda t, y: torch.ones_like(y), y0, t), Solver(step=h))
    assert solution.stats.forward.n_steps.tolist() == [10]
    check_relative(solution.y[-1].double(), torch.tensor([10 * h]).double(), rtol=1e-2)


@dtypes
def test_the_jump_of_a_narrow_dtype_is_seen_from_both_sides(dtype: torch.dtype) -> None:
    """One number of the state's dtype beside the place: up and down again, but for rounding."""
    y = solve(
        ODEProblem(lambda t, y: torch.where(t < 0.5, 1.0, -1.0).to(y).expand_as(y),
                   torch.zeros(1, dtype=dtype), [0.0, 1.0], jump_t=[0.5])  # pyright: ignore
    ).y  # fmt: skip
    assert abs(float(y[-1])) < torch.finfo(dtype).eps  # one stage on the wrong side: 0.03
