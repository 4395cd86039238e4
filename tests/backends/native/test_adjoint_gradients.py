"""The adjoint's gradients are right, for everything that enters a solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from tests.backends.torchdiffeq.cases import differentiated, everything
from tests.checks import check, check_close, check_relative
from tests.problems import FLOAT, Linear

pytestmark = pytest.mark.once

TOL = 1e-10
ADJOINT = Solver(gradient="adjoint", rtol=TOL, atol=TOL)
LEAVES = ["y0", "t", "rate", "w1", "b1", "w2", "b2"]
directions = pytest.mark.parametrize("direction", [1, -1])
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


@directions
@couplings
@pytest.mark.parametrize("other", ["direct", "checkpointed"])
def test_agrees_with_the_gradient_of_the_steps(direction: int, coupling: Any, other: Any) -> None:  # noqa: ANN401
    """For y0, parameters, args, a captured context, t0, t1 and every interior time."""
    adjoint = Solver(gradient="adjoint", rtol=TOL, atol=TOL, coupling=coupling)
    steps = Solver(gradient=other, rtol=TOL, atol=TOL, coupling=coupling)
    y, found = differentiated(adjoint, direction)
    y_steps, wanted = differentiated(steps, direction)
    assert torch.equal(y, y_steps)
    for ours, theirs in zip(found, wanted, strict=True):
        check_relative(ours, theirs, rtol=100 * TOL)


@directions
@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_agrees_with_torchdiffeq(direction: int, gradient: Any) -> None:  # noqa: ANN401
    """Another library's solver, differentiated in either way, by the tolerance of both."""
    other = Solver("torchdiffeq", gradient=gradient, rtol=TOL, atol=TOL)
    _, found = differentiated(ADJOINT, direction)
    _, wanted = differentiated(other, direction)
    for ours, theirs in zip(found, wanted, strict=True):
        check_relative(ours, theirs, rtol=1000 * TOL)


@directions
@pytest.mark.parametrize("leaf", [0, 1, 2, 4, 5, 6, 7], ids=LEAVES)
def test_agrees_with_finite_differences_on_a_frozen_grid(direction: int, leaf: int) -> None:
    """Along a random change of one leaf, on steps that do not move with it."""
    nodes = direction * torch.linspace(0.05, 1.35, 66, dtype=FLOAT)
    frozen = Solver(NativeBackend(control=OnGrid(nodes)), gradient="adjoint")
    problem, leaves = everything(direction)
    change = torch.randn(
        leaves[leaf].shape, dtype=FLOAT, generator=torch.Generator().manual_seed(1)
    )
    y = solve(problem, frozen).y
    (found,) = torch.autograd.grad(y.pow(2).sum(), leaves[leaf])
    losses = []
    for sign in (1e-5, -2e-5):  # to +1e-5, and from there to -1e-5
        with torch.no_grad():
            leaves[leaf].add_(sign * change)
            losses.append(solve(problem, frozen).y.pow(2).sum())
    wanted = (losses[0] - losses[1]) / 2e-5
    check_close((found * change).sum(), wanted, rtol=1e-6, atol=1e-6)


@couplings
def test_agrees_with_the_matrix_exponential(coupling: Any) -> None:  # noqa: ANN401
    """For linear f the gradients of y0, A, t0 and t1 are known."""
    a = torch.tensor([[-0.3, 1.1], [-0.9, 0.2]], dtype=FLOAT)
    f = Linear(a)
    y0 = torch.tensor([[1.0, -0.4], [0.3, 2.0], [0.0, 1.0]], dtype=FLOAT, requires_grad=True)
    t = torch.tensor([0.2, 1.7], dtype=FLOAT, requires_grad=True)
    y = odeint(f, y0, t, solver=Solver(gradient="adjoint", rtol=1e-11, atol=1e-12,
                                       coupling=coupling))  # fmt: skip
    found = torch.autograd.grad(y[-1].pow(3).sum(), (y0, f.a, t))
    wanted = torch.autograd.grad(f.exact(t[1] - t[0], y0).pow(3).sum(), (y0, f.a, t))
    check_relative(found, wanted, rtol=1e-8)


@directions
def test_interior_times_move_their_own_output_alone(direction: int) -> None:
    """dL/dt_i = g_i . f(t_i, y_i) for each i >= 1, jumps or not."""
    problem, _ = everything(direction)
    y = solve(problem, ADJOINT).y
    g = torch.linspace(-1, 1, y.numel(), dtype=FLOAT).reshape(y.shape)
    (found,) = torch.autograd.grad((g * y).sum(), problem.t)
    slopes = torch.stack([problem.f(t, x, problem.args) for t, x in zip(problem.t, y, strict=True)])
    check_close(found[1:], (g * slopes).sum(dim=(1, 2))[1:].detach(), rtol=1e-10)


@directions
def test_the_start_time_obeys_algorithm_two(direction: int) -> None:
    """dL/dt0 = -a(t0+) . f(t0, y0), with a before the gradient of output 0 is added."""
    problem, (y0, t, *_) = everything(direction)
    y = solve(problem, ADJOINT).y
    a, dt = torch.autograd.grad(y[1:].pow(2).sum(), (y0, t), retain_graph=True)
    wanted = -(a * problem.f(t[0], y0, problem.args)).sum().detach()
    check_close(dt[0], wanted, rtol=0.0, atol=1e-8)
    (also_first,) = torch.autograd.grad(y.pow(2).sum(), t)
    check_close(also_first[0], wanted, rtol=0.0, atol=1e-8)


