"""Newton's methods solve stiff problems, by exact Jacobians, and end where f has kinks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, Status, odeint, solve
from ctflow.backends.scipy.slope import jacobian
from tests.backends.scipy.cases import NEWTON, ONE, scipy
from tests.backends.torchdiffeq.cases import solved
from tests.checks import check, check_close, check_relative
from tests.problems import FLOAT

pytestmark = pytest.mark.once

pytest.importorskip("scipy")


def _van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], 100.0 * (1 - y[0] ** 2) * y[1] - y[0]])


def _robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    slow, fast, faster = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([fast - slow, slow - fast - faster, faster])


@pytest.mark.parametrize("method", NEWTON)
def test_van_der_pol_is_solved_through_its_jumps(method: str) -> None:
    """mu = 100 over more than a period, against a far tighter solve by another method."""
    problem = ODEProblem(_van_der_pol, torch.tensor([2.0, 0.0], dtype=FLOAT), [0.0, 60.0, 100.0])
    other = "radau" if method != "radau" else "lsoda"
    expected = solved(problem, scipy(other, 1e-10)).y
    check_relative(solved(problem, scipy(method, 1e-7)).y, expected, rtol=1e-4)


@pytest.mark.parametrize("method", NEWTON)
def test_robertson_matches_the_literature(method: str) -> None:
    """y(40) as in Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.10."""
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=FLOAT)
    y = odeint(_robertson, y0, [0.0, 40.0], solver=scipy(method, 1e-9))
    expected = torch.tensor([0.7158270688, 0.9185534765e-5, 0.2841637457], dtype=FLOAT)
    check_close(y[-1], expected, rtol=1e-5)


def test_an_explicit_method_runs_into_its_limit() -> None:
    """A stiff problem is a status, not an endless solve."""
    problem = ODEProblem(_van_der_pol, torch.tensor([2.0, 0.0], dtype=FLOAT), [0.0, 100.0])
    solution = solve(problem, scipy("adams", max_steps=200))
    check(Status(int(solution.status)) == Status.MAX_STEPS, f"{solution.stops}")


@pytest.mark.parametrize("method", NEWTON)
def test_dynamics_in_numpy_are_solved_without_a_gradient(method: str) -> None:
    """Where autograd finds no way from y to f, SciPy takes differences."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(-500.0 * (y.detach().numpy() - np.cos(t.item())))

    with torch.no_grad():
        solution = solved(ODEProblem(f, ONE, [0.0, 2.0]), scipy(method, 1e-6))
    exact = (500.0**2 * np.cos(2.0) + 500.0 * np.sin(2.0)) / (1 + 500.0**2)
    check_close(solution.y[-1], exact * ONE, rtol=1e-4)
    check(int(solution.stats.forward.n_steps) < 500, "steps as small as stability demands")


@pytest.mark.parametrize("tol", [1e-5, 1e-7])
@pytest.mark.parametrize("method", ["lsoda", "bdf", "adams"])
def test_kinks_never_hang_a_solve(method: str, tol: float) -> None:
    """A network of ReLUs at tight tolerance ends after few evaluations, and is right.

    LSODA with differences for its Jacobian, one evaluation for each of 2 N + P variables, hangs.
    """
    y, found, n_f_evals = _through_kinks(scipy(method, tol))
    y_expected, expected, _ = _through_kinks(Solver(gradient="adjoint", rtol=1e-9, atol=1e-9))
    check_relative(y, y_expected, rtol=100 * tol)
    check_relative(found, expected, rtol=1e3 * tol)  # the adjoint jumps at every kink
    check(n_f_evals < 20_000, f"{n_f_evals} evaluations")


@cache
def _through_kinks(solver: Solver) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """States and gradients of a network of ReLUs, and how many evaluations the gradients took."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    y0 = torch.randn(3, 3, dtype=FLOAT, requires_grad=True)
    solution = solved(ODEProblem(lambda t, y: 3 * net(y), y0, [0.0, 1.0]), solver)
    found = torch.autograd.grad(solution.y[-1].sum(), (y0, *net.parameters()))
    counts = solution.stats.backward
    check(counts is not None, "no counts")
    return solution.y[-1].detach(), found, int(counts.n_f_evals)


def test_the_jacobian_is_that_of_autograd() -> None:
    """Also in several parts, and for operations without a rule for batches."""
    y = torch.linspace(-1, 1, 300, dtype=FLOAT).unsqueeze(0).requires_grad_()
    for operation in (torch.tanh, _Unbatched.apply):
        dy = operation(y) * y.flip(1)
        found = jacobian(dy, y)
        expected = torch.autograd.functional.jacobian(lambda y: torch.tanh(y) * y.flip(1), y)
        check_close(found, expected.reshape(300, 300), rtol=1e-12)


class _Unbatched(torch.autograd.Function):
    """tanh, whose derivative goes through NumPy, where no batch of torch.func can follow."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, y: Tensor) -> Tensor:
        result = torch.tanh(y)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.from_numpy(g.numpy() * (1 - result.numpy() ** 2))
