"""What the adjoint's tolerances are measured in: the incoming gradient, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, Tolerances, solve
from ctflow.errors import InvalidProblem

TIMES = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
Run = Callable[[str, float], tuple[int, Tensor]]


@pytest.fixture(params=["native", "scipy", "torchdiffeq"])
def run(request: pytest.FixtureRequest) -> Run:
    """Evaluations backwards, and the gradient, for a loss that is multiplied by a factor."""
    for package in ("scipy", "torchdiffeq"):
        if request.param == package:
            pytest.importorskip(package)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False))
    net, start = net.double(), torch.zeros(3, 2, dtype=torch.float64)  # at rest: only a moves

    def solved(unit: Literal["gradient", "absolute"], factor: float) -> tuple[int, Tensor]:
        y0 = start.clone().requires_grad_()
        backward = Tolerances(1e-9, 1e-7, unit=unit)
        solver = Solver(request.param, rtol=1e-9, atol=1e-9, gradient="adjoint", backward=backward)
        solution = solve(ODEProblem(lambda t, y: net(y) * (1 + t), y0, TIMES), solver)
        loss = factor * solution.y[-1].sum()  # whose gradient is the factor everywhere
        found = torch.autograd.grad(loss, [y0, *net.parameters()])
        counts = solution.stats.backward
        assert counts is not None
        return int(counts.n_f_evals), torch.cat([g.flatten() for g in found]) / factor

    return solved  # pyright: ignore


def test_a_small_loss_is_checked_like_a_large_one(run: Run) -> None:
    """The adjoint is linear: a mean over a million numbers takes the steps of a sum."""
    large, small = run("gradient", 1.0), run("gradient", 2.0**-20)
    assert large[0] == small[0]
    torch.testing.assert_close(small[1], large[1], rtol=1e-12, atol=1e-12)


def test_absolute_tolerances_are_what_they_are_elsewhere(run: Run) -> None:
    """The same at a gradient of size 1; nearly nothing is asked of a small one."""
    (n, one), (same, other) = run("gradient", 1.0), run("absolute", 1.0)
    assert n == same
    assert torch.equal(one, other)
    fewer, rough = run("absolute", 2.0**-20)
    assert fewer < n
    error, usual = (rough - one).norm() / one.norm(), 1e-7
    assert usual < float(error) < 0.3


def test_another_unit_is_refused() -> None:
    """With what there is."""
    with pytest.raises(InvalidProblem, match="`unit` must be one of"):
        Tolerances(1e-3, 1e-3, unit="loss")  # pyright: ignore
