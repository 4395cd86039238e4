"""Gradients of implicit steps are those of the steps taken, by every way that is offered."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.autograd.functional import hessian

from ctflow import InvalidProblem, ODEProblem, Solver, odeint, odeint_dense, solve
from ctflow.backends.native.implicit import linearise
from ctflow.backends.protocol import Coupling, Gradient
from tests.backends.native.test_finite_differences import check_against_differences
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, limit_cycle
from tests.property.strategies import trials
from tests.property.trial import Choices, gradient_of, make_trial, reference

RTOL = 1e-8
STIFF = Solver(method="rodas5p", rtol=RTOL, atol=RTOL)
either = pytest.mark.parametrize("gradient", ["direct", "checkpointed"])


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
@settings(max_examples=3)
@given(choices=trials(batched=True))
def test_the_gradient_is_that_of_the_steps_taken(coupling: Coupling, choices: Choices) -> None:
    """y0, parameters, args and every time, against differences on a frozen grid, to 1e-6."""
    solver = Solver(method="rodas5p", gradient="checkpointed", coupling=coupling)
    check_against_differences(choices, solver)


@settings(max_examples=3)
@given(choices=trials(batched=False))
def test_direct_differentiates_the_steps_taken(choices: Choices) -> None:
    """The same for a state of any structure that is one system."""
    check_against_differences(choices, Solver(method="rodas5p", gradient="direct"))


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
@settings(max_examples=4)
@given(choices=trials(batched=True))
def test_checkpointed_is_direct(coupling: Coupling, choices: Choices) -> None:
    """Redoing the accepted steps gives the numbers of back-propagating through them."""
    trial = make_trial(choices)
    solver = replace(STIFF, rtol=1e-6, atol=1e-6, coupling=coupling)
    direct = gradient_of(trial, replace(solver, gradient="direct"))
    check_relative(gradient_of(trial, replace(solver, gradient="checkpointed")), direct, rtol=1e-9)


@settings(max_examples=6)
@given(choices=trials())
def test_it_is_the_gradient_that_explicit_methods_find(choices: Choices) -> None:
    """Where nothing is stiff, for everything that enters the problem."""
    trial = make_trial(choices)
    check_relative(gradient_of(trial, STIFF), reference(choices), rtol=trial.amplified(RTOL))


def _relaxing(rates: Tensor) -> Any:  # noqa: ANN401
    """y' = -rates (y - sin t) + cos t, whose solution from sin t0 depends on no rate."""
    return lambda t, y: -rates * (y - torch.sin(t)) + torch.cos(t)


@either
def test_a_stiff_decay_forgets_its_start_and_its_rate(gradient: Gradient) -> None:
    """dy(t1)/dy0 = exp(-rate (t1 - t0)) and dy(t1)/drate = -(t1 - t0) (y0 - sin t0) of that."""
    rates = torch.tensor([1.0, 1e3, 1e6], dtype=FLOAT, requires_grad=True)
    y0 = torch.full((3,), 0.5, dtype=FLOAT, requires_grad=True)
    y = odeint(_relaxing(rates), y0, [0.0, 2.0], solver=replace(STIFF, gradient=gradient))[-1]
    dy0, drates = torch.autograd.grad(y.sum(), (y0, rates))
    decay = torch.exp(-2 * rates.detach())
    check_close(dy0, decay, rtol=1e-5, atol=1e-7)
    check_close(drates, -2 * 0.5 * decay, rtol=1e-5, atol=1e-7)


def test_a_gradient_at_every_output_of_a_stiff_problem_is_finite_and_right() -> None:
    """Outputs inside steps, per sample, up and down in time, from a tuple of leaves."""
    k = torch.tensor(40.0, dtype=FLOAT, requires_grad=True)

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -k * (y[0] - torch.cos(t)), y[0] - 0.1 * y[1]

    y0 = (torch.ones(2, 1, dtype=FLOAT), torch.zeros(2, 1, dtype=FLOAT))
    t = torch.tensor([[0.0, 0.3, 0.31, 1.0], [0.0, 0.2, 0.5, 2.0]], dtype=FLOAT)
    found, wanted = [
        torch.autograd.grad(sum(x.square().sum() for x in solve(ODEProblem(f, y0, t), s).y), k)
        for s in (STIFF, Solver(method="dop853", rtol=1e-11, atol=1e-11))
    ]
    check_relative(found, wanted, rtol=1e-5, floor=1e-3)


def test_second_derivatives_are_right_under_direct() -> None:
    """Through f, its Jacobian and the factors: by y0 and all times, against a closed form."""

    def of(states: Any) -> Tensor:  # noqa: ANN401
        at = torch.tensor([0.4, -0.3, 0.3, 1.0, 1.9], dtype=FLOAT)
        return hessian(lambda x: (states(x[:2], x[2:])[1:] ** 3).sum(), at)

    tight = Solver(method="rodas5p", gradient="direct", rtol=1e-9, atol=1e-10)
    found = of(lambda y0, t: odeint(limit_cycle.f, y0, t, solver=tight))
    check_relative(found, of(lambda y0, t: limit_cycle.exact(t, t[0], y0)), rtol=1e-6)


