"""The solution as a function of time: values, slopes, gradients, and what is saved of it."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import (
    DenseSolution,
    InvalidProblem,
    ODEProblem,
    SolveFailed,
    Solver,
    Unsupported,
    odeint,
    odeint_dense,
    solve,
)
from ctflow.backends.native.methods import METHODS
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, blow_up, decay, limit_cycle

Y0 = torch.tensor([[0.2, 0.1], [0.9, -1.1], [2.0, 0.3]], dtype=FLOAT)
TIMES = torch.linspace(0.1, 2.4, 23, dtype=FLOAT)
ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.e and tableau.order > 4]
methods = pytest.mark.parametrize("method", ADAPTIVE)
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


def turning(t: Tensor, y: Tensor) -> Tensor:
    """The limit cycle for times 0-dim or [B, 1]."""
    return limit_cycle.f(t.squeeze(-1) if t.dim() else t, y)


def exact(t: Tensor, t0: Tensor, y0: Tensor) -> Tensor:
    """States of the limit cycle at times [T], [T, 3, 2]."""
    return limit_cycle.exact(t[:, None].expand(-1, 3), t0.expand(len(t), 3), y0)


def dense(f: Any, y0: Any, t: Any, **settings: Any) -> DenseSolution:  # noqa: ANN401
    """With tolerances of 1e-9."""
    return odeint_dense(f, y0, t, solver=Solver(rtol=1e-9, atol=1e-9, **settings))


@methods
@couplings
@pytest.mark.parametrize("ends", [[0.1, 2.4], [2.4, 0.1]])
def test_values_and_slopes_are_those_of_the_solution(
    method: str, coupling: Any, ends: list[float]  # noqa: ANN401
) -> None:  # fmt: skip
    """Anywhere between the ends, in any order, in both directions of time."""
    t0 = torch.tensor(ends[0], dtype=FLOAT)
    y0 = Y0 if ends[0] < 1 else exact(torch.tensor([2.4], dtype=FLOAT), TIMES[0], Y0)[0]
    sol = dense(turning, y0, ends, method=method, coupling=coupling)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    wanted = exact(TIMES[order], t0, y0)
    slopes = torch.stack([turning(t, y) for t, y in zip(TIMES[order], wanted, strict=True)])
    check_close(sol(TIMES[order]), wanted, rtol=1e-6, atol=1e-6)
    check_close(sol.derivative(TIMES[order]), slopes, rtol=1e-4, atol=1e-4)


@methods
@couplings
def test_it_is_what_the_outputs_of_a_solve_are(method: str, coupling: Any) -> None:  # noqa: ANN401
    """At every output, to rounding: one interpolant."""
    y = odeint(turning, Y0, TIMES, solver=Solver(method=method, coupling=coupling))
    sol = odeint_dense(turning, Y0, TIMES, solver=Solver(method=method, coupling=coupling))
    check_relative(sol(TIMES), y, rtol=1e-12)


@methods
@couplings
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_it_is_differentiable_in_everything(method: str, coupling: Any, gradient: str) -> None:  # noqa: ANN401
    """Initial state, start, parameter and the times it is asked for, through values and slopes."""
    y0, t0 = Y0.clone().requires_grad_(), torch.tensor(0.1, dtype=FLOAT, requires_grad=True)
    rate = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
    asked = TIMES.clone().requires_grad_()
    ends = torch.stack([t0, torch.tensor(2.4, dtype=FLOAT)])
    sol = dense(
        lambda t, y: rate * turning(t, y), y0, ends, method=method, coupling=coupling,
        gradient=gradient,
    )  # fmt: skip
    weights = torch.cos(torch.arange(23 * 6, dtype=FLOAT)).reshape(23, 3, 2)
    found = torch.autograd.grad((sol(asked) * weights).sum(), (y0, t0, asked, rate))
    wanted = torch.autograd.grad((exact(asked, t0, y0) * weights).sum(), (y0, t0, asked))
    for one, other in zip(found[:3], wanted, strict=True):
        check_close(one, other, rtol=1e-4, atol=1e-5)
    h, values = 1e-4, []
    for sign in (1, -1):
        other = dense(lambda t, y, s=sign: (1 + s * h) * turning(t, y), Y0, [0.1, 2.4],
                      method=method, coupling=coupling)  # fmt: skip
        values.append((other(TIMES) * weights).sum())
    check_close(found[3], (values[0] - values[1]) / (2 * h), rtol=1e-4, atol=1e-3)


@couplings
@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_both_gradients_are_the_same_and_so_are_those_of_slopes(
    method: str, coupling: Any  # noqa: ANN401
) -> None:  # fmt: skip
    """Direct and checkpointed to rounding; with a loss at an output beside it."""
    found = []
    for gradient in ("direct", "checkpointed"):
        y0 = Y0.clone().requires_grad_()
        problem = ODEProblem(turning, y0, [0.1, 1.0, 2.4], dense=True)  # pyright: ignore
        solution = solve(problem, Solver(method=method, gradient=gradient, coupling=coupling))
        sol = solution.dense
        assert sol is not None
        loss = sol.derivative(TIMES).square().sum() + sol(0.7).sum() + solution.y[1].square().sum()
        found.append(torch.autograd.grad(loss, y0)[0])
    check_relative(found[0], found[1], rtol=1e-11)


@couplings
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_slopes_are_differentiable_in_everything(coupling: Any, gradient: str) -> None:  # noqa: ANN401
    """Initial state, start, parameter and the times asked for, of dy/dt = rate y."""
    y0 = Y0.clone().requires_grad_()
    rate = torch.tensor(-0.8, dtype=FLOAT, requires_grad=True)
    t0 = torch.tensor(0.1, dtype=FLOAT, requires_grad=True)
    asked = TIMES.clone().requires_grad_()
    ends = torch.stack([t0, torch.tensor(2.4, dtype=FLOAT)])
    sol = dense(lambda t, y: rate * y, y0, ends, method="dop853", coupling=coupling,
                gradient=gradient)  # fmt: skip
    wanted = rate * y0 * torch.exp(rate * (asked - t0)).reshape(-1, 1, 1)
    inputs = (y0, rate, t0, asked)
    pairs = zip(*(torch.autograd.grad(x.square().sum(), inputs)
                  for x in (sol.derivative(asked), wanted)), strict=True)  # fmt: skip
    for found, right in pairs:
        check_close(found, right, rtol=1e-4, atol=1e-5)


def test_the_slope_by_autograd_is_the_derivative() -> None:
    """d sol(t) / dt and sol.derivative(t) are one polynomial; twice differentiable in t."""
    sol = dense(decay, torch.ones(1, dtype=FLOAT), [0.0, 2.0])
    t = torch.tensor(0.77, dtype=FLOAT, requires_grad=True)
    (slope,) = torch.autograd.grad(sol(t).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(slope, t)
    check_relative(slope.detach(), sol.derivative(0.77)[0].detach(), rtol=1e-13)
    check_relative(second, torch.exp(-t).detach(), rtol=1e-3)


def test_samples_have_spans_and_times_of_their_own() -> None:
    """Rows up and down, asked for at [B, T]."""
    ends = torch.tensor([[0.1, 2.4], [1.0, 0.9], [0.3, 0.4]], dtype=FLOAT)
    sol = dense(turning, Y0, ends)
    t = torch.stack([torch.linspace(*row.tolist(), 7, dtype=FLOAT) for row in ends])
    for b in range(3):
        wanted = limit_cycle.exact(t[b], ends[b, 0].expand(7), Y0[b])
        check_close(sol(t)[:, b], wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(sol(t)[0], Y0)
    with pytest.raises(InvalidProblem, match=r"within \[0\.1, 2\.4\] of sample 0"):
        sol(1.5 * t)


def test_structures_and_shapes_are_those_of_the_state() -> None:
    """One time has no dimension in front."""
    y0 = {"a": torch.ones(2, 3), "b": (torch.zeros(()), torch.ones(4))}
    sol = odeint_dense(lambda t, y: {"a": -y["a"], "b": (y["b"][0] + 1, y["b"][1])}, y0, [0.0, 1.0])
    assert sol(0.5)["a"].shape == (2, 3)
    assert sol(torch.tensor([0.5, 0.1]))["b"][1].shape == (2, 4)
    assert sol.derivative(0.5)["b"][0].shape == ()


@couplings
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
def test_it_is_saved_and_loaded_with_weights_only(coupling: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Bit for bit, structure and all."""
    y0 = [torch.ones(2, 3, dtype=dtype), {"x": torch.zeros(2, dtype=dtype)}]
    sol = odeint_dense(lambda t, y: [-y[0], {"x": y[1]["x"] + 1}], y0, [0.0, 1.0],
                       solver=Solver(coupling=coupling, method="dop853"))  # fmt: skip
    file = io.BytesIO()
    torch.save(sol.state_dict(), file)
    file.seek(0)
    again = DenseSolution.from_state_dict(torch.load(file, weights_only=True))
    t = torch.linspace(0, 1, 9)
    for one, other in zip(
        (sol(t), sol.derivative(t)), (again(t), again.derivative(t)), strict=True
    ):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1]["x"], other[1]["x"])


