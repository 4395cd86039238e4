"""Derivatives by the times in forward mode and under torch.func, of first and second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctflow import ODEProblem, Solver, Unsupported, odeint, solve
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from tests.checks import check_close
from tests.problems import FLOAT

# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
]

MATRIX = torch.tensor([[-0.3, 1.0], [-1.0, -0.2]], dtype=FLOAT)
Y0 = torch.tensor([1.0, 0.5], dtype=FLOAT)
T = torch.tensor([0.2, 0.7, 1.3], dtype=FLOAT)
SOLVERS = [
    Solver(rtol=1e-10, atol=1e-11, gradient="direct"),
    Solver(rtol=1e-10, atol=1e-11, method="tsit5", controller="pid"),
    Solver(step=0.05, method="dopri5"),
]
fwd, rev = torch.func.jacfwd, torch.func.jacrev
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=str)


def spiral(t: Tensor, y: Tensor) -> Tensor:
    """A linear system whose rate depends on time, for states [2] or [B, 2]."""
    return (y @ MATRIX.T) * (1 + torch.cos(t))


def exact(t: Tensor, y0: Tensor = Y0) -> Tensor:
    """Its solution at every time, [T, 2]."""
    phase = t - t[0] + torch.sin(t) - torch.sin(t[0])
    return torch.linalg.matrix_exp(MATRIX * phase.reshape(-1, 1, 1)) @ y0


@solvers
@pytest.mark.parametrize("transform", [fwd, rev])
def test_the_jacobian_of_all_times_is_right_in_both_modes(
    solver: Solver, transform: Callable[..., Any]
) -> None:
    """The first, those between and the last; and the values are those without a derivative."""

    def outputs(t: Tensor) -> Tensor:
        return odeint(spiral, Y0, t, solver=solver)

    check_close(transform(outputs)(T), rev(exact)(T), rtol=1e-7, atol=1e-8)
    assert torch.equal(torch.func.vjp(outputs, T)[0], outputs(T))


@pytest.mark.parametrize("solver", [Solver(rtol=1e-7, atol=1e-8), SOLVERS[-1]], ids=str)
@pytest.mark.parametrize("outer", [fwd, rev])
@pytest.mark.parametrize("inner", [fwd, rev])
def test_second_derivatives_of_times_are_right_in_every_order_of_the_modes(
    solver: Solver, outer: Callable[..., Any], inner: Callable[..., Any]
) -> None:
    """Twice by times, and once by times and once by the state."""

    def outputs(t: Tensor, y0: Tensor) -> Tensor:
        return odeint(spiral, y0, t, solver=solver)

    for argnum in (0, 1):
        found = outer(inner(outputs, argnums=argnum))(T, Y0)
        wanted = rev(rev(exact, argnums=argnum))(T, Y0)
        check_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_forward_mode_of_times_on_a_frozen_grid_is_that_of_finite_differences() -> None:
    """Non-linear, the steps the same: the difference is that of the interpolant, and no more."""
    nodes = torch.linspace(0.0, 1.5, 76, dtype=FLOAT)
    frozen = Solver(NativeBackend(control=OnGrid(nodes)), method="dop853", gradient="direct")

    def bend(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], (1 - y[0] ** 2) * y[1] * (1 + torch.sin(t)) - y[0]])

    def outputs(t: Tensor) -> Tensor:
        return odeint(bend, Y0, t, solver=frozen)

    tangent, h = torch.tensor([0.3, -1.0, 0.7], dtype=FLOAT), 1e-5
    wanted = (outputs(T + h * tangent) - outputs(T - h * tangent)) / (2 * h)
    found = torch.func.jvp(outputs, (T,), (tangent,))[1]
    check_close(found, wanted, rtol=1e-7, atol=1e-8)


def test_a_dual_time_has_the_tangent_with_and_without_recording() -> None:
    """Dual numbers without torch.func; `no_grad` is no business of forward mode."""
    tangent = torch.tensor([0.3, -1.0, 0.7], dtype=FLOAT)
    wanted = torch.func.jvp(exact, (T,), (tangent,))[1]
    for recording in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(recording):
            t = forward_ad.make_dual(T, tangent)
            y = odeint(spiral, Y0, t, rtol=1e-10, atol=1e-11)
            found = forward_ad.unpack_dual(y).tangent
            assert found is not None
            check_close(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("transform", [fwd, rev])
def test_rows_of_times_in_both_directions_with_a_mask(transform: Callable[..., Any]) -> None:
    """Each sample's outputs have the derivative of its own times, padding none."""
    times = torch.stack([T, T.flip(0)])
    counts = torch.tensor([[True, True, True], [True, True, False]])
    solver = Solver(rtol=1e-10, atol=1e-11, gradient="direct")
    y0 = torch.stack([Y0, 2 * Y0])

    def outputs(t: Tensor) -> Tensor:
        return solve(ODEProblem(spiral, y0, t, mask=counts), solver).y * counts.T.unsqueeze(2)

    def known(t: Tensor) -> Tensor:
        rows = [exact(row, start) for row, start in zip(t, y0, strict=True)]
        return torch.stack(rows, dim=1) * counts.T.unsqueeze(2)

    check_close(transform(outputs)(times), rev(known)(times), rtol=1e-8, atol=1e-9)


def test_a_jump_between_the_times_is_passed() -> None:
    """dy/dt is 1 before the jump and 3 behind it."""

    def outputs(t: Tensor) -> Tensor:
        return odeint(lambda t, y: torch.where(t < 0.5, 1.0, 3.0) * y, Y0, t, rtol=1e-10,
                      atol=1e-11, jump_t=[0.5], gradient="direct")  # fmt: skip

    y = Y0 * torch.exp(0.5 - T[:2].sum() + 3 * (T[1:2] - 0.5) + T[1])
    check_close(outputs(T)[1], y, rtol=1e-8, atol=0.0)
    by_start, by_end = fwd(outputs)(T)[1].unbind(1)[:2]
    check_close(torch.stack([by_start, by_end]), torch.stack([-y, 3 * y]), rtol=1e-8, atol=0.0)


def test_a_third_derivative_of_times_is_refused() -> None:
    """It would be wrong; two of times and one of the state are right."""

    def outputs(t: Tensor, y0: Tensor) -> Tensor:
        return odeint(spiral, y0, t, solver=SOLVERS[-1])

    found = fwd(rev(rev(outputs, argnums=1)))(T, Y0)
    check_close(found, fwd(rev(rev(exact, argnums=1)))(T, Y0), rtol=1e-5, atol=1e-6)
    with pytest.raises(Unsupported, match="order 3"):
        fwd(fwd(rev(outputs)))(T, Y0)


def test_a_time_that_autograd_records_is_refused_under_transforms() -> None:
    """Nobody could say how often it will be differentiated."""
    t = T.clone().requires_grad_()
    with pytest.raises(Unsupported, match="detach it"):
        fwd(lambda y0: odeint(spiral, y0, t))(Y0)


def test_what_it_costs_is_counted() -> None:
    """Two evaluations for each time."""
    seen = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return spiral(t, y)

    def n_evals(t: Tensor) -> Tensor:
        return solve(ODEProblem(counted, Y0, t)).stats.forward.n_f_evals

    n = int(torch.func.jvp(n_evals, (T,), (T,))[0])
    assert n == seen
