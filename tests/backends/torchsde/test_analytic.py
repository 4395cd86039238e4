"""Against equations solved in closed form: strong order, moments, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ctflow import SDEProblem, Solver, sdeint, solve_sde
from ctflow.backends.protocol import Gradient
from ctflow.backends.torchsde import brownian_path
from ctflow.backends.torchsde.schemes import SCHEMES
from ctflow.sde import Calculus
from tests.backends.torchsde.equations import (
    DRIFT,
    DTYPE,
    EQUATIONS,
    VOLATILITY,
    path_for,
)

STEPS = [2.0**-k for k in (7, 6, 5, 4, 3)]  # the smallest first: it draws the path
CASES = [
    (name, method)
    for name, equation in EQUATIONS.items()
    for method, scheme in SCHEMES.items()
    if equation.noise in scheme.noises and equation.calculus in scheme.calculi
]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_strong_order_is_the_declared_one(name: str, method: str) -> None:
    """Slope of the paths' mean error over the step, on one Brownian path.

    With commuting noise (ours commutes) a scheme of order 0.5 may have 1, so that the declared
    order bounds the slope from below; 0.15 is what 300 paths leave open.
    """
    equation, scheme = EQUATIONS[name], SCHEMES[method]
    path = path_for(equation, 300, seed=1, levy=scheme.levy[0] if scheme.levy else "none")
    y0 = torch.ones(300, 1, dtype=DTYPE)
    errors = []
    for step in STEPS:
        solver = Solver("torchsde", method=method, step=step)
        y = solve_sde(equation.problem(y0, path), solver).y[-1]
        exact = equation.exact(y0, path(0.0, 1.0))
        errors.append((y - exact).abs().mean().item())
    slope = float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0])
    assert slope > scheme.strong_order(equation.noise) - 0.15
    assert errors[0] < errors[-1] / 2


def test_the_slope_tells_euler_from_milstein() -> None:
    """0.5 and 1 on geometric Brownian motion: the measurement above resolves the difference."""
    equation, y0 = EQUATIONS["ito diagonal"], torch.ones(1000, 1, dtype=DTYPE)
    slopes = []
    for method in ("euler", "milstein"):
        path, errors = path_for(equation, 1000, seed=2), []
        for step in STEPS:
            solution = solve_sde(equation.problem(y0, path), Solver("torchsde", method, step=step))
            error = solution.y[-1] - equation.exact(y0, path(0.0, 1.0))
            errors.append(error.abs().mean().item())
        slopes.append(float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0]))
    assert slopes == pytest.approx([0.5, 1.0], abs=0.12)


TURNS = torch.tensor(
    [[[0.0, 0.5], [-0.5, 0.0]], [[0.4, 0.0], [0.0, -0.4]], [[0.0, 0.3], [0.3, 0.0]]], dtype=DTYPE
)


def _mix(t: Tensor, y: Tensor) -> Tensor:
    """Two variables, three Brownian motions whose parts do not commute."""
    return torch.einsum("mij,bj->bim", TURNS, y)


@pytest.mark.parametrize(
    ("method", "calculus"),
    [
        ("euler", "ito"),
        *[(m, "stratonovich") for m, s in SCHEMES.items() if "stratonovich" in s.calculi
          and "general" in s.noises],
    ],
)  # fmt: skip
def test_noise_that_does_not_commute_has_strong_order_one_half(
    method: str, calculus: Calculus
) -> None:
    """Between each step and a quarter of it, as there is no closed form; log_ode is better."""
    levy = SCHEMES[method].levy
    path = brownian_path(0.0, 1.0, (400, 3), 1, like=TURNS, levy_area=levy[0] if levy else "none")
    ys = []
    for step in (2.0**-k for k in (8, 7, 6, 5, 4, 3, 2)):
        problem = SDEProblem(
            lambda t, y: torch.roll(y, 1, dims=1) * 0.3, _mix, torch.ones(400, 2, dtype=DTYPE),
            torch.tensor([0.0, 1.0], dtype=DTYPE), noise="general", calculus=calculus, path=path,
        )  # fmt: skip
        ys.append(solve_sde(problem, Solver("torchsde", method, step=step)).y[-1])
    pairs = zip(ys[2:], ys[:-2], strict=True)
    errors = [(a - b).norm(dim=1).mean().item() for a, b in pairs]
    slope = float(np.polyfit(range(len(errors)), np.log2(errors), 1)[0])
    assert slope > 0.35
    assert method == "log_ode" or slope < 0.65


ADAPTIVE = [
    ("ito diagonal", "milstein"),
    ("ito scalar", "milstein"),
    ("stratonovich general", "heun"),
]


@pytest.mark.parametrize(("name", "method"), ADAPTIVE)
def test_adaptive_steps_follow_the_tolerance(name: str, method: str) -> None:
    """A tenth of the tolerance takes more steps and leaves less error on the same path."""
    equation, levy = EQUATIONS[name], SCHEMES[method].levy
    path = path_for(equation, 100, seed=3, levy=levy[0] if levy else "none")
    y0 = torch.ones(100, 1, dtype=DTYPE)
    steps, errors = [], []
    for tolerance in (1e-3, 1e-2):
        solver = Solver("torchsde", method, rtol=tolerance, atol=tolerance)
        solution = solve_sde(equation.problem(y0, path), solver)
        errors.append((solution.y[-1] - equation.exact(y0, path(0.0, 1.0))).abs().mean().item())
        steps.append(int(solution.stats.forward.n_accepted))
    assert steps[0] > 1.5 * steps[1]
    assert errors[0] < 0.7 * errors[1]
    assert errors[0] < 0.02


def test_an_ornstein_uhlenbeck_process_has_its_moments() -> None:
    """Mean, variance and covariance between two times, within five standard errors and the step."""
    theta, sigma, n, step = 1.5, 0.8, 20_000, 0.02
    y0 = torch.full((n, 1), 2.0, dtype=DTYPE)
    y = sdeint(
        lambda t, y: -theta * y,
        lambda t, y: torch.full((len(y), 1, 1), sigma, dtype=DTYPE),
        y0, [0.0, 0.5, 1.0], noise="additive", seed=4, solver=Solver("torchsde", "srk", step=step),
    )[..., 0]  # fmt: skip
    stationary = sigma**2 / (2 * theta)
    for i, t in ((1, 0.5), (2, 1.0)):
        variance = stationary * (1 - math.exp(-2 * theta * t))
        error = 5 * math.sqrt(variance / n)
        assert y[i].mean().item() == pytest.approx(2 * math.exp(-theta * t), abs=error)
        assert y[i].var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    covariance = torch.cov(y[1:])[0, 1].item()
    wanted = math.exp(-theta * 0.5) * stationary * (1 - math.exp(-2 * theta * 0.5))
    assert covariance == pytest.approx(wanted, rel=0.06)


GRADIENTS = [
    ("ito diagonal", "milstein", "direct"),
    ("ito diagonal", "milstein", "adjoint"),
    ("ito general", "euler", "adjoint"),
    ("ito scalar", "srk", "direct"),
    ("stratonovich diagonal", "midpoint", "adjoint"),
    ("stratonovich general", "reversible_heun", "adjoint"),
]


@pytest.mark.parametrize(("name", "method", "gradient"), GRADIENTS)
def test_gradients_of_a_mean_are_right_within_monte_carlo_error(
    name: str, method: str, gradient: str
) -> None:
    """Of geometric Brownian motion: d E[y] / d drift = E[y], and by the volatility and y0."""
    equation, n = EQUATIONS[name], 4_000
    drift, volatility = (torch.tensor(x, dtype=DTYPE).requires_grad_() for x in (DRIFT, VOLATILITY))
    start = torch.tensor(1.0, dtype=DTYPE).requires_grad_()
    solver = Solver("torchsde", method, step=0.02, gradient=gradient)  # pyright: ignore[reportArgumentType]
    y = sdeint(
        lambda t, y: y * drift,
        lambda t, y: equation.g(t, y) / VOLATILITY * volatility,
        start.expand(n, 1), [0.0, 1.0], noise=equation.noise, calculus=equation.calculus,
        seed=5, solver=solver,
    )[-1]  # fmt: skip
    found = torch.autograd.grad(y.mean(), (drift, volatility, start))
    m = equation.n_noises
    growth = 0.0 if equation.calculus == "ito" else m * VOLATILITY**2 / 2
    mean = math.exp(DRIFT + growth)
    by_volatility = 0.0 if equation.calculus == "ito" else m * VOLATILITY * mean
    spread = mean * math.sqrt(math.exp(m * VOLATILITY**2) * (1 + m) / n)  # of W y, the widest
    for value, wanted in zip(found, (mean, by_volatility, mean), strict=True):
        assert value.item() == pytest.approx(wanted, abs=5 * spread + 0.02)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize(
    ("name", "method"), [("ito diagonal", "milstein"), ("stratonovich general", "heun")]
)
def test_gradients_under_adaptive_steps_are_those_of_the_path(
    name: str, method: str, gradient: Gradient
) -> None:
    """Of geometric Brownian motion, path by path: d y / d drift = y, and d y / d y0 = y / y0."""
    equation, n = EQUATIONS[name], 30
    path = path_for(equation, n, seed=7)
    drift = torch.tensor(DRIFT, dtype=DTYPE, requires_grad=True)
    y0 = torch.linspace(0.5, 1.5, n, dtype=DTYPE).unsqueeze(1).requires_grad_()
    solver = Solver("torchsde", method, rtol=2e-3, atol=2e-3, gradient=gradient)
    made = equation._replace(f=lambda t, y: drift * y)
    y = solve_sde(made.problem(y0, path), solver).y[-1]
    by_drift, by_start = torch.autograd.grad(y.sum(), (drift, y0))
    exact = equation.exact(y0.detach(), path(0.0, 1.0))
    assert by_drift.item() == pytest.approx(exact.sum().item(), rel=0.02)
    wanted = exact / y0.detach()
    assert ((by_start - wanted).norm() / wanted.norm()).item() < 0.03


def gradients(name: str, method: str, step: float, gradient: str) -> Tensor:
    """Of one path by a parameter inside a non-linear drift, and by y0."""
    equation = EQUATIONS[name]
    path = path_for(equation, 20, seed=6)
    theta = torch.tensor(0.5, dtype=DTYPE).requires_grad_()
    y0 = torch.linspace(0.5, 1.5, 20, dtype=DTYPE).unsqueeze(1).requires_grad_()
    made = equation._replace(f=lambda t, y: torch.sin(theta * y) - t * y)
    solver = Solver("torchsde", method, step=step, gradient=gradient)  # pyright: ignore[reportArgumentType]
    y = solve_sde(made.problem(y0, path), solver).y
    return torch.cat([g.flatten() for g in torch.autograd.grad(y.square().sum(), (theta, y0))])


def test_the_adjoint_of_reversible_heun_is_exact() -> None:
    """It differs from back-propagation through the steps by rounding alone, at any step."""
    for name in ("stratonovich diagonal", "stratonovich general", "stratonovich additive"):
        direct = gradients(name, "reversible_heun", 0.125, "direct")
        adjoint = gradients(name, "reversible_heun", 0.125, "adjoint")
        torch.testing.assert_close(adjoint, direct, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "method"), [("ito diagonal", "milstein"), ("stratonovich diagonal", "midpoint")]
)
def test_the_stochastic_adjoint_approaches_the_steps_gradient(name: str, method: str) -> None:
    """An eighth of the step leaves less than a third of the difference."""
    differences = []
    for step in (2.0**-7, 2.0**-4):  # the smaller step draws the path of both
        wanted = gradients(name, method, step, "direct")
        found = gradients(name, method, step, "adjoint")
        differences.append(((found - wanted).norm() / wanted.norm()).item())
    assert differences[0] < differences[1] / 3
    assert differences[0] < 0.02
