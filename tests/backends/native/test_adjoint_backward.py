"""The backward solve keeps to its own settings, and says what it cost."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, SolveFailed, Solver, Tolerances, Unsupported, odeint, solve
from ctflow.backends.adjoint import in_tolerances
from ctflow.backends.native.gradients.adjoint import backward_size
from ctflow.backends.native.loop import Outcome
from ctflow.dynamics import ConvField, CountCalls
from ctflow.errors import GradientWarning
from ctflow.solution import Counts
from tests.backends.torchdiffeq.cases import everything
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, Linear, limit_cycle

pytestmark = pytest.mark.once

ADJOINT = Solver(gradient="adjoint")
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


def differentiated(solver: Solver) -> tuple[Solution, tuple[Tensor, ...]]:
    """A solution of the common problem, and the gradient of a loss on all its outputs."""
    problem, leaves = everything()
    solution = solve(problem, solver)
    return solution, torch.autograd.grad(solution.y.pow(2).sum(), leaves)


def error(found: tuple[Tensor, ...]) -> float:
    """Distance of a gradient from the true one, relative to the whole."""
    wanted = differentiated(Solver(gradient="checkpointed", rtol=1e-12, atol=1e-12))[1]
    return float(flat(found).sub(flat(wanted)).norm() / flat(wanted).norm())


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([part.reshape(-1) for part in parts])


def backward_steps(solution: Solution) -> int:
    """Attempted steps of the backward solve."""
    counts = solution.stats.backward
    return -1 if counts is None else int(counts.n_steps.max())


@couplings
@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_the_backward_tolerances_alone_set_the_gradients_error(coupling: Any, tol: float) -> None:  # noqa: ANN401
    """From a forward pass that is exact enough, the error follows the backward tolerances."""
    solver = Solver(gradient="adjoint", rtol=1e-12, atol=1e-12, coupling=coupling)
    _, found = differentiated(replace(solver, backward=Tolerances(tol, tol)))
    assert error(found) < 10 * tol


def test_without_tolerances_of_its_own_it_has_those_of_the_forward_pass() -> None:
    """Written out they change no bit."""
    solver = Solver(gradient="adjoint", rtol=1e-6, atol=1e-8)
    same = replace(solver, backward=Tolerances(1e-6, 1e-8))
    (_, found), (_, wanted) = differentiated(solver), differentiated(same)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_the_forward_pass_does_not_see_the_backward_tolerances() -> None:
    """Its states and costs stay."""
    problem, _ = everything()
    tight = replace(ADJOINT, backward=Tolerances(1e-11, 1e-12))
    assert torch.equal(solve(problem, ADJOINT).y, solve(problem, tight).y)
    solution, _ = differentiated(tight)
    assert backward_steps(solution) > 2 * int(solution.stats.forward.n_steps)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_backward_tolerances_without_a_backward_solve_are_refused(gradient: Any) -> None:  # noqa: ANN401
    """They would be ignored."""
    with pytest.raises(Unsupported, match="`backward` tolerances belong to gradient='adjoint'"):
        differentiated(Solver(gradient=gradient, backward=Tolerances(1e-6, 1e-6)))


@couplings
def test_the_step_limit_holds_for_the_whole_backward_solve(coupling: Any) -> None:  # noqa: ANN401
    """Over all intervals together; the message says what to change."""
    free = Solver(gradient="adjoint", backward=Tolerances(1e-10, 1e-10), coupling=coupling)
    needed = backward_steps(differentiated(free)[0])
    enough = differentiated(replace(free, max_steps=needed))[1]
    check_relative(enough, differentiated(free)[1], rtol=1e-12)
    with pytest.raises(SolveFailed, match=re.escape(f"took its limit of {needed // 2} steps")):
        differentiated(replace(free, max_steps=needed // 2))


@couplings
def test_the_statistics_count_every_evaluation(coupling: Any) -> None:  # noqa: ANN401
    """What f itself counts in the backward pass is what the statistics say."""
    field = CountCalls(Linear(torch.tensor([[0.1, 1.0], [-1.0, -0.3]], dtype=FLOAT)))
    y0 = torch.tensor([[1.0, 0.0], [3.0, -1.0]], dtype=FLOAT, requires_grad=True)
    solution = solve(ODEProblem(field, y0, [0.0, 0.3, 2.0]), replace(ADJOINT, coupling=coupling))
    assert solution.stats.backward is None
    forward = field.n_calls
    assert forward == int(solution.stats.forward.n_f_evals.max())
    solution.y.pow(2).sum().backward()
    counts = solution.stats.backward
    assert counts is not None
    assert field.n_calls - forward == int(counts.n_f_evals.max())
    assert torch.equal(counts.n_steps, counts.n_accepted + counts.n_rejected)
    assert counts.n_steps.shape == ((1,) if coupling == "shared" else (2,))
    assert bool((counts.n_accepted >= 2).all())


def test_the_step_size_is_kept_across_output_times() -> None:
    """Fifty outputs cost a step for each interval, not a new start."""
    y0 = torch.tensor([0.3, 0.4], dtype=FLOAT, requires_grad=True)

    def cost(n: int) -> tuple[int, int]:
        t = torch.linspace(0, 2, n, dtype=FLOAT)
        solution = solve(ODEProblem(limit_cycle.f, y0, t), Solver(gradient="adjoint", rtol=1e-5))
        solution.y.sum().backward()
        counts = solution.stats.backward
        assert counts is not None
        return int(counts.n_steps), int(counts.n_f_evals)

    n_steps, n_f_evals = cost(101)
    assert n_steps == 100
    assert n_f_evals <= 7 * n_steps + 2


def test_each_interval_starts_from_the_stored_state() -> None:
    """Drift does not add up from one interval to the next: each has its own."""
    y0 = torch.tensor([1.0], dtype=FLOAT, requires_grad=True)
    tol = Solver(gradient="adjoint", rtol=1e-8, atol=1e-8)

    def drift(n: int) -> float:
        solution = solve(ODEProblem(lambda t, y: -3 * y, y0, torch.linspace(0, 4, n).double()), tol)
        solution.y.sum().backward()
        return float(solution.gradient_report.drift.max())

    assert drift(2) > 1e3 * drift(41)


@couplings
@pytest.mark.parametrize("wrt", ["y0", "t", "parameter"])
def test_a_second_derivative_is_refused(coupling: Any, wrt: str) -> None:  # noqa: ANN401
    """The first one is right, whatever is then asked of it."""
    f = Linear(torch.tensor([[0.1, 1.0], [-1.0, -0.3]], dtype=FLOAT))
    y0 = torch.ones(2, 2, dtype=FLOAT, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT, requires_grad=True)
    inputs = {"y0": y0, "t": t, "parameter": f.a}
    y = odeint(f, y0, t, solver=replace(ADJOINT, coupling=coupling))
    first = torch.autograd.grad(y.pow(2).sum(), tuple(inputs.values()), create_graph=True)
    plain = torch.autograd.grad(f.exact(t[2], y0).pow(2).sum(), f.a)[0]
    assert first[2].shape == plain.shape
    with pytest.raises(Unsupported, match="gradient='adjoint' cannot be differentiated a second"):
        torch.autograd.grad(sum(x.pow(2).sum() for x in first), inputs[wrt])


def test_a_failed_sample_sends_no_gradient_and_spoils_none() -> None:
    """Beside one that blows up, gradients of the others and of shared parameters are right."""
    rate = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
    y0 = torch.tensor([[0.3], [4.0], [-0.7]], dtype=FLOAT)

    def gradient(rows: list[int], wanted: list[int]) -> tuple[Tensor, ...]:
        start = y0[rows].clone().requires_grad_()
        problem = ODEProblem(lambda t, y: rate * y * y, start, [0.0, 0.4, 1.0], batched=True)
        y = solve(problem, Solver(gradient="adjoint", rtol=1e-9, atol=1e-9)).y
        return torch.autograd.grad(y[:, wanted].pow(2).sum(), (start, rate))

    slope, shared = gradient([0, 1, 2], [0, 2])
    alone, wanted = gradient([0, 2], [0, 1])
    check_close(slope[[0, 2]], alone, rtol=1e-7)
    check_close(shared, wanted, rtol=1e-7)
    assert slope[1].item() == 0.0


def zero_initialised(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """theta sin^2(20 t) - y / 10: at theta = 0 neither y nor a shows what the quadrature needs."""
    return theta * torch.sin(20 * t) ** 2 - 0.1 * y


@pytest.mark.parametrize("backward", [None, Tolerances(1e-8, 1e-8)])
def test_the_quadratures_error_takes_part_in_the_step_decision(backward: Tolerances | None) -> None:
    """At theta = 0 the gradient needs far smaller steps than state and adjoint do."""
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(1, dtype=FLOAT)
    solver = Solver(gradient="adjoint", rtol=1e-8, atol=1e-8, backward=backward)
    y = odeint(zero_initialised, y0, [0.0, 3.0], args=theta, solver=solver)
    (found,) = torch.autograd.grad(y[-1].sum(), theta)
    s = torch.linspace(0, 3, 2**16 + 1, dtype=FLOAT)
    wanted = torch.trapezoid(torch.exp(-0.1 * (3 - s)) * torch.sin(20 * s) ** 2, s)
    check_close(found, wanted, rtol=1e-7)


def test_gradients_that_cancel_in_the_sum_do_not_set_the_steps() -> None:
    """Convolutions add up over images and places: relative to each sum alone, twice the steps."""

    def steps(norm: Any) -> int:  # noqa: ANN401
        torch.manual_seed(0)
        field, y0 = ConvField(8).to(FLOAT), torch.randn(32, 8, 7, 7, dtype=FLOAT)
        backward = Tolerances(1e-3, 1e-3, norm)
        solver = Solver(gradient="adjoint", rtol=1e-3, atol=1e-3, backward=backward)
        solution = solve(ODEProblem(field, y0, [0.0, 1.0]), solver)
        with warnings.catch_warnings():  # at 1e-3 its gradient is in doubt
            warnings.simplefilter("ignore", GradientWarning)
            solution.y[-1].square().mean().backward()
        return backward_steps(solution)

    assert steps("full") <= 1.5 * steps("seminorm")


def test_the_parameters_errors_are_relative_to_their_tensor() -> None:
    """By hand: the larger of element and root mean square, tensor by tensor."""
    sizes = [torch.tensor([0.0, 30.0, 40.0], dtype=FLOAT), torch.tensor([0.1], dtype=FLOAT)]
    errors = [torch.tensor([1.0, 2.0, -8.0], dtype=FLOAT), torch.tensor([0.3], dtype=FLOAT)]
    whole = (2500 / 3) ** 0.5
    parts = [1 / (0.1 + 0.2 * whole), 2 / (0.1 + 0.2 * 30), 8 / (0.1 + 0.2 * 40), 0.3 / 0.12]
    wanted = (sum(x * x for x in parts) / 4) ** 0.5
    assert float(in_tolerances(errors, sizes, 0.2, 0.1)) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_size_of_a_tensor_cannot_overflow(dtype: torch.dtype) -> None:
    """Else its tolerance would be infinite, and no error too large."""
    sizes = [torch.full((2**16,), 900.0, dtype=dtype), torch.zeros(3, dtype=dtype)]
    errors = [torch.full((2**16,), 9.0, dtype=dtype), torch.zeros(3, dtype=dtype)]
    assert float(in_tolerances(errors, sizes, 1e-2, 1e-6)) == pytest.approx(1, rel=2e-2)
    empty = [*sizes, torch.zeros(0, dtype=dtype)]
    assert float(in_tolerances([*errors, empty[-1]], empty, 1e-2, 1e-6)) == pytest.approx(1, 2e-2)


def square(t: Tensor, y: Tensor) -> Tensor:
    """Curved, and no two samples alike."""
    return y * y


@pytest.mark.parametrize(
    ("backend", "coupling"),
    [
        ("native", "shared"),
        ("native", "per_sample"),
        pytest.param("compiled", "shared", marks=[pytest.mark.compiler, pytest.mark.slow]),
        pytest.param("compiled", "per_sample", marks=[pytest.mark.compiler, pytest.mark.slow]),
    ],
)
def test_the_backward_solve_begins_with_the_forward_ones_step(coupling: Any, backend: str) -> None:  # noqa: ANN401
    """Seven evaluations for an interval that a step spans, none of them to find its size."""
    y0 = torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=FLOAT, requires_grad=True)
    solver = Solver(backend, gradient="adjoint", coupling=coupling, rtol=1e-3, atol=1e-3)
    solution = solve(ODEProblem(square, y0, [0.0, 0.1]), solver)
    solution.y[1].sum().backward()
    assert y0.grad is not None
    check_relative(y0.grad, (1 - 0.1 * y0.detach()) ** -2, rtol=1e-4)
    counts = solution.stats.backward
    assert counts is not None
    assert set(counts.n_steps.tolist()) == {1}
    assert set(counts.n_f_evals.tolist()) == {7}


@couplings
def test_given_steps_say_nothing_of_the_backward_ones(coupling: Any) -> None:  # noqa: ANN401
    """It finds its own first size then, which takes one evaluation."""
    y0 = torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=FLOAT, requires_grad=True)
    own = Tolerances(1e-3, 1e-3)
    solver = Solver(gradient="adjoint", coupling=coupling, step=0.01, backward=own)
    solution = solve(ODEProblem(square, y0, [0.0, 0.1]), solver)
    solution.y[1].sum().backward()
    counts = solution.stats.backward
    assert counts is not None
    assert counts.n_f_evals.tolist() == (2 + 6 * counts.n_steps).tolist()


def test_where_several_steps_were_needed_it_begins_with_a_share_of_one() -> None:
    """The adjoint is less smooth than the state; a single step says that both are smooth."""
    accepted = torch.tensor([1, 2, 0])
    counts = Counts(accepted, accepted + 1, accepted, torch.ones(3, dtype=torch.int64))
    sizes = torch.tensor([2.0, 2.0, 1.0], dtype=FLOAT)
    outcome = Outcome(torch.zeros(3, dtype=torch.int64), counts, (), (), sizes)
    check_close(backward_size(outcome), torch.tensor([2.0, 0.6, 0.3], dtype=FLOAT), rtol=1e-15)