@pytest.mark.parametrize("values", [{}, {"version": 2}, None])
def test_what_is_no_state_dict_is_refused(values: dict[str, Any] | None) -> None:
    """By name."""
    known = dense(decay, Y0, [0.0, 1.0]).state_dict()
    changed = known | {"version": 99} if values is None else values
    with pytest.raises(InvalidProblem, match="state_dict"):
        DenseSolution.from_state_dict(changed)


@pytest.mark.parametrize("t", [-1e-9, 1.001, math.nan, math.inf])
def test_times_outside_are_refused(t: float) -> None:
    """Nothing is extrapolated."""
    sol = dense(decay, Y0, [0.0, 1.0])
    with pytest.raises(InvalidProblem, match=r"`t` must lie within \[0, 1\], got"):
        sol(t)


def test_an_end_that_a_narrower_dtype_rounds_outside_is_inside() -> None:
    """1.1 in float32 lies above 1.1."""
    y0 = torch.ones(2)
    sol = odeint_dense(decay, y0, [0.0, 1.1])
    t = torch.tensor(1.1)
    assert t.double() > 1.1
    check_close(sol(t), sol(1.1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3, 1)])
def test_times_of_a_shape_that_means_nothing_are_refused(shape: tuple[int, ...]) -> None:
    """Under shared steps there are no times of each sample."""
    with pytest.raises(InvalidProblem, match="`t` must be one time"):
        dense(decay, Y0, [0.0, 1.0])(torch.full(shape, 0.5))


