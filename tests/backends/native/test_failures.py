"""A failed solve says who, where, at what step and why; nothing it touched becomes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, SolveFailed, Solver, Status, odeint, solve
from tests.checks import check_relative
from tests.problems import FLOAT, blow_up, decay

every = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
ONE = torch.ones(1, dtype=FLOAT)
TIMES = torch.tensor([0.0, 0.5, 0.9, 2.0], dtype=FLOAT)


def bad_after(t_bad: float, value: float = math.nan) -> Callable[[Tensor, Tensor], Tensor]:
    """A decay that is not defined after a time."""
    return lambda t, y: torch.where(t > t_bad, value, -y)


CASES = {
    "step limit": (blow_up, Solver(max_steps=7), Status.MAX_STEPS),
    "pole": (blow_up, Solver(), Status.STEP_TOO_SMALL),
    "not finite at the start": (bad_after(-1.0), Solver(), Status.NON_FINITE),
    "infinite at the start": (bad_after(-1.0, math.inf), Solver(), Status.NON_FINITE),
    "not finite midway": (bad_after(0.7), Solver(), Status.NON_FINITE),
    "infinite midway": (bad_after(0.7, math.inf), Solver(), Status.NON_FINITE),
    "not finite, fixed": (bad_after(0.7), Solver(method="rk4", step=0.25), Status.NON_FINITE),
    "not finite, euler": (bad_after(0.7), Solver(method="euler", step=0.25), Status.NON_FINITE),
    "limit, fixed": (decay, Solver(method="rk4", step=0.25, max_steps=3), Status.MAX_STEPS),
}
cases = pytest.mark.parametrize(("f", "solver", "status"), CASES.values(), ids=CASES.keys())


@cases
def test_odeint_raises_and_says_where_why_and_what_to_do(
    f: Callable[..., Tensor], solver: Solver, status: Status
) -> None:
    """Status, time, interval, steps, next step, method, cause and remedy; the rest is attached."""
    with pytest.raises(SolveFailed) as caught:
        odeint(f, ONE, TIMES, solver=solver)
    message = str(caught.value)
    assert f"the solve stopped with {status.name} at t=" in message
    assert all(words in message for words in ("of [0, 2] after", "next step", "native"))
    assert any(remedy in message for remedy in ("Raise `max_steps`", "Check `f` around this time"))
    solution = caught.value.solution
    assert isinstance(solution, Solution)
    assert solution.status.tolist() == [status]


@cases
def test_solve_returns_the_failure_as_a_value(
    f: Callable[..., Tensor], solver: Solver, status: Status
) -> None:
    """NaN in what was not reached, and the right state in what was."""
    solution = solve(ODEProblem(f, ONE, TIMES), solver)
    assert not solution.ok
    assert solution.status.tolist() == [status]
    stop = solution.stops[0]
    reached = stop.t >= TIMES
    reached[0] = True
    assert torch.equal(solution.y.isnan().flatten(), ~reached)
    exact = 1 / (1 - TIMES) if f is blow_up else torch.exp(-TIMES)
    rtol = 0.1 if solver.method == "euler" else 1e-3
    check_relative(solution.y[reached].flatten(), exact[reached], rtol=rtol)


def test_the_pole_is_found() -> None:
    """The solve of dy/dt = y^2 stops where y = 1 / (1 - t) ends."""
    stop = solve(ODEProblem(blow_up, ONE, TIMES)).stops[0]
    assert stop.t == pytest.approx(1.0, abs=1e-6)
    assert stop.step < 1e-12


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_a_failed_fixed_step_is_named(method: str) -> None:
    """The step of the stop and of the message is the one that was set."""
    solver = Solver(method=method, step=0.25)
    solution = solve(ODEProblem(bad_after(0.6), ONE, TIMES), solver)
    assert solution.stops[0].step == 0.25
    with pytest.raises(SolveFailed, match=r"next step 0\.25"):
        odeint(bad_after(0.6), ONE, TIMES, solver=solver)


def test_a_fixed_step_below_the_resolution_of_time_is_named() -> None:
    """At t = 1e12 a step of 1e-5 leads nowhere: it is refused at once, not after max_steps."""
    t = torch.tensor([1e12, 1e12 + 1], dtype=FLOAT)
    solution = solve(ODEProblem(decay, ONE, t), Solver(method="rk4", step=1e-5))
    assert solution.status.tolist() == [Status.STEP_TOO_SMALL]
    assert solution.stats.forward.n_steps.tolist() == [1]


def test_a_first_step_below_the_resolution_of_time_is_made_longer() -> None:
    """At t = 1e14 the customary first trial from zero (1e-6) would lead nowhere."""
    t = torch.tensor([1e14, 1e14 + 100], dtype=FLOAT)
    y = odeint(lambda t, y: 1 + 0 * y, 0 * ONE, t)
    assert y[-1].item() == pytest.approx(100, rel=1e-6)


def test_one_sample_is_named_among_many() -> None:
    """The message counts the failures; each sample has a status and its own stop."""
    y0 = torch.tensor([[0.1], [1.0], [0.2], [1.5]], dtype=FLOAT)
    message = r"sample [13] stopped.*\(2 of 4 samples failed\)"
    with pytest.raises(SolveFailed, match=message) as caught:
        odeint(blow_up, y0, TIMES, solver=Solver(coupling="per_sample"))
    solution = caught.value.solution
    assert isinstance(solution, Solution)
    assert [Status(s).name for s in solution.status.tolist()] == [
        "OK",
        "STEP_TOO_SMALL",
        "OK",
        "STEP_TOO_SMALL",
    ]
    assert {stop.sample: round(stop.t, 4) for stop in solution.stops} == {1: 1.0, 3: 0.6667}


FAILURES = {
    "pole": (blow_up, Solver()),
    "limit": (lambda t, y: y * y * torch.cos(40 * t * y), Solver(max_steps=60)),
    "bad start": (lambda t, y: torch.where(y > 3, math.inf, y * y), Solver()),
    "nan midway": (lambda t, y: torch.where(y > 3.2, math.nan, y * y), Solver()),
    "fixed": (lambda t, y: torch.where(y > 3.2, math.nan, y * y), Solver(method="rk4", step=0.01)),
}


@every
@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=["failing first", "in the middle"])
def test_a_failed_sample_spoils_nobody_elses_gradient(
    case: str, order: tuple[int, ...], gradient: str
) -> None:
    """Parameters, args, times and the other samples get what they get without it."""
    f, solver = FAILURES[case]
    failing = order.index(0)
    starts = torch.tensor([[3.1], [0.3], [0.15]], dtype=FLOAT)[list(order)]
    t = torch.tensor([0.0, 0.01, 0.1, 0.8], dtype=FLOAT)

    def slopes(rows: list[int]) -> tuple[Solution, tuple[Tensor, ...]]:
        theta = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
        y0, times = starts[rows].clone().requires_grad_(), t.clone().requires_grad_()
        problem = ODEProblem(lambda t, y, a: a * f(t, y), y0, times, args=theta, batched=True)
        solution = solve(problem, Solver(**{**vars(solver), "gradient": gradient}))
        loss = solution.y[:, [r != failing for r in rows]].square().sum()
        loss = loss + solution.y[:, [r == failing for r in rows]].nan_to_num().sum()
        return solution, torch.autograd.grad(loss, (theta, times, y0))

    solution, (theta, times, y0) = slopes([0, 1, 2])
    well = [row for row in range(3) if row != failing]
    _, wanted = slopes(well)
    assert [s != Status.OK for s in solution.status] == [row == failing for row in range(3)]
    check_relative((theta, times, y0[well]), wanted, rtol=1e-6)
    assert y0[failing].item() == 0


@every
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_where_every_sample_fails_nothing_is_added(gradient: str, coupling: str) -> None:
    """A loss that also holds other terms keeps the gradient of those."""
    theta = torch.tensor(1.5, dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(lambda t, y: theta * y * y, y0, TIMES)
    y = solve(problem, Solver(gradient=gradient, coupling=coupling)).y
    (y.nan_to_num().sum() + theta**2 + y0.sum()).backward()
    assert theta.grad.item() == 3.0
    assert torch.equal(y0.grad, torch.ones_like(y0))


@every
def test_a_failure_with_differentiable_times_raises_the_same(gradient: str) -> None:
    """Times that want a gradient stand in the message as numbers, without a warning."""
    with pytest.raises(SolveFailed, match=r"of \[0, 2\]"):
        odeint(blow_up, ONE, TIMES.clone().requires_grad_(), gradient=gradient)
