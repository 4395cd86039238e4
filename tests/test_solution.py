"""What comes back of a solve: settings, costs, steps, and what the backward pass adds."""

from __future__ import annotations

import pytest
import torch

from ctflow import ODEProblem, Solver, Status, solve
from ctflow.dynamics import MLP, CountCalls
from tests.problems import FLOAT, blow_up, decay

Y0 = torch.tensor([[1.0], [0.2], [0.4]], dtype=FLOAT)
T = torch.tensor([0.0, 0.4, 0.9], dtype=FLOAT)
every = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


@couplings
@every
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_every_evaluation_is_counted(coupling: str, gradient: str, method: str) -> None:
    """Forward and backward together are the calls of f, also where times want a gradient.

    Each sample of a batch is charged for the calls that were made while it was on its way; the
    one that takes longest, for all of them.
    """
    f = CountCalls(MLP(1, (4,)).double())
    step = None if method == "dopri5" else 0.05
    solver = Solver(method=method, step=step, coupling=coupling, gradient=gradient)
    solution = solve(ODEProblem(f, Y0, T.clone().requires_grad_()), solver)
    assert solution.stats.forward.n_f_evals.max() == f.n_calls
    f.reset()
    solution.y.sum().backward()
    backward = solution.stats.backward
    assert backward is not None
    assert backward.n_f_evals.max() == f.n_calls


@every
def test_the_backward_pass_fills_its_counts(gradient: str) -> None:
    """None before it has run, except that direct evaluates nothing and knows so from the start."""
    f = MLP(1, (4,)).double()
    stats = solve(ODEProblem(f, Y0, T), Solver(gradient=gradient)).stats
    if gradient == "direct":
        assert stats.backward is not None
        assert not any(column.any() for column in vars(stats.backward).values())
    else:
        assert stats.backward is None


@couplings
def test_attempts_are_accepted_or_rejected(coupling: str) -> None:
    """Per sample, int64, on the CPU."""
    counts = solve(ODEProblem(blow_up, Y0, T), Solver(coupling=coupling)).stats.forward
    assert torch.equal(counts.n_steps, counts.n_accepted + counts.n_rejected)
    assert all(column.dtype == torch.int64 for column in vars(counts).values())
    assert counts.n_steps.shape == ((3,) if coupling == "per_sample" else (1,))


def test_step_times_lead_from_start_to_end_of_each_sample() -> None:
    """One entry more than accepted steps, strictly monotone, padded with NaN."""
    t = torch.tensor([[0.0, 0.9], [0.5, -0.5], [0.0, 0.1]], dtype=FLOAT)
    stats = solve(ODEProblem(blow_up, Y0, t)).stats
    for row, n, ends in zip(stats.step_times, stats.forward.n_accepted, t, strict=True):
        times = row[: int(n) + 1]
        assert (times[0], times[-1]) == (ends[0], ends[1])
        assert (times.diff() * (ends[1] - ends[0]) > 0).all()
        assert row[int(n) + 1 :].isnan().all()


def test_step_times_of_a_failed_sample_end_where_it_stood() -> None:
    """Although it waits in another sample's place afterwards."""
    solution = solve(
        ODEProblem(blow_up, torch.tensor([[0.1], [2.0]], dtype=FLOAT), [0.0, 2.0], batched=True)
    )
    times = solution.stats.step_times[1]
    n = int(solution.stats.forward.n_accepted[1])
    assert solution.status.tolist() == [Status.OK, Status.STEP_TOO_SMALL]
    assert times[n] == solution.stops[0].t == pytest.approx(0.5, abs=1e-5)


def test_the_solver_that_was_resolved_is_recorded() -> None:
    """Nothing is left open."""
    used = solve(ODEProblem(decay, Y0, T)).stats.solver
    wanted = {
        "backend": "native",
        "method": "dopri5",
        "rtol": 1e-7,
        "atol": 1e-9,
        "step": None,
        "coupling": "shared",
        "gradient": "checkpointed",
        "max_steps": 10_000,
    }
    assert {name: getattr(used, name) for name in wanted} == wanted


@couplings
def test_times_come_back_as_they_were_asked_for(coupling: str) -> None:
    """And every leaf has them as a new first dimension, y0 first, bit for bit."""
    solution = solve(ODEProblem(decay, Y0, T), Solver(coupling=coupling))
    assert torch.equal(solution.t, T)
    assert solution.y.shape == (3, 3, 1)
    assert torch.equal(solution.y[0], Y0)


def test_a_finer_grid_of_outputs_changes_no_step() -> None:
    """Outputs are interpolated, not stepped on."""
    few = solve(ODEProblem(blow_up, Y0 / 2, [0.0, 1.0]))
    many = solve(ODEProblem(blow_up, Y0 / 2, torch.linspace(0, 1, 101, dtype=FLOAT)))
    assert torch.equal(few.stats.step_times, many.stats.step_times)
    assert torch.equal(few.y[-1], many.y[-1])
