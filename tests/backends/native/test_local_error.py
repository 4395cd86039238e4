"""The local error that a problem asks for is the method's own estimate, and has its gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, Unsupported, solve
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.step import combine, rk_step
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, blow_up

gradients = pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])
STATES = torch.tensor([[1.0, 0.5], [0.2, -1.5], [3.0, 0.1]], dtype=FLOAT)


def turning(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Non-linear, time-dependent, and different for each sample."""
    return rate * torch.stack([y[:, 1], -torch.sin(y[:, 0])], dim=1) - 0.1 * t * y


def asked(rate: Tensor, y0: Tensor = STATES) -> ODEProblem:
    """The problem, with its local error wanted."""
    return ODEProblem(turning, y0, [0.0, 3.0], args=rate, local_error=True)


def by_hand(times: Tensor, rate: Tensor, method: str = "dopri5") -> Tensor:
    """Sum of |h| rms(estimate) over the steps of one sample, [1], written out."""
    tableau, y, total = METHODS[method], STATES[:1], torch.zeros(1, dtype=FLOAT)
    for t0, t1 in pairwise(times):

        def field(t: Tensor, y: Tensor) -> Tensor:
            return turning(t, y, rate)

        step = rk_step(field, tableau, t0[None], t1[None], y, None)
        estimate = combine(tableau.e, step.k) * step.h
        total = total + (t1 - t0) * estimate.square().mean(dim=1).sqrt()
        y = step.y1
    return total


@gradients
@couplings
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_it_is_the_sum_over_accepted_steps_with_its_gradient(
    method: str, coupling: str, gradient: str
) -> None:
    """Value and gradient of one sample, against the steps taken again one by one."""
    rate = torch.tensor(1.3, dtype=FLOAT, requires_grad=True)
    solver = Solver(method=method, rtol=1e-5, atol=1e-5, gradient=gradient, coupling=coupling)
    solution = solve(asked(rate, STATES[:1]), solver)
    expected = by_hand(solution.stats.step_times[0], rate, method)
    check_close(solution.local_error, expected, rtol=1e-10)
    (found,) = torch.autograd.grad(solution.local_error.sum(), rate)
    (wanted,) = torch.autograd.grad(expected.sum(), rate)
    check_close(found, wanted, rtol=1e-7)


@gradients
def test_a_sample_has_the_same_alone_and_in_a_batch(gradient: str) -> None:
    """Its value, and its part of the gradient."""
    solver = Solver(rtol=1e-6, atol=1e-6, gradient=gradient, coupling="per_sample")
    rate = torch.tensor([[0.3], [2.0], [1.0]], dtype=FLOAT, requires_grad=True)

    def one(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return turning(t, y, rate[:, 0])

    def batched(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return torch.cat([turning(t[i], y[i : i + 1], rate[i]) for i in range(len(y))])

    together = solve(replace(asked(rate), f=batched), solver).local_error
    (slope,) = torch.autograd.grad(together.sum(), rate)
    for i in range(3):
        own = rate[i : i + 1].detach().requires_grad_()
        alone = solve(replace(asked(own, STATES[i : i + 1]), f=one), solver).local_error
        check_close(together[i : i + 1], alone, rtol=1e-10)
        check_relative(slope[i], torch.autograd.grad(alone.sum(), own)[0][0], rtol=1e-7)


@gradients
def test_the_gradient_on_a_frozen_grid_is_that_of_finite_differences(gradient: str) -> None:
    """Of the error and the state together."""
    backend = NativeBackend(control=OnGrid(torch.linspace(0, 3, 7, dtype=FLOAT)))
    solver = Solver(backend=backend, gradient=gradient)

    def both(rate: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve(asked(rate, y0), solver)
        return solution.local_error, solution.y[-1]

    inputs = (torch.tensor(0.7, dtype=FLOAT, requires_grad=True), STATES.clone().requires_grad_())
    assert torch.autograd.gradcheck(both, inputs)


@gradients
def test_a_failed_sample_has_none_and_leaves_the_others_alone(gradient: str) -> None:
    """NaN in its place, and no NaN in the gradient of the rest."""
    y0 = torch.tensor([[0.1], [10.0]], dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(blow_up, y0, [0.0, 1.0], local_error=True)
    solution = solve(problem, Solver(gradient=gradient, coupling="per_sample"))
    assert solution.local_error.isnan().tolist() == [False, True]
    (slope,) = torch.autograd.grad(solution.local_error[0], y0)
    assert float(slope[0]) > 0
    assert float(slope[1]) == 0


def test_it_is_none_where_nobody_asked() -> None:
    """And nothing is computed for it."""
    assert solve(ODEProblem(blow_up, torch.tensor([0.1]), [0.0, 1.0])).local_error is None


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Solver(gradient="adjoint"), "follows the exact solution"),
        (Solver(method="rk4", step=0.1), "no error estimate"),
        (Solver(backend="scipy"), "no differentiable estimate"),
    ],
    ids=["adjoint", "rk4", "scipy"],
)
def test_who_has_none_says_so_before_any_work(solver: Solver, message: str) -> None:
    """With a way out."""
    with pytest.raises(Unsupported, match=message):
        solve(asked(torch.tensor(1.0, dtype=FLOAT)), solver)
