"""The report of a backward pass says when its gradient is in doubt, and is silent otherwise."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, Tolerances, Unsupported, solve
from ctflow.cli.checkout import load_script
from ctflow.errors import GradientWarning
from tests.checks import check
from tests.problems import FLOAT, decay

pytestmark = pytest.mark.once

drift = load_script(Path(__file__).parents[3], "adjoint_drift")
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


def attracted(y0: Tensor, t: Any, coupling: Any) -> Solution:  # noqa: ANN401
    """dy/dt = -3 y, whose backward solve spreads what is there by exp(3 t)."""
    solver = Solver(gradient="adjoint", rtol=1e-6, atol=1e-6, coupling=coupling)
    return solve(ODEProblem(lambda t, y: -3 * y, y0, t), solver)


def test_it_cannot_be_read_before_backward() -> None:
    """A handle that backward fills."""
    y0 = torch.ones(1, dtype=FLOAT, requires_grad=True)
    solution = attracted(y0, [0.0, 1.0], "shared")
    report = solution.gradient_report
    assert report.available
    assert not report.filled
    assert repr(report) == "GradientReport(PENDING: no backward pass has run)"
    with pytest.raises(InvalidProblem, match=re.escape("`gradient_report.drift` cannot be read")):
        _ = report.drift
    solution.y[-1].sum().backward()
    assert report.filled
    assert report.messages == ()


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_the_gradient_of_the_steps_has_none(gradient: Any) -> None:  # noqa: ANN401
    """There is nothing to doubt."""
    y0 = torch.ones(1, dtype=FLOAT, requires_grad=True)
    solution = solve(ODEProblem(decay, y0, [0.0, 1.0]), Solver(gradient=gradient))
    solution.y[-1].sum().backward()
    report = solution.gradient_report
    assert not report.available
    assert repr(report).startswith("GradientReport(UNAVAILABLE: ")
    with pytest.raises(Unsupported, match="UNAVAILABLE"):
        _ = report.error


@couplings
def test_the_drift_is_that_of_each_sample_and_interval(coupling: Any) -> None:  # noqa: ANN401
    """[B, T - 1], in the order of the intervals: here each is longer than the one before."""
    y0 = torch.tensor([[1.0], [2.0], [0.0]], dtype=FLOAT, requires_grad=True)
    solution = attracted(y0, [0.0, 0.1, 0.6, 3.0], coupling)
    solution.y.sum().backward()
    found = solution.gradient_report.drift
    assert found.shape == solution.gradient_report.error.shape
    assert found.shape == ((1, 3) if coupling == "shared" else (3, 3))
    assert bool((found[0].diff() > 0).all())
    if coupling == "per_sample":
        assert found[2].tolist() == [0.0, 0.0, 0.0]


def test_the_drift_is_the_distance_of_the_rebuilt_state() -> None:
    """By hand: solve back from the stored end at the same tolerance, the first step aside."""
    y0 = torch.tensor([1.0], dtype=FLOAT, requires_grad=True)
    solution = attracted(y0, [0.0, 3.0], "shared")
    solution.y[-1].sum().backward()
    end = solution.y[-1].detach()
    both = torch.cat([end, torch.ones(1, dtype=FLOAT)])
    sign = torch.tensor([-3.0, 3.0], dtype=FLOAT)  # of the state, and of its adjoint
    problem = ODEProblem(lambda t, s: sign * s, both, [3.0, 0.0])
    rebuilt = solve(problem, Solver(rtol=1e-6, atol=1e-6)).y[-1, 0]
    assert float(solution.gradient_report.drift) == pytest.approx(abs(float(rebuilt) - 1), rel=1e-3)


def test_lorenz_is_warned_of_by_interval_and_time() -> None:
    """At rtol = atol = 1e-6 and T = 2 the gradient is off: the message says where."""
    lorenz = drift.PROBLEMS["Lorenz"]
    y0 = torch.tensor(lorenz.y0, dtype=FLOAT, requires_grad=True)
    field = lorenz.field()

    def gradient(solver: Solver) -> Tensor:
        solution = solve(ODEProblem(field, y0, [0.0, 2.0]), solver)
        inputs = (y0, *field.parameters())
        return torch.cat(torch.autograd.grad(solution.y[-1].sum(), inputs))

    wanted = gradient(Solver(rtol=1e-11, atol=1e-11))
    doubt = re.escape("in doubt: on the interval from t=0 to 2 (number 0)")
    with pytest.warns(GradientWarning) as caught:
        found = gradient(Solver(gradient="adjoint", rtol=1e-6, atol=1e-6))
    assert any(re.search(f"{doubt}.*gradient='checkpointed'", str(w.message)) for w in caught)
    assert drift.distance(found[:3], wanted[:3]) > 1e-2  # of the initial state
    same = gradient(Solver(rtol=1e-6, atol=1e-6))  # checkpointed, as the message suggests
    assert drift.distance(same, wanted) < 1e-3


def test_the_interval_that_is_to_blame_is_named() -> None:
    """The long one in the middle, and the sample."""
    y0 = torch.tensor([[1.0, 1.0], [0.02, 0.01]], dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(lambda t, y: 6 * y * (1 - y), y0, [0.0, 0.1, 3.1, 3.2], batched=True)
    solution = solve(problem, Solver(gradient="adjoint", rtol=1e-5, atol=1e-5))
    with pytest.warns(GradientWarning, match=r"of sample 1 .* from t=0\.1 to 3\.1 \(number 1\)"):
        solution.y[-1].sum().backward()
    assert int(solution.gradient_report.error.argmax()) == 4


EASY = [
    ("decay", 4.0, 1e-5),
    ("network", 2.0, 1e-5),
    ("rotation", 16.0, 1e-6),
    ("predator and prey", 8.0, 1e-6),
    ("van der Pol 1", 4.0, 1e-6),
    ("Lorenz", 0.25, 1e-6),
    ("Lorenz", 0.5, 1e-7),
    ("relaxation", 2.0, 1e-6),
    ("van der Pol 8", 0.4, 1e-8),
]


@pytest.mark.parametrize(("name", "horizon", "tol"), EASY)
def test_a_right_gradient_is_not_doubted(name: str, horizon: float, tol: float) -> None:
    """True error below 1e-3 in each part: no warning of any kind (warnings are errors here)."""
    problem = drift.PROBLEMS[name]
    wanted, _ = drift.gradient_of(problem, horizon, Solver(rtol=1e-11, atol=1e-11), 0)
    solver = Solver(gradient="adjoint", rtol=tol, atol=tol)
    found, solution = drift.gradient_of(problem, horizon, solver, 0)
    point = drift.point_of(name, tol, horizon, found, wanted, solution)
    assert point.worst < 1e-3
    assert solution.gradient_report.messages == ()


HARD = [
    ("Lorenz", 0.5, 1e-4),
    ("Lorenz", 1.0, 1e-6),
    ("Lorenz", 2.0, 1e-8),
    ("van der Pol 1", 8.0, 1e-4),
    ("van der Pol 8", 1.0, 1e-5),
    ("van der Pol 8", 2.0, 1e-8),
]


@pytest.mark.parametrize(("name", "horizon", "tol"), HARD)
def test_a_wrong_gradient_is_doubted(name: str, horizon: float, tol: float) -> None:
    """True error above 1e-2 in a part; the estimate is within two orders of it."""
    problem = drift.PROBLEMS[name]
    wanted, _ = drift.gradient_of(problem, horizon, Solver(rtol=1e-11, atol=1e-11), 0)
    solver = Solver(gradient="adjoint", rtol=tol, atol=tol)
    found, solution = drift.gradient_of(problem, horizon, solver, 0)
    point = drift.point_of(name, tol, horizon, found, wanted, solution)
    assert point.worst > 1e-2
    assert point.doubted
    assert 1e-2 < point.estimate / point.worst < 1e2


def test_an_interval_that_runs_away_is_split_and_said_to_be() -> None:
    """Attraction at rate 20: states on the way are solved for once more; the gradient is right."""
    y0 = torch.tensor([1.0], dtype=FLOAT, requires_grad=True)
    rate = nn.Parameter(torch.tensor(20.0, dtype=FLOAT))
    problem = ODEProblem(lambda t, y: -rate * (y - torch.cos(t)), y0, [0.0, 2.0])
    solution = solve(problem, Solver(gradient="adjoint", rtol=1e-8, atol=1e-8))
    with pytest.warns(GradientWarning, match=r"ran away on the interval from t=0 to 2 .* split"):
        found = torch.autograd.grad(solution.y[-1].sum(), rate)[0]
    steps = solve(problem, Solver(rtol=1e-8, atol=1e-8)).y[-1].sum()
    assert float(found) == pytest.approx(float(torch.autograd.grad(steps, rate)[0]), rel=1e-5)


def zero_initialised(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """theta sin^2(20 t) - y / 10: at theta = 0 neither y nor a shows what the quadrature needs."""
    return theta * torch.sin(20 * t) ** 2 - 0.1 * y


@pytest.mark.parametrize("norm", ["full", "seminorm"])
def test_a_zero_initialised_field_is_right_or_warned_of(norm: Any) -> None:  # noqa: ANN401
    """By default right; where the seminorm leaves the quadrature out, the report says so."""
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(zero_initialised, torch.ones(1, dtype=FLOAT), [0.0, 3.0], args=theta)
    backward = Tolerances(1e-8, 1e-8, norm=norm)
    solution = solve(problem, Solver(gradient="adjoint", rtol=1e-8, atol=1e-8, backward=backward))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (found,) = torch.autograd.grad(solution.y[-1].sum(), theta)
    messages = [str(warning.message) for warning in caught]
    assert tuple(messages) == solution.gradient_report.messages
    if norm == "full":
        assert messages == []
        assert float(found) == pytest.approx(1.2886490097, rel=1e-7)
        return
    assert abs(float(found) - 1.2886490097) > 1e-3
    check(len(messages) == 1, f"one warning, got {messages}")
    assert "the seminorm left it out of the step decision" in messages[0]
    assert solution.gradient_report.quadrature_error > 1e5


def test_the_seminorm_takes_fewer_steps_where_it_does_no_harm() -> None:
    """The same gradient within tolerance, and no warning."""
    problem = drift.PROBLEMS["predator and prey"]

    def run(norm: Any) -> tuple[Tensor, int]:  # noqa: ANN401
        backward = Tolerances(1e-7, 1e-7, norm=norm)
        solver = Solver(gradient="adjoint", rtol=1e-7, atol=1e-7, backward=backward)
        gradient, solution = drift.gradient_of(problem, 2.0, solver, 0)
        check(solution.gradient_report.messages == (), "no warning")
        return gradient, int(solution.stats.backward.n_steps)

    (full, n_full), (semi, n_semi) = run("full"), run("seminorm")
    assert n_semi < n_full
    assert drift.distance(semi, full) < 1e-5


def test_each_backward_pass_fills_the_report_anew() -> None:
    """It speaks of the last one."""
    lorenz = drift.PROBLEMS["Lorenz"]
    y0 = torch.tensor(lorenz.y0, dtype=FLOAT, requires_grad=True)
    t = [0.0, 0.25, 1.6]
    solution = solve(ODEProblem(lorenz.field(), y0, t), Solver(gradient="adjoint", rtol=1e-6))
    with pytest.warns(GradientWarning, match="in doubt"):
        solution.y[2].sum().backward(retain_graph=True)
    first = solution.gradient_report.error.clone()
    solution.y[0].sum().backward()
    assert math.isfinite(float(first.max()))
    assert solution.gradient_report.messages == ()
    assert float(solution.gradient_report.error.max()) == 0.0
