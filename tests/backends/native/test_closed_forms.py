"""States, gradients and second derivatives against solutions that are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from ctflow import ODEProblem, Solver, Unsupported, odeint, solve
from ctflow.backends.native.methods import IMPLICIT, METHODS
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, Linear, limit_cycle, swing

pytestmark = pytest.mark.once

every = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
either = pytest.mark.parametrize("coupling", ["shared", "per_sample"])
adaptive = [name for name, method in (METHODS | IMPLICIT).items() if method.e]
RTOL = 1e-9
A = torch.tensor([[-0.3, 1.2, 0.0], [-1.2, -0.3, 0.4], [0.1, 0.0, 0.2]], dtype=FLOAT)
STATES = torch.tensor([[1.0, 0.5, -0.2], [0.0, -1.0, 0.3]], dtype=FLOAT)
T = torch.tensor([0.3, 1.0, 1.9], dtype=FLOAT)


@either
@pytest.mark.parametrize("method", adaptive)
@pytest.mark.parametrize("t1", [2.0, -2.0])
def test_a_linear_system_follows_the_matrix_exponential(
    method: str, t1: float, coupling: str
) -> None:
    """To ten tolerances, in either direction, with shared and with per-sample steps."""
    f, t = Linear(A), torch.tensor([0.0, t1], dtype=FLOAT)
    solver = Solver(method=method, rtol=1e-7, atol=1e-7, coupling=coupling)
    y = solve(ODEProblem(f, STATES, t), solver).y
    check_relative(y[-1], f.exact(t[-1], STATES), rtol=10 * 1e-7)


@either
@every
def test_gradients_of_a_linear_system_are_those_of_the_matrix_exponential(
    gradient: str, coupling: str
) -> None:
    """For y0, the matrix, and every time, from a loss on all outputs."""
    f = Linear(A)

    def slopes(states: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        y0, t = STATES.clone().requires_grad_(), T.clone().requires_grad_()
        loss = (states(y0, t) ** 3).sum()
        return torch.autograd.grad(loss, (y0, f.a, t))

    solver = Solver(rtol=RTOL, atol=RTOL, gradient=gradient, coupling=coupling)
    found = slopes(lambda y0, t: solve(ODEProblem(f, y0, t), solver).y)
    exact = slopes(lambda y0, t: torch.stack([f.exact(s - t[0], y0) for s in t]))
    check_relative(found, exact, rtol=100 * RTOL)


@every
@pytest.mark.parametrize("loss_on", [1, 2])
@pytest.mark.parametrize("direction", [1, -1])
def test_gradients_of_times_follow_their_closed_form(
    gradient: str, loss_on: int, direction: int
) -> None:
    """dL/dt0 = -a(t0+).f and dL/dti = gi.f, also from a loss on an interior time alone."""
    t = (direction * T).requires_grad_()
    y0 = torch.tensor([0.2, 0.1], dtype=FLOAT, requires_grad=True)
    y = odeint(limit_cycle.f, y0, t, gradient=gradient, rtol=RTOL, atol=RTOL)
    g = torch.tensor([0.7, -1.1], dtype=FLOAT)
    dt, a = torch.autograd.grad(y[loss_on] @ g, (t, y0))
    wanted = torch.zeros_like(t)
    wanted[0] = -a @ limit_cycle.f(t[0].detach(), y0.detach())
    wanted[loss_on] = g @ limit_cycle.f(t[loss_on].detach(), y[loss_on].detach())
    check_close(dt, wanted, rtol=1e-12, atol=1e-14)


@either
@every
@pytest.mark.parametrize("wants", [True, False], ids=["t wants a gradient", "t wants none"])
def test_the_first_output_is_y0_whatever_its_time(
    wants: bool, gradient: str, coupling: str
) -> None:
    """A loss on output 0 moves with y0 alone."""
    t = T.clone().requires_grad_(wants)
    y0 = STATES.clone().requires_grad_()
    y = odeint(Linear(A), y0, t, solver=Solver(gradient=gradient, coupling=coupling))
    dy0, *dt = torch.autograd.grad(y[0].sum(), (y0, t) if wants else (y0,))
    assert torch.equal(dy0, torch.ones_like(y0))
    assert not any(x.any() for x in dt)


@every
def test_the_gradient_of_times_keeps_their_dtype_and_shape(gradient: str) -> None:
    """Float32 times [B, T] beside a float64 state get a float32 gradient [B, T]."""
    t = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]], requires_grad=True)
    solution = solve(ODEProblem(swing.f, STATES[:, :1], t), Solver(gradient=gradient))
    (dt,) = torch.autograd.grad(solution.y.sum(), t)
    assert (dt.dtype, dt.shape) == (torch.float32, (2, 3))


def second_derivatives(of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Hessian of a function of y0, a rate and three times, at one point."""
    at = torch.tensor([1.3, 0.7, -0.2, 0.4, 1.1], dtype=FLOAT)
    return hessian(lambda x: of(x[0:1], x[1], x[2:]), at)


