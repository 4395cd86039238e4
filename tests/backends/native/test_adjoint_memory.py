"""The adjoint needs the memory of a step, and gives all of it back."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, solve
from ctflow.cli.checkout import load_script
from ctflow.dynamics import MLP
from ctflow.errors import GradientWarning
from tests.problems import FLOAT

pytestmark = pytest.mark.once

peak_bytes = load_script(Path(__file__).parents[3], "memory").peak_bytes
gradients = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])


class Wide(nn.Module):
    """dy/dt = tanh(A y) / 2 on rows [B, N]: many more parameters than variables."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(n, n, dtype=FLOAT) / n)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.a) / 2


def peak_of(f: nn.Module, y0: Tensor, t: list[float], solver: Solver, batched: bool) -> int:
    """Peak storage of a solve and its backward pass, less the outputs."""

    def differentiate() -> tuple[Tensor]:
        start = y0.clone().requires_grad_()
        y = solve(ODEProblem(f, start, t, batched=batched), solver).y
        with warnings.catch_warnings():  # storage is the subject, not the gradient
            warnings.simplefilter("ignore", GradientWarning)
            torch.autograd.grad(y[-1].sum(), (start, *f.parameters()))
        return (y,)

    return peak_bytes(differentiate)


@pytest.mark.parametrize("batched", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("n_times", [2, 9])
def test_memory_does_not_grow_with_the_number_of_steps(batched: bool, n_times: int) -> None:
    """From tolerance 1e-4 to 1e-8 the peak stays within a tenth, the outputs subtracted.

    Of steps of a thousand numbers: smaller ones wait for each other, up to 64 KiB of them.
    """
    torch.manual_seed(0)
    f, y0 = MLP(16, (32,)).double(), 2 * torch.randn(64, 16, dtype=FLOAT)
    t = torch.linspace(0, 6, n_times).tolist()
    solver = Solver(gradient="adjoint")
    peaks = [peak_of(f, y0, t, replace(solver, rtol=tol, atol=tol), batched)
             for tol in (1e-4, 1e-6, 1e-8)]  # fmt: skip
    assert max(peaks) <= 1.1 * peaks[0]


@pytest.mark.parametrize("batched", [False, True], ids=["shared", "per_sample"])
def test_a_further_sample_costs_states_and_no_copy_of_the_parameters(batched: bool) -> None:
    """The quadrature of the parameters' gradient never holds a row of it for each sample."""
    torch.manual_seed(0)
    f = Wide(512)
    n_bytes = 8 * f.a.numel()
    solver = Solver(gradient="adjoint", rtol=1e-4, atol=1e-4)
    few, many = (peak_of(f, torch.randn(b, 512, dtype=FLOAT), [0.0, 1.0], solver, batched)
                 for b in (2, 34))  # fmt: skip
    assert few < 12 * n_bytes
    assert (many - few) / 32 < n_bytes / 4


@gradients
def test_a_thousand_solves_hold_no_tensor(gradient: Any) -> None:  # noqa: ANN401
    """Without the garbage collector, every state that f saw is gone when its solve is."""
    rate = torch.tensor(-0.5, dtype=FLOAT, requires_grad=True)
    seen: list[weakref.ref[Any]] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        dy = rate * y
        seen.extend((weakref.ref(y), weakref.ref(dy)))
        return dy

    y0 = torch.ones(2, dtype=FLOAT)
    gc.disable()
    try:
        for _ in range(1000):
            solution = solve(ODEProblem(f, y0, [0.0, 0.5]), Solver(step=0.5, gradient=gradient))
            seen.extend((weakref.ref(solution), weakref.ref(solution.y)))
            torch.autograd.grad(solution.y[-1].sum(), rate)
        del solution
        alive = sum(reference() is not None for reference in seen)
    finally:
        gc.enable()
    assert alive == 0
    assert len(seen) > 10_000


@gradients
@pytest.mark.parametrize("batched", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize(("n_backward", "limit"), [(2, None), (1, None), (0, None), (1, 90)])
def test_whatever_becomes_of_a_solve_it_holds_no_tensor(
    gradient: Any,  # noqa: ANN401
    batched: bool,
    n_backward: int,
    limit: int | None,
) -> None:
    """Adaptive, with several outputs: differentiated twice, once, never, or interrupted."""
    seen: list[weakref.ref[Any]] = []
    module = MLP(2, (4,)).double()

    def f(t: Tensor, y: Tensor) -> Tensor:
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append(weakref.ref(y))
        return module(t, y)

    gc.disable()
    try:
        y0 = torch.randn(3, 2, dtype=FLOAT, requires_grad=True)
        seen.append(weakref.ref(y0))
        problem = ODEProblem(f, y0, [0.0, 0.5, 1.0], batched=batched)
        with contextlib.suppress(KeyboardInterrupt):
            differentiate(problem, Solver(gradient=gradient), n_backward)
        del y0, problem
        alive = sum(reference() is not None for reference in seen)
    finally:
        gc.enable()
    assert alive == 0


def differentiate(problem: ODEProblem, solver: Solver, n_backward: int) -> None:
    """Solve, and run the backward pass so many times."""
    y = solve(problem, solver).y
    for i in range(n_backward):
        torch.autograd.grad(y.sum(), problem.y0, retain_graph=i + 1 < n_backward)
