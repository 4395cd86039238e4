"""Where f is evaluated, how often, and what the statistics say of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, solve
from tests.backends.torchdiffeq.cases import TDQ, solved
from tests.checks import check, check_close
from tests.problems import FLOAT, decay

GRADIENTS = ("direct", "adjoint")
SOLVERS = {
    "dopri5": TDQ,
    "bosh3": replace(TDQ, method="bosh3", rtol=1e-5, atol=1e-5),
    "dopri8": replace(TDQ, method="dopri8"),
    "midpoint": Solver("torchdiffeq", "midpoint", step=0.03),
    "rk4_38": Solver("torchdiffeq", "rk4_38", step=0.03),
}


class _Seen:
    """A decay that remembers when it was evaluated."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t.detach()))
        return -y


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("t", [(0.0, 0.4, 1.0), (1.0, 0.4, 0.0), (0.0, 1e-9), (-1e-9, -2e-9)])
def test_f_is_never_evaluated_outside_the_interval(
    name: str, gradient: str, t: tuple[float, ...]
) -> None:
    """Forward, in the probe for the first step, and in the backward pass; intervals of any size."""
    f, y0 = _Seen(), torch.ones(2, dtype=FLOAT, requires_grad=True)
    times = torch.tensor(t, dtype=FLOAT, requires_grad=True)
    solved(ODEProblem(f, y0, times), SOLVERS[name], gradient=gradient).y.sum().backward()
    check(min(t) <= min(f.times), f"before: {min(f.times)}")
    check(max(f.times) <= max(t), f"after: {max(f.times)}")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_evaluation_is_counted(name: str, gradient: str) -> None:
    """Forward and backward apart, time gradients included."""
    f, y0 = _Seen(), torch.ones(2, dtype=FLOAT, requires_grad=True)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=FLOAT, requires_grad=True)
    solution = solved(ODEProblem(f, y0, times), SOLVERS[name], gradient=gradient)
    n_forward = len(f.times)
    assert solution.stats.forward.n_f_evals.tolist() == [n_forward]
    solution.y.sum().backward()
    check(solution.stats.backward is not None, "backward counts are missing")
    assert solution.stats.backward.n_f_evals.tolist() == [len(f.times) - n_forward]


def test_counts_of_dopri5_are_exact() -> None:
    """Six evaluations a step, one for the start, one for the probe."""
    counts = solved(ODEProblem(decay, torch.ones(2, dtype=FLOAT), [0.0, 1.0]), TDQ).stats.forward
    check_close(counts.n_f_evals, 6 * counts.n_steps + 2, rtol=0)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_step_times_are_the_ends_of_the_accepted_steps(direction: float) -> None:
    """From the first time to the last, exactly."""
    t = torch.tensor([0.1, 0.7, 2.0], dtype=FLOAT) * direction
    stats = solved(ODEProblem(decay, torch.ones(2, dtype=FLOAT), t), TDQ).stats
    (steps,) = stats.step_times
    check_close(steps[[0, -1]], t[[0, -1]], rtol=0)
    assert len(steps) == stats.forward.n_accepted.item() + 1
    check(bool((steps.diff() * direction > 0).all()), "not monotone")


def test_backward_counts_come_with_the_backward_pass() -> None:
    """Direct: zeros at once. Adjoint: None until it has run, and the same after each run."""
    problem = ODEProblem(decay, torch.ones(2, dtype=FLOAT, requires_grad=True), [0.0, 0.5, 1.0])
    direct = solve(problem, replace(TDQ, gradient="direct"))
    assert direct.stats.backward is not None
    assert direct.stats.backward.n_steps.tolist() == [0]
    adjoint = solve(problem, replace(TDQ, gradient="adjoint"))
    assert adjoint.stats.backward is None
    adjoint.y.sum().backward(retain_graph=True)
    first = adjoint.stats.backward
    adjoint.y.sum().backward()
    assert first is not None
    assert adjoint.stats.backward == first
    check_close(first.n_accepted + first.n_rejected, first.n_steps, rtol=0)


def test_the_record_says_what_was_run() -> None:
    """Every setting, resolved."""
    record = solve(ODEProblem(decay, torch.ones(1), [0.0, 1.0]), "torchdiffeq").stats.solver
    assert (record.backend, record.method, record.rtol) == ("torchdiffeq", "dopri5", 1e-5)
    assert (record.coupling, record.gradient) == ("shared", "direct")