@either
def test_second_derivatives_are_right_under_direct(coupling: str) -> None:
    """Every entry of the Hessian by y0, a parameter and all times, mixed ones included."""

    def solved(y0: Tensor, rate: Tensor, t: Tensor) -> Tensor:
        problem = ODEProblem(lambda t, y, a: a * t * y, y0[:, None], t, args=rate)
        solver = Solver(gradient="direct", coupling=coupling, rtol=1e-11, atol=1e-12)
        y = solve(problem, solver).y[:, 0, 0]
        return torch.sin(y[1]) + y[2] ** 2 + y[0] * y[2]

    def known(y0: Tensor, rate: Tensor, t: Tensor) -> Tensor:
        y = y0 * torch.exp(rate * (t * t - t[0] * t[0]) / 2)
        return torch.sin(y[1]) + y[2] ** 2 + y[0] * y[2]

    check_relative(second_derivatives(solved), second_derivatives(known), rtol=1e-9)


def test_second_derivatives_of_a_nonlinear_field_are_right_under_direct() -> None:
    """Where the slope depends on the state by more than a factor."""

    def loss(y: Tensor) -> Tensor:
        return (y[1] ** 2).sum() + y[2, 0] * y[2, 1]

    def of(states: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        at = torch.cat([torch.tensor([0.4, -0.3], dtype=FLOAT), T])
        return hessian(lambda x: loss(states(x[:2], x[2:])), at)

    found = of(
        lambda y0, t: odeint(limit_cycle.f, y0, t, gradient="direct", rtol=1e-11, atol=1e-12)
    )
    exact = of(lambda y0, t: limit_cycle.exact(t, t[0], y0))
    check_relative(found, exact, rtol=1e-8)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
@pytest.mark.parametrize("wanted", ["y0", "a", "t"])
def test_a_second_differentiation_is_refused_where_it_is_not_recorded(
    gradient: str, wanted: str
) -> None:
    """With respect to anything; the message names the method that can."""
    y0, t = STATES[0].clone().requires_grad_(), T.clone().requires_grad_()
    f = Linear(A)
    y = odeint(f, y0, t, gradient=gradient)
    by = {"y0": y0, "a": f.a, "t": t}[wanted]
    (first,) = torch.autograd.grad(y.square().sum(), by, create_graph=True)
    with pytest.raises(Unsupported, match=f"'{gradient}'.*second time.*gradient='direct'"):
        torch.autograd.grad(first.square().sum(), by)


def test_a_third_differentiation_of_times_is_refused() -> None:
    """The second is right, and nothing is wrong beyond."""
    t = T.clone().requires_grad_()
    y = odeint(swing.f, STATES[0], t, gradient="direct")
    (first,) = torch.autograd.grad(y.square().sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), t, create_graph=True)
    with pytest.raises(Unsupported, match="not a third time"):
        torch.autograd.grad(second.sum(), t)


def test_third_derivatives_by_the_state_are_right() -> None:
    """For dy/dt = y^2, y(1) = y0 / (1 - y0), whose third derivative is 6 / (1 - y0)^4."""
    y0 = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    y = odeint(lambda t, y: y * y, y0, [0.0, 1.0], gradient="direct", rtol=1e-11, atol=1e-11)[-1]
    for _ in range(3):
        (y,) = torch.autograd.grad(y, y0, create_graph=True)
    check_close(y.detach(), torch.tensor(6 / 0.7**4, dtype=FLOAT), rtol=1e-6)