def test_a_failed_sample_raises_or_leaves_none() -> None:
    """No half of a solution."""
    y0 = torch.tensor([[0.5], [2.0]], dtype=FLOAT)
    with pytest.raises(SolveFailed):
        odeint_dense(blow_up, y0, [0.0, 1.0], solver=Solver(coupling="per_sample"))
    for gradient in ("direct", "checkpointed"):
        start = y0.clone().requires_grad_()
        problem = ODEProblem(blow_up, start, [0.0, 1.0], batched=True, dense=True)  # pyright: ignore
        solution = solve(problem, Solver(gradient=gradient))
        assert solution.dense is None
        (slope,) = torch.autograd.grad(solution.y[-1, 0].sum(), start)
        check_relative(slope[0], torch.tensor([4.0], dtype=FLOAT), rtol=1e-5)


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy", "compiled"])
def test_backends_without_dense_output_refuse(backend: str) -> None:
    """By name."""
    pytest.importorskip(backend if backend != "compiled" else "torch")
    with pytest.raises(Unsupported, match="no dense output"):
        odeint_dense(decay, Y0, [0.0, 1.0], backend=backend)


def test_the_adjoint_refuses() -> None:
    """It keeps no steps."""
    with pytest.raises(Unsupported, match="keeps no steps for `dense`"):
        odeint_dense(decay, Y0, [0.0, 1.0], gradient="adjoint")


def test_a_running_cost_beside_it_is_refused() -> None:
    """Its place in the state would be ctflow's own."""
    with pytest.raises(InvalidProblem, match="`dense`"):
        ODEProblem(decay, Y0, [0.0, 1.0], running_cost=lambda t, y: y.sum(), dense=True)  # pyright: ignore


@pytest.mark.parametrize("method", ["vern7", "dopri8", "dop853"])
def test_further_stages_are_charged_for_every_step(method: str) -> None:
    """To the samples that took them."""
    problem = ODEProblem(turning, Y0, [0.1, 2.4], batched=True, dense=True)  # pyright: ignore
    counts = solve(problem, Solver(method=method)).stats.forward
    plain = solve(ODEProblem(turning, Y0, [0.1, 2.4], batched=True), Solver(method=method))  # pyright: ignore
    extra = counts.n_f_evals - plain.stats.forward.n_f_evals
    assert torch.equal(extra, METHODS[method].further * counts.n_accepted)


def test_across_a_jump_each_piece_is_its_own() -> None:
    """The slope has the jump, the state a kink."""
    sol = odeint_dense(
        lambda t, y: torch.where(t < 0.5, 1.0, -2.0).to(y).expand_as(y),
        torch.zeros(1, dtype=FLOAT),
        [0.0, 1.0],
        jump_t=[0.5],
    )
    t = torch.tensor([0.2, 0.4999, 0.5001, 0.8], dtype=FLOAT)
    wanted = torch.where(t < 0.5, t, 0.5 - 2 * (t - 0.5)).unsqueeze(1)
    check_close(sol(t), wanted, rtol=1e-12, atol=1e-12)
    assert sol.derivative(t).flatten().tolist() == pytest.approx([1.0, 1.0, -2.0, -2.0])


@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_the_start_belongs_to_the_first_step_that_counts(method: str) -> None:
    """A sample whose first step was repeated while another's counted stands still in the record."""
    y0 = torch.tensor([[1.0], [1.0]], dtype=FLOAT)
    rates = torch.tensor([[-0.01], [-30.0]], dtype=FLOAT)
    sol = dense(lambda t, y: rates * y, y0, [0.0, 1.0], method=method, coupling="per_sample",
                first_step=0.5)  # fmt: skip
    assert bool((sol.t0[0] == sol.t1[0]).any()), "no first step was repeated"
    check_close(sol.derivative(0.0), rates, rtol=1e-6, atol=0.0)
    asked = torch.zeros(1, dtype=FLOAT, requires_grad=True)
    (found,) = torch.autograd.grad(sol(asked).sum(), asked)
    check_close(found, rates.sum().reshape(1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("bad", ["soon", None, [[0.1], [0.2, 0.3]]])
def test_what_is_no_time_is_refused(bad: Any) -> None:  # noqa: ANN401
    """By name, with what to pass."""
    sol = dense(turning, Y0, [0.1, 2.4])
    for ask in (sol, sol.derivative):
        with pytest.raises(InvalidProblem, match="`t` must be a number or a tensor of times"):
            ask(bad)
