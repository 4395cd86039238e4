"""A running cost is integrated along the path, on every backend, with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, Unsupported, solve
from ctflow.backends.protocol import Coupling, Feature, Gradient
from ctflow.backends.registry import get
from ctflow.testing.routes import prompt
from tests.checks import check, check_close, check_relative

RTOL = 1e-9


def _choices() -> list[tuple[str, str, str, bool]]:
    everything = [
        (name, gradient, coupling, in_norm)
        for name in prompt()
        for gradient in ("direct", "checkpointed", "adjoint")
        for coupling in ("shared", "per_sample")
        for in_norm in (True, False)
    ]
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0])
    return [
        (name, gradient, coupling, in_norm)
        for name, gradient, coupling, in_norm in everything
        if not get(name).refuse(problem, Solver(name, gradient=gradient, coupling=coupling))
        and (in_norm or Feature.UNCONTROLLED in get(name).features)
    ]


def _decay(theta: Tensor, y0: Tensor, t: Tensor, **settings: bool) -> ODEProblem:
    return ODEProblem(
        lambda _, y: -theta * y,
        y0,
        t,
        running_cost=lambda t, y: theta * (y**2).sum(-1) + torch.cos(t.flatten()),
        **settings,
    )


def _exact(theta: Tensor, y0: Tensor, t: Tensor) -> Tensor:
    past = (t - t[0]).unsqueeze(1)
    energy = (y0**2).sum(-1) * (1 - torch.exp(-2 * theta * past)) / 2
    return energy + torch.sin(t).unsqueeze(1) - torch.sin(t[0])


def _inputs(direction: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    t = (direction * torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64)).requires_grad_()
    return theta, y0, t


@pytest.mark.parametrize(("backend", "gradient", "coupling", "in_norm"), _choices())
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_cost_and_its_gradients_match_the_closed_form(
    backend: str, gradient: Gradient, coupling: Coupling, in_norm: bool, direction: float
) -> None:
    """Values, and gradients of parameter, initial state and all times."""
    theta, y0, t = _inputs(direction)
    solver = Solver(backend, gradient=gradient, coupling=coupling, rtol=RTOL, atol=1e-11)
    solution = solve(_decay(theta, y0, t, cost_in_norm=in_norm), solver)
    expected = _exact(theta, y0, t)
    check_close(solution.cost, expected, rtol=100 * RTOL, atol=1e-8)
    weight = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found = torch.autograd.grad((weight * solution.cost).sum(), (theta, y0, t))
    wanted = torch.autograd.grad((weight * expected).sum(), (theta, y0, t))
    check_relative(found, wanted, rtol=1e-7)


def test_a_cost_outside_the_norm_leaves_the_steps_alone() -> None:
    """A cost that is hard to integrate does not change the steps of an easy path."""

    def run(cost: Callable[..., Tensor]) -> Solution:
        problem = ODEProblem(
            lambda t, y: -y, torch.ones(2), [0.0, 1.0], running_cost=cost, cost_in_norm=False
        )
        return solve(problem)

    rough = run(lambda t, y: torch.sin(200 * t))
    smooth = run(lambda t, y: 0 * t)
    check_close(rough.stats.step_times, smooth.stats.step_times, rtol=0, atol=0)


def test_costs_of_any_structure_come_back_in_it() -> None:
    """A dict of costs is a dict of integrals, beside a state of several leaves."""
    y0 = {"x": torch.ones(2), "v": torch.zeros(2)}
    problem = ODEProblem(
        lambda t, y: {"x": y["v"], "v": -y["x"]},
        y0,
        [0.0, 1.0],
        running_cost=lambda t, y: {"time": torch.ones_like(t), "x": y["x"]},
    )
    cost = solve(problem).cost
    check(set(cost) == {"time", "x"}, f"got {set(cost)}")
    check_close(cost["time"], torch.tensor([0.0, 1.0]), rtol=1e-4)
    check_close(cost["x"][1], torch.sin(torch.ones(2)), rtol=1e-4)


def test_no_cost_means_none() -> None:
    """Without a running cost the solution has none."""
    check(solve(ODEProblem(lambda t, y: -y, torch.ones(2), [0.0, 1.0])).cost is None, "a cost")


@pytest.mark.parametrize(
    ("cost", "word"),
    [
        (lambda t, y: 1.0, "tensors"),
        (lambda t, y: y.sum(-1).double(), "dtype"),
        (lambda t, y: y.sum(), "each sample"),
    ],
)
def test_a_cost_that_does_not_fit_is_refused(cost: Callable[..., Tensor], word: str) -> None:
    """Each fault is named before any work."""
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, 3), [0.0, 1.0], running_cost=cost)
    with pytest.raises(InvalidProblem, match=word):
        solve(problem, Solver(coupling="per_sample"))


@dataclass(frozen=True)
class _NormOfAll:
    """A backend that knows nothing of parts outside its norm."""

    name: str = "norm of all"
    features: frozenset[Feature] = frozenset({Feature.ADAPTIVE, Feature.DIRECT})

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Nothing of its own."""
        return []

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """It must not come to this."""
        raise RuntimeError(problem, solver)


def test_a_backend_that_cannot_leave_the_cost_out_says_so() -> None:
    """A feature that it does not name is refused for it, and one that has it is named."""
    problem = ODEProblem(
        lambda t, y: -y, torch.ones(2), [0.0, 1.0], running_cost=lambda t, y: y, cost_in_norm=False
    )
    with pytest.raises(Unsupported, match="backend='native'"):
        solve(problem, Solver(backend=_NormOfAll()))