@either
def test_the_solution_as_a_function_has_its_gradient(gradient: Gradient) -> None:
    """Values, slopes and the gradient of a parameter between the steps."""
    rate = torch.tensor(30.0, dtype=FLOAT, requires_grad=True)
    y0 = torch.full((1,), 0.5, dtype=FLOAT)
    sol = odeint_dense(_relaxing(rate), y0, [0.0, 1.0], solver=replace(STIFF, gradient=gradient))
    t = torch.linspace(0, 1, 37, dtype=FLOAT)
    y = torch.sin(t) + 0.5 * torch.exp(-rate.detach() * t)
    check_close(sol(t)[:, 0].detach(), y, rtol=1e-6, atol=1e-7)
    (found,) = torch.autograd.grad(sol(t).sum(), rate)
    check_close(found, -(0.5 * t * torch.exp(-rate.detach() * t)).sum(), rtol=1e-4)


@either
def test_what_f_captures_from_y0_is_no_part_of_the_jacobian(gradient: Gradient) -> None:
    """f reads a tensor computed from y0: df/dy is by the argument alone, the gradient by both."""
    y0 = torch.tensor([0.7], dtype=FLOAT, requires_grad=True)
    rate = 2.0 * y0
    y = odeint(lambda _, y: -rate * y, y0, [0.0, 1.0], solver=replace(STIFF, gradient=gradient))
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    check_close(found, (1 - 2 * y0.detach()) * torch.exp(-2 * y0.detach()), rtol=1e-6)


@either
def test_a_module_without_a_wanted_state_gets_its_gradient(gradient: Gradient) -> None:
    """y0 wants none; every weight gets the gradient of a tight explicit solve."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    y0 = torch.randn(4, 3, dtype=FLOAT)

    def slopes(solver: Solver) -> tuple[Tensor, ...]:
        problem = ODEProblem(lambda t, y: net(y) + torch.sin(3 * t), y0, [0.0, 0.4, 1.0])
        loss = solve(replace(problem, batched=True), solver).y.square().sum()
        return torch.autograd.grad(loss, tuple(net.parameters()))

    wanted = slopes(Solver(method="dop853", rtol=1e-11, atol=1e-11))
    check_relative(slopes(replace(STIFF, gradient=gradient)), wanted, rtol=1e-6)


def test_a_solve_without_anything_to_differentiate_has_no_graph() -> None:
    """Although f is differentiated in every step."""
    y = odeint(limit_cycle.f, torch.tensor([0.2, 0.1]), [0.0, 1.0], method="rodas5p")
    assert not y.requires_grad


def test_the_derivatives_are_those_of_f_row_by_row() -> None:
    """df/dy and df/dt of a batch; of an f that does not depend on time None."""
    t, y = torch.tensor([0.3, 0.8], dtype=FLOAT), torch.randn(2, 3, dtype=FLOAT)
    found = linearise(lambda t, y: torch.sin(t)[:, None] * y * y.sum(1, keepdim=True), t, y)
    by_y = torch.sin(t)[:, None, None] * (
        torch.eye(3, dtype=FLOAT) * y.sum(1)[:, None, None] + y[:, :, None]
    )
    check_close(found.by_y, by_y, rtol=1e-12, atol=1e-12)
    assert found.by_t is not None
    check_close(found.by_t, torch.cos(t)[:, None] * y * y.sum(1, keepdim=True), rtol=1e-12)
    assert linearise(lambda _, y: -y, t, y).by_t is None


class Square(torch.autograd.Function):
    """-y^2, whose backward pass can itself not be differentiated."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(y)
        return -(y.detach() ** 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        (y,) = ctx.saved_tensors
        return -2 * y * gradients[0]


def attention(t: Tensor, y: Tensor) -> Tensor:
    """Fused on a CPU, with a backward pass that has no derivative."""
    rows = y.reshape(1, 1, 4, 2)
    return torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).reshape(4, 2) - y


@pytest.mark.parametrize("f", [lambda t, y: Square.apply(y), attention], ids=["once", "attention"])
def test_an_f_that_can_be_differentiated_once_is_refused_where_a_gradient_is_wanted(
    f: Any,  # noqa: ANN401
) -> None:
    """Its Jacobian would be a constant to autograd, and the gradient wrong; values are right."""
    y0 = torch.linspace(0.5, 2, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    with pytest.raises(InvalidProblem, match="derivative of its own"):
        odeint(f, y0, [0.0, 1.0], method="rodas5p")
    with torch.no_grad():
        ours = odeint(f, y0, [0.0, 1.0], method="rodas5p", rtol=1e-8, atol=1e-8)
        theirs = odeint(f, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_a_kink_is_no_missing_derivative(gradient: str) -> None:
    """Piecewise linear fields are taken, also at their kink."""
    y0 = torch.tensor([0.0, 1e-5, 1.0], dtype=torch.float64, requires_grad=True)
    y = odeint(
        lambda t, y: torch.where(y > 0, -y, -3.0 * y), y0, [0.0, 1.0], method="rodas5p",
        gradient=gradient,
    )  # fmt: skip
    (found,) = torch.autograd.grad(y[-1, 2], y0)
    assert abs(float(found[2]) - math.exp(-1)) < 1e-6


def test_a_parameter_alone_wants_a_gradient_too() -> None:
    """And an `f` without any is solved as it is."""
    y0, scale = torch.ones(3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    odeint(lambda t, y: scale * Square.apply(y), y0, [0.0, 1.0], method="rodas5p")
    scale.requires_grad_()
    with pytest.raises(InvalidProblem, match="derivative of its own"):
        odeint(
            lambda t, y: scale.detach() * Square.apply(y) + scale, y0, [0, 1.0], method="rodas5p"
        )