@directions
def test_algorithm_two_written_out_gives_the_same(direction: int) -> None:
    """The paper's augmented system [z, a, a_theta, a_t], solved by `odeint` as one state."""
    problem, leaves = everything(direction)
    ends = problem.t.detach()[[0, -1]]
    wanted = literal_algorithm_two(problem, leaves, ends)
    t = ends.clone().requires_grad_()
    y = odeint(problem.f, leaves[0], t, args=problem.args, solver=ADJOINT)
    found = torch.autograd.grad(y[-1].pow(2).sum(), (leaves[0], *leaves[2:], t))
    for ours, theirs in zip(found, wanted, strict=True):
        check_close(ours, theirs, rtol=0.0, atol=1e-8)


def literal_algorithm_two(
    problem: ODEProblem, leaves: tuple[Tensor, ...], ends: Tensor
) -> tuple[Tensor, ...]:
    """Gradient of |z(t1)|^2 for z(t0), every parameter, t0 and t1; appendix C of the paper."""
    theta = leaves[2:]
    exact = Solver(rtol=1e-12, atol=1e-13)

    def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            now, z = t.detach().requires_grad_(), state[0].detach().requires_grad_()
            f = problem.f(now, z, problem.args)
            pulled = torch.autograd.grad(f, (z, now, *theta), state[1], retain_graph=True)
        return f.detach(), -pulled[0], -pulled[1], *(-x for x in pulled[2:])

    with torch.no_grad():
        z1 = odeint(problem.f, leaves[0], ends, args=problem.args, solver=exact)[-1]
        a1 = 2 * z1
        dt1 = (a1 * problem.f(ends[1], z1, problem.args)).sum()
        start = (z1, a1, -dt1, *(torch.zeros_like(x) for x in theta))
        _, a, dt0, *rest = odeint(augmented, start, ends.flip(0), solver=exact)
    return a[-1], *(x[-1] for x in rest), torch.stack([dt0[-1], dt1])


@pytest.mark.parametrize("index", range(4))
def test_a_loss_on_one_output_has_the_gradient_of_a_solve_to_there(index: int) -> None:
    """Whatever lies beyond it adds nothing; output 0 is y0 itself."""
    problem, leaves = everything()
    y = solve(problem, ADJOINT).y[index]
    found = torch.autograd.grad(y.pow(2).sum(), leaves, materialize_grads=True, allow_unused=True)
    other, inputs = everything()
    steps = solve(other, Solver(gradient="direct", rtol=TOL, atol=TOL)).y[index]
    wanted = torch.autograd.grad(
        steps.pow(2).sum(), inputs, materialize_grads=True, allow_unused=True
    )
    for ours, theirs in zip(found, wanted, strict=True):
        check_relative(ours, theirs, rtol=100 * TOL)


def test_a_graph_that_is_kept_gives_the_same_gradient_again() -> None:
    """Nothing of the first backward pass is left over for the second."""
    problem, leaves = everything()
    loss = solve(problem, ADJOINT).y.pow(2).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_the_size_of_the_loss_does_not_change_the_steps() -> None:
    """A sum and a mean are differentiated alike: the gradients differ by their factor alone."""
    problem, leaves = everything()
    y = solve(problem, ADJOINT).y
    whole = torch.autograd.grad(y.pow(2).sum(), leaves, retain_graph=True)
    small = torch.autograd.grad(2.0**-40 * y.pow(2).sum(), leaves)
    assert all(torch.equal(x, 2.0**40 * y) for x, y in zip(whole, small, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_nested_states(dtype: torch.dtype) -> None:
    """A state in a dict gets its gradient in the same places and dtype."""
    rate = torch.tensor(0.7, dtype=dtype, requires_grad=True)
    y0 = {"a": torch.ones(2, dtype=dtype, requires_grad=True),
          "b": torch.full((1, 3), 0.5, dtype=dtype, requires_grad=True)}  # fmt: skip

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": -rate * y["a"] * y["b"].sum(), "b": y["a"].sum() * y["b"].cos()}

    def gradient(solver: Solver) -> tuple[Tensor, ...]:
        y = odeint(f, y0, [0.0, 0.4, 1.0], solver=solver)
        return torch.autograd.grad(y["a"].sum() + y["b"][1].sum(), (rate, *y0.values()))

    found = gradient(Solver(gradient="adjoint"))
    check({x.dtype for x in found} == {dtype}, "dtype of the gradients")
    tolerance = 1e-5 if dtype == torch.float64 else 1e-3
    check_relative(found, gradient(Solver(gradient="direct")), rtol=tolerance)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_with_fixed_steps_it_converges_to_the_gradient(method: str) -> None:
    """It is not the gradient of the steps taken, but of the solution they approach."""
    wanted = differentiated(Solver(gradient="direct", rtol=1e-12, atol=1e-12))[1]
    errors = []
    for step in (0.1, 0.05):
        found = differentiated(Solver(gradient="adjoint", method=method, step=step))[1]
        errors.append(max(float((x - y).norm()) for x, y in zip(found, wanted, strict=True)))
    assert errors[1] < errors[0] / 8
    assert errors[1] < 1e-4
