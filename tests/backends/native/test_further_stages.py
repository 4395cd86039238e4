"""Methods whose interpolant takes stages of its own: evaluated where needed, right everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, solve
from ctflow.backends.native.methods import METHODS
from tests.checks import check_relative
from tests.problems import FLOAT, limit_cycle

METHOD_NAMES = [name for name, tableau in METHODS.items() if tableau.further]
methods = pytest.mark.parametrize("method", METHOD_NAMES)
Y0 = torch.tensor([[0.2, 0.1], [0.9, -1.1], [2.0, 0.3]], dtype=FLOAT)
TIMES = torch.linspace(0.1, 2.4, 6, dtype=FLOAT)
ENDS = TIMES[[0, -1]]


def turning(t: Tensor, y: Tensor) -> Tensor:
    """The limit cycle for times 0-dim or [B, 1]."""
    return limit_cycle.f(t.squeeze(-1) if t.dim() else t, y)


def run(t: Tensor, **settings: Any) -> Solution:  # noqa: ANN401
    """Three samples, each with its own steps."""
    return solve(ODEProblem(turning, Y0, t, batched=True), Solver(**settings))


def test_there_are_three_such_methods() -> None:
    """All of order 7 and 8."""
    assert METHOD_NAMES == ["vern7", "dopri8", "dop853"]


@methods
def test_outputs_inside_steps_are_charged_to_the_samples_that_have_them(method: str) -> None:
    """So many evaluations for each step with an output inside, none for others."""
    tol = {"rtol": 1e-6, "atol": 1e-8}
    ends, inside = run(ENDS, method=method, **tol), run(TIMES, method=method, **tol)
    steps = inside.stats.step_times
    further = METHODS[method].further
    for b in range(3):
        within = torch.bucketize(TIMES[1:-1].contiguous(), steps[b][~steps[b].isnan()])
        extra = inside.stats.forward.n_f_evals[b] - ends.stats.forward.n_f_evals[b]
        assert extra == further * len(within.unique())
    assert torch.equal(ends.y[-1], inside.y[-1])


@methods
def test_an_output_at_the_end_of_a_step_takes_no_further_stage(method: str) -> None:
    """With fixed steps that meet every output the costs are those of the steps."""
    tableau = METHODS[method]
    t = torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT)
    counts = run(t, method=method, step=0.5).stats.forward
    per_step = tableau.stages - tableau.fsal
    assert counts.n_f_evals.tolist() == [2 * per_step + tableau.fsal] * 3


@methods
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_gradients_through_outputs_inside_are_those_of_the_solution(
    method: str,
    coupling: Any,  # noqa: ANN401
) -> None:
    """All three methods of gradient: state and times, against the closed form."""
    weights = torch.linspace(-1, 1, 6 * 6, dtype=FLOAT).reshape(6, 3, 2)

    def gradients(values: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        y0, t = Y0.clone().requires_grad_(), TIMES.clone().requires_grad_()
        return torch.autograd.grad((values(y0, t) * weights).sum(), (y0, t))

    exact = gradients(
        lambda y0, t: limit_cycle.exact(t[:, None].expand(6, 3), t[0].expand(6, 3), y0)
    )
    found = {}
    for gradient in ("direct", "checkpointed", "adjoint"):
        solver = Solver(method=method, coupling=coupling, gradient=gradient, rtol=1e-9, atol=1e-10)
        found[gradient] = gradients(
            lambda y0, t, solver=solver: solve(ODEProblem(turning, y0, t), solver).y
        )
        for one, wanted in zip(found[gradient], exact, strict=True):
            check_relative(one, wanted, rtol=1e-7)
    for one, other in zip(found["direct"], found["checkpointed"], strict=True):
        check_relative(one, other, rtol=1e-12)


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_single_precision_outputs_are_as_good_as_the_steps(tol: float) -> None:
    """The powers of a high-order interpolant cancel in double precision."""
    y = solve(
        ODEProblem(turning, Y0.float(), TIMES, batched=True),
        Solver(method="dop853", rtol=max(tol, 1e-6), atol=tol),
    ).y
    exact = limit_cycle.exact(TIMES[:, None].expand(6, 3), TIMES[0].expand(6, 3), Y0)
    check_relative(y.double(), exact, rtol=max(10 * tol, 1e-5))
