"""An implicit method honours what explicit ones do, and refuses by name what it cannot."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctflow import (
    InvalidProblem,
    ODEProblem,
    SolveFailed,
    Solver,
    Status,
    Unsupported,
    odeint,
    solve,
)
from ctflow.backends import Feature, get
from ctflow.testing import run_backend_conformance
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, blow_up, decay, row_wise

pytestmark = pytest.mark.once

STIFF = Solver(method="rodas5p")
ONE = torch.ones(1, dtype=FLOAT)


class Stiff:
    """The native backend as rodas5p has it: without the adjoint."""

    name = "native"
    features = get("native").features - {Feature.ADJOINT}

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        return get("native").refuse(problem, solver)

    def solve(self, problem: ODEProblem, solver: Solver) -> Any:  # noqa: ANN401
        return get("native").solve(problem, solver)


@pytest.mark.slow
def test_the_backend_conforms_with_it() -> None:
    """Values, failures, statistics, gradients, second derivatives, on every route that it has."""
    assert run_backend_conformance(Stiff(), method="rodas5p", examples=1).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_other_dtypes_are_solved(dtype: torch.dtype) -> None:
    """In their own precision; complex states as real and imaginary parts."""
    rate = torch.tensor(-30.0 + (4.0j if dtype.is_complex else 0.0), dtype=dtype)
    y0 = torch.tensor([1.0, 0.5], dtype=dtype)
    y = odeint(lambda _, y: rate * y, y0, [0.0, 0.05, 0.1], method="rodas5p", rtol=1e-5, atol=1e-6)
    assert y.dtype == dtype
    exact = y0 * torch.exp(rate * 0.1)
    torch.testing.assert_close(y[-1], exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_refused(dtype: torch.dtype) -> None:
    """Torch factorises no such matrices."""
    with pytest.raises(Unsupported, match=r"'rodas5p' factorises .*take float32 or float64"):
        odeint(decay, torch.ones(1, dtype=dtype), [0.0, 1.0], method="rodas5p")


def test_the_adjoint_is_refused_with_the_reason() -> None:
    """Decays grow backwards in time; what can be taken instead is named."""
    with pytest.raises(Unsupported, match=r"decays grow .* backwards .*'checkpointed' or 'direct'"):
        odeint(decay, ONE, [0.0, 1.0], method="rodas5p", gradient="adjoint")


def test_the_gradient_left_open_is_checkpointed() -> None:
    """The choice that stands in the statistics."""
    assert solve(ODEProblem(decay, ONE, [0.0, 1.0]), STIFF).stats.solver.gradient == "checkpointed"


@pytest.mark.parametrize("backend", ["scipy", "torchdiffeq", "compiled"])
def test_other_backends_refuse_it_and_name_native(backend: str) -> None:
    """Also where the gradient that they would take is one that it refuses."""
    if backend != "compiled":
        pytest.importorskip(backend)
    with pytest.raises(Unsupported, match=r"method='rodas5p' is .*backend='native'"):
        odeint(decay, ONE, [0.0, 1.0], method="rodas5p", backend=backend)


def _in_numpy(t: Tensor, y: Tensor) -> Tensor:
    return torch.from_numpy(-5.0 * y.detach().numpy())


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (_in_numpy, "y"),
        (lambda t, y: -5.0 * y.detach(), "y"),
        (lambda t, y: -y + np.cos(t.item()), "t"),
        (lambda t, y: y * t.detach(), "t"),
    ],
    ids=["numpy", "detach", "item", "t.detach"],
)
def test_a_derivative_that_autograd_cannot_see_is_refused(f: Any, name: str) -> None:  # noqa: ANN401
    """The method would go by a wrong one; an explicit one needs none."""
    with pytest.raises(InvalidProblem, match=rf"df/d{name} .*depends on `{name}`"):
        odeint(f, ONE, [0.0, 1.0], method="rodas5p")


@pytest.mark.parametrize("f", [lambda t, y: 2 * torch.ones_like(y), lambda t, y: 2 * t.expand(1)])
def test_a_field_that_depends_on_nothing_is_none_of_those(f: Any) -> None:  # noqa: ANN401
    """A constant slope, and one of time alone."""
    y = odeint(f, ONE, [0.0, 1.0], method="rodas5p")[-1]
    assert float(y) in (pytest.approx(3.0), pytest.approx(2.0))


# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_transforms_and_forward_mode_are_refused() -> None:
    """It differentiates f itself, under which no transform may lie."""

    def end(y: Tensor) -> Tensor:
        return odeint(decay, y, [0.0, 1.0], method="rodas5p", gradient="direct")[-1].sum()

    with pytest.raises(Unsupported, match=r"torch\.func"):
        torch.func.grad(end)(ONE)
    with pytest.raises(Unsupported, match=r"torch\.func"):
        torch.func.jvp(end, (ONE,), (ONE,))
    with forward_ad.dual_level(), pytest.raises(Unsupported, match="forward mode"):
        end(forward_ad.make_dual(ONE, ONE))


def test_inference_mode_is_served() -> None:
    """Although a graph is made in every step."""
    with torch.inference_mode():
        y = odeint(lambda _, y: -y * y, torch.ones(1, dtype=FLOAT), [0.0, 1.0], method="rodas5p")
    check_close(y[-1].clone(), 0.5 * ONE, rtol=1e-6)


def test_autocast_is_served() -> None:
    """Products in bfloat16, state and matrices in float32."""
    weight = torch.tensor([[-2.0, 1.0], [0.0, -3.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = odeint(lambda _, y: y @ weight.T, torch.ones(1, 2), [0.0, 1.0], method="rodas5p",
                   rtol=1e-2, atol=1e-2)  # fmt: skip
        (found,) = torch.autograd.grad(y[-1].sum(), weight)
    assert y.dtype == torch.float32
    exact = torch.linalg.matrix_exp(weight.detach()) @ torch.ones(2)
    check_relative(y[-1, 0].detach(), exact, rtol=0.05)
    assert torch.isfinite(found).all()


def test_steps_count_jacobians_and_factorisations() -> None:
    """One of each in an attempted step, with one evaluation a stage; and two looks at the start."""
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -50.0 * (y - torch.cos(t))

    solution = solve(ODEProblem(f, ONE, [0.0, 1.0]), STIFF)
    counts = solution.stats.forward
    assert int(counts.n_f_evals) == calls
    assert 8 * int(counts.n_steps) < calls <= 8 * int(counts.n_steps) + 5


def test_a_limit_of_steps_is_a_status() -> None:
    """And what was not reached is NaN."""
    solution = solve(ODEProblem(row_wise, ONE, [0.0, 50.0]), Solver(method="rodas5p", max_steps=3))
    assert Status(int(solution.status)) == Status.MAX_STEPS
    assert solution.y[-1].isnan().all()


def test_a_pole_is_a_failure_of_its_sample_alone() -> None:
    """Beside it the others arrive, with the gradient that they have alone."""
    y0 = torch.tensor([[0.3], [4.0], [-0.7]], dtype=FLOAT, requires_grad=True)
    solver = Solver(method="rodas5p", rtol=1e-5, atol=1e-5)
    solution = solve(ODEProblem(blow_up, y0, [0.0, 1.0], batched=True), solver)
    assert solution.status[[0, 2]].tolist() == [0, 0]
    assert solution.status[1] != Status.OK
    (found,) = torch.autograd.grad(solution.y[-1].nan_to_num().sum(), y0)
    well = y0.detach()[[0, 2]]
    check_close(found[[0, 2]], 1 / (1 - well) ** 2, rtol=1e-3)
    assert found[1] == 0


def test_a_start_that_is_not_finite_fails_at_once() -> None:
    """The status says so."""
    y0 = torch.tensor([-1.0], dtype=FLOAT)
    solution = solve(ODEProblem(lambda _, y: torch.log(y), y0, [0.0, 1.0]), STIFF)
    assert Status(int(solution.status)) == Status.NON_FINITE


def test_a_matrix_that_is_singular_for_one_step_size_costs_a_rejection() -> None:
    """1 - h gamma lambda = 0 for the first step asked for; a smaller one is taken."""
    rate = 1 / 0.21193756319429014
    solver = Solver(method="rodas5p", first_step=1.0, rtol=1e-6, atol=1e-6)
    solution = solve(ODEProblem(lambda _, y: rate * y, ONE, [0.0, 1.0]), solver)
    assert solution.ok
    assert int(solution.stats.forward.n_rejected) > 0
    check_close(solution.y[-1], torch.exp(rate * ONE), rtol=1e-4)


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_backward_time_is_served(coupling: Any) -> None:  # noqa: ANN401
    """What grows forwards is a stiff decay there."""
    y0 = torch.ones(2, 1, dtype=FLOAT)
    solver = Solver(method="rodas5p", coupling=coupling, rtol=1e-7, atol=1e-9)
    y = solve(ODEProblem(lambda t, y: 200 * (y - t), y0, [1.0, 0.0]), solver).y
    check_close(y[-1], torch.full((2, 1), 0.005, dtype=FLOAT), rtol=1e-5)


def test_jumps_and_running_costs_are_served() -> None:
    """f on either side of a jump, and an integral beside the state."""
    rate = torch.tensor(100.0, dtype=FLOAT, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.5, rate * (1.0 - y), -rate * y)

    problem = ODEProblem(f, 0 * ONE, [0.0, 1.0], jump_t=[0.5], running_cost=lambda t, y: y.sum())
    solution = solve(problem, Solver(method="rodas5p", rtol=1e-8, atol=1e-10))
    check_close(solution.cost[-1].detach(), torch.tensor(0.5, dtype=FLOAT), rtol=1e-6)
    (found,) = torch.autograd.grad(solution.cost[-1], rate)
    check_close(found, torch.tensor(0.0, dtype=FLOAT), rtol=0, atol=1e-7)


def test_no_warning_is_given() -> None:
    """Of torch's batching rules or of anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(lambda t, y: -y * torch.cos(t), ONE, [0.0, 1.0], method="rodas5p")


def test_solve_failed_names_the_method() -> None:
    """And says nothing of stiffness: that is what it is for."""
    with pytest.raises(SolveFailed, match="rodas5p") as caught:
        odeint(row_wise, ONE, [0.0, 50.0], solver=Solver(method="rodas5p", max_steps=3))
    assert "stiff" not in str(caught.value)
