"""torchdiffeq gives the native backend's states and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ctflow import ODEProblem, Solver, odeint
from tests.backends.torchdiffeq.cases import TDQ, TOL, differentiated, everything, solved
from tests.checks import check, check_close, check_relative
from tests.problems import FLOAT, swing

GRADIENTS = ("direct", "adjoint")


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_states_and_gradients_are_the_native_ones(gradient: str, direction: int) -> None:
    """States, and gradients of y0, times, args, parameters and a computed context."""
    native = Solver(gradient="direct", rtol=TOL, atol=TOL)
    y, found = differentiated(replace(TDQ, gradient=gradient), direction)
    y_native, expected = differentiated(native, direction)
    check_relative(y, y_native, rtol=10 * TOL)
    check_relative(found, expected, rtol=20 * TOL)  # ten tolerances of either


@pytest.mark.parametrize("t", [(0.2, 0.6, 1.1), (1.1, 0.6, 0.2), (-0.2, -1.0)])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_time_gradients_are_those_of_the_closed_form(gradient: str, t: tuple[float, ...]) -> None:
    """Start, interior and end, in either direction, for a rate that depends on time."""
    times = torch.tensor(t, dtype=FLOAT, requires_grad=True)
    y0 = torch.tensor([1.0, -2.0], dtype=FLOAT, requires_grad=True)
    y = odeint(swing.f, y0, times, solver=replace(TDQ, gradient=gradient))
    expected = torch.stack([swing.exact(time, times[0], y0) for time in times])
    weights = torch.arange(1, y.numel() + 1, dtype=FLOAT).reshape(y.shape)
    found = torch.autograd.grad((weights * y).sum(), (times, y0))
    wanted = torch.autograd.grad((weights * expected).sum(), (times, y0))
    check_relative(found, wanted, rtol=10 * TOL)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4_38"])
def test_times_of_fixed_steps_have_gradients_too(method: str) -> None:
    """Outputs on the grid, where torchdiffeq's own gradient of the time is zero."""
    times = torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT, requires_grad=True)
    y = odeint(
        swing.f, torch.ones(1, dtype=FLOAT), times, solver=Solver("torchdiffeq", method, step=0.25)
    )
    (found,) = torch.autograd.grad(y[1].sum(), times)
    check_close(found[1], 0.5 * y[1, 0].detach(), rtol=1e-12)


def test_second_derivatives_through_direct_are_the_native_ones() -> None:
    """Of the norm of the whole first gradient, times included."""
    expected, found = (
        _second(Solver(b, gradient="direct", rtol=TOL, atol=TOL)) for b in ("native", "torchdiffeq")
    )
    check_relative(found, expected, rtol=100 * TOL)  # differentiated twice


def _second(solver: Solver) -> tuple[torch.Tensor, ...]:
    problem, leaves = everything()
    y = solved(problem, solver).y
    first = torch.autograd.grad((y**2).sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum((g * g).sum() for g in first), leaves)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_nested_state_comes_back_in_its_own_structure(gradient: str) -> None:
    """Dicts and tuples of different shapes are one system, each leaf with T in front."""
    y0 = {"a": torch.ones(2, 3, dtype=FLOAT), "b": (torch.ones((), dtype=FLOAT),)}
    problem = ODEProblem(lambda t, y: {"a": -y["a"], "b": (y["b"][0] * t,)}, y0, [0.0, 0.5, 1.0])
    y = solved(problem, TDQ, gradient=gradient).y
    check(y["a"].shape == (3, 2, 3), f"shape {y['a'].shape}")
    check_close(y["a"][-1], torch.full((2, 3), 0.36787944117, dtype=FLOAT), rtol=10 * TOL)
    check_close(y["b"][0][-1], torch.tensor(1.6487212707, dtype=FLOAT), rtol=10 * TOL)
