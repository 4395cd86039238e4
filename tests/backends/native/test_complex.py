"""Complex states: values and every gradient, with real and complex parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solver, Status, Unsupported, odeint, solve
from tests.checks import check_close

COMPLEX = torch.complex128
Y0 = torch.tensor([[1.0 + 0.5j, -0.3j], [0.2 - 1.0j, 2.0 + 0j]], dtype=COMPLEX)
GRADIENTS = ["direct", "checkpointed", "adjoint"]
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


def exact(t: Tensor, rate: Tensor, turn: Tensor, y0: Tensor) -> Tensor:
    """Solution of dy/dt = (rate + i turn t) y from t[0], [T, 2, 2]."""
    exponent = rate * (t - t[0]) + 0.5j * turn * (t * t - t[0] * t[0])
    return y0 * torch.exp(exponent).reshape(-1, 1, 1)


@couplings
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_values_and_all_gradients_are_right(coupling: Any, gradient: Any, method: str) -> None:  # noqa: ANN401
    """State, complex and real parameter, times; for a real loss that is not holomorphic."""
    y0 = Y0.clone().requires_grad_()
    rate = torch.tensor(-0.3 + 2.0j, dtype=COMPLEX, requires_grad=True)
    turn = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    solver = Solver(method=method, rtol=1e-10, atol=1e-10, gradient=gradient, coupling=coupling)
    y = solve(ODEProblem(lambda t, y: (rate + 1j * turn * t) * y, y0, t), solver).y
    wanted = exact(t, rate, turn, y0)
    check_close(torch.view_as_real(y), torch.view_as_real(wanted), rtol=1e-8, atol=1e-8)
    inputs = (y0, rate, turn, t)
    pairs = zip(*(torch.autograd.grad(loss(x), inputs) for x in (y, wanted)), strict=True)
    for found, right in pairs:
        assert found.dtype == right.dtype
        check_close(*(torch.view_as_real(x) if x.is_complex() else x for x in (found, right)),
                    rtol=1e-7, atol=1e-7)  # fmt: skip


def loss(y: Tensor) -> Tensor:
    """Real, of both parts."""
    return (y.real.square() * 0.3 + y.imag.sin() + y.abs() * 0.1).sum()


def test_time_arrives_in_the_real_dtype() -> None:
    """As for a real state of the same precision."""
    seen: set[torch.dtype] = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return -y

    odeint(f, Y0.to(torch.complex64), [0.0, 1.0])
    odeint(f, Y0, [0.0, 1.0])
    assert seen == {torch.float32, torch.float64}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_default_tolerance_is_that_of_the_real_dtype(dtype: torch.dtype) -> None:
    """1e-5 in single precision."""
    solution = solve(ODEProblem(lambda t, y: -y, Y0.to(dtype), [0.0, 1.0]))  # pyright: ignore
    assert solution.y.dtype == dtype
    assert solution.stats.solver.rtol == (1e-5 if dtype == torch.complex64 else 1e-7)


def test_structures_conjugates_and_strides_go_in_and_out() -> None:
    """A lazy conjugate, a transposed leaf and a scalar."""
    y0 = {"a": Y0.conj().T, "b": torch.tensor(1j)}
    y0["b"] = y0["b"].to(COMPLEX)
    y = odeint(lambda t, y: {"a": (1j * y["a"]).conj().conj(), "b": -y["b"].conj()}, y0, [0.0, 1.0])
    turn = torch.exp(torch.tensor(1j, dtype=COMPLEX))
    check_close(
        torch.view_as_real(y["a"][-1]),
        torch.view_as_real((y0["a"] * turn).resolve_conj()),
        rtol=1e-6,
    )
    check_close(y["b"][-1].imag, torch.exp(torch.tensor(1.0, dtype=torch.float64)), rtol=1e-6)


def test_samples_step_by_themselves_and_fail_by_themselves() -> None:
    """A pole in the second row."""
    y0 = torch.tensor([[0.2j], [2.0 + 0j]], dtype=COMPLEX)
    problem = ODEProblem(lambda t, y: y * y, y0, [0.0, 1.0], batched=True)  # pyright: ignore
    solution = solve(problem)
    assert solution.status[0] == Status.OK != solution.status[1]
    right = y0[0] / (1 - y0[0])
    check_close(torch.view_as_real(solution.y[-1, 0]), torch.view_as_real(right), rtol=1e-5)


def test_second_derivatives_are_right() -> None:
    """Through direct; d2/drate2 of |y|^2 = 4 T^2 |y|^2."""
    rate = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    y = odeint(
        lambda t, y: (rate + 2j) * y, Y0, [0.0, 1.0], gradient="direct", rtol=1e-10, atol=1e-10
    )
    size = y[-1].abs().square().sum()
    (first,) = torch.autograd.grad(size, rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    check_close(second, (4 * size).detach(), rtol=1e-7)


@couplings
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_forward_mode_is_right(coupling: Any) -> None:  # noqa: ANN401
    """Of state, complex and real parameter and times at once."""
    primals = (Y0, torch.tensor(-0.3 + 2.0j, dtype=COMPLEX), torch.tensor(1.5).double(),
               torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64))  # fmt: skip
    tangents = (Y0.conj().resolve_conj(), torch.tensor(0.5 - 1j, dtype=COMPLEX),
                torch.tensor(0.7).double(), torch.tensor([0.1, -0.4, 1.0]).double())  # fmt: skip

    def found(y0: Tensor, rate: Tensor, turn: Tensor, t: Tensor) -> Tensor:
        solver = Solver(method="dop853", rtol=1e-7, atol=1e-7, coupling=coupling)
        problem = ODEProblem(lambda t, y: (rate + 1j * turn * t) * y, y0, t)
        return torch.view_as_real(solve(problem, solver).y)

    def wanted(y0: Tensor, rate: Tensor, turn: Tensor, t: Tensor) -> Tensor:
        return torch.view_as_real(exact(t, rate, turn, y0))

    for one, other in zip(*(torch.func.jvp(f, primals, tangents) for f in (found, wanted)),
                          strict=True):  # fmt: skip
        check_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_cost_and_leaves_outside_the_norm_count_in_complex_numbers() -> None:
    """The integral of i y, and a last leaf that does not steer the steps."""
    problem = ODEProblem(lambda t, y: -y, Y0, [0.0, 1.0], running_cost=lambda t, y: 1j * y,
                         cost_in_norm=False)  # pyright: ignore  # fmt: skip
    cost = solve(problem).cost[-1]
    right = 1j * Y0 * (1 - torch.exp(torch.tensor(-1.0, dtype=torch.float64)))
    check_close(torch.view_as_real(cost), torch.view_as_real(right), rtol=1e-6)


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy", "compiled"])
def test_backends_that_cannot_refuse(backend: str) -> None:
    """And say what makes them able."""
    pytest.importorskip(backend if backend != "compiled" else "torch")
    with pytest.raises(Unsupported, match=r"no complex states.*native"):
        odeint(lambda t, y: -y, Y0, [0.0, 1.0], backend=backend)


@pytest.mark.parametrize("bad", [complex("nan"), complex(0, float("inf"))])
def test_parts_that_are_not_finite_are_refused(bad: complex) -> None:
    """Real or imaginary."""
    with pytest.raises(InvalidProblem, match="`y0` must be finite"):
        odeint(lambda t, y: -y, torch.tensor([1.0, bad]), [0.0, 1.0])


def test_a_real_derivative_is_refused() -> None:
    """It would lose nothing but say too little: the dtype is part of the state."""
    with pytest.raises(InvalidProblem, match="dtype of `y`"):
        odeint(lambda t, y: y.real, Y0, [0.0, 1.0])
