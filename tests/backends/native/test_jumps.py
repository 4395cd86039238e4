"""At a declared discontinuity steps end and begin anew, and no stage sees the other side."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, Unsupported, odeint, solve
from tests.checks import check_close, check_relative
from tests.problems import FLOAT

PLACE = 0.5
Y0 = torch.tensor([[1.0], [0.4]], dtype=FLOAT)
GRIDS = [
    [0.0, 1.0],
    [1.0, 0.0],
    [0.0, 0.25, 0.5, 0.75, 1.0],
    [0.9, 0.5, 0.1],
    [0.5, 1.0],
    [0.5, 0.0],
]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
couplings = pytest.mark.parametrize("coupling", ["shared", "per_sample"])


class Switched(nn.Module):
    """dy/dt = a y before 0.5 and b y cos t from there on; keeps the times that it saw."""

    def __init__(self, dtype: torch.dtype = FLOAT) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.3, dtype=dtype))
        self.b = nn.Parameter(torch.tensor(-2.0, dtype=dtype))
        self.seen: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.seen += t.detach().flatten().tolist()
        return torch.where(t < PLACE, self.a * y, self.b * y * torch.cos(t))

    def exact(self, t: Tensor, y0: Tensor) -> Tensor:
        """States at times t [T]."""
        later = self.a * PLACE + self.b * (torch.sin(t) - math.sin(PLACE))
        exponent = torch.where(t < PLACE, self.a * t, later)
        return y0 * torch.exp(exponent - exponent[0]).reshape(-1, 1, 1)


def run(f: Switched, y0: Tensor, grid: list[float], tol: float, **settings: Any) -> Solution:  # noqa: ANN401
    """With the place of the jump declared."""
    problem = ODEProblem(f, y0, grid, jump_t=[PLACE])  # pyright: ignore
    return solve(problem, Solver(rtol=tol, atol=tol, **settings))


@grids
@couplings
@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "dop853", "vern7"])
def test_values_and_gradients_pass_a_jump(
    grid: list[float], coupling: str, gradient: str, method: str
) -> None:
    """In both directions, with outputs, the start or the end at the jump."""
    f, y0 = Switched(), Y0.clone().requires_grad_()
    solution = run(f, y0, grid, 1e-9, method=method, gradient=gradient, coupling=coupling)
    exact = f.exact(torch.tensor(grid, dtype=FLOAT), y0)
    inputs = (y0, f.a, f.b)
    found, wanted = (
        torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
        for y in (solution.y, exact)
    )
    check_close(solution.y, exact, rtol=1e-7, atol=1e-9)
    for one, other in zip(found, wanted, strict=True):
        known = [Y0.new_zeros(()) if x is None else x for x in (one, other)]
        check_close(*known, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", [[0.0, 1.0], [1.0, 0.0]])
def test_f_never_sees_the_place_itself(dtype: torch.dtype, grid: list[float]) -> None:
    """One number before it, one behind it, in the dtype of the state."""
    f = Switched(dtype)
    run(f, Y0.to(dtype), grid, 1e-4)
    place = torch.tensor(PLACE, dtype=dtype)
    below, above = (float(torch.nextafter(place, torch.tensor(x, dtype=dtype))) for x in (0, 1))
    assert PLACE not in f.seen
    assert {below, above} <= set(f.seen)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
def test_a_declared_jump_costs_few_rejected_steps(gradient: str) -> None:
    """Undeclared, the error estimate has to find it; forwards and backwards."""
    counts = []
    for jump_t in ([PLACE], None):
        f = Switched()
        problem = ODEProblem(f, Y0, [0.0, 1.0], jump_t=jump_t)  # pyright: ignore
        solution = solve(problem, Solver(rtol=1e-7, atol=1e-7, gradient=gradient))
        solution.y[-1].sum().backward()
        assert solution.stats.backward is not None
        passes = (solution.stats.forward, solution.stats.backward)
        counts.append([int(c.n_rejected) for c in passes])
    declared, undeclared = counts
    assert declared[0] < undeclared[0] / 3
    if gradient == "adjoint":
        assert declared[1] < undeclared[1] / 3


def test_a_sample_has_its_own_jumps_and_the_result_of_the_sample_alone() -> None:
    """Rows of times that pass the jump early, late, backwards and never: bits and costs agree."""
    f = Switched()
    t = torch.tensor([[0.0, 0.6], [0.4, 2.0], [0.8, 0.1], [0.6, 0.9]], dtype=FLOAT)
    y0 = torch.linspace(0.5, 1.5, 4, dtype=FLOAT)[:, None]
    solver = Solver(rtol=1e-6, atol=1e-6)
    batch = solve(ODEProblem(f, y0, t, jump_t=[PLACE]), solver)  # pyright: ignore
    for b in range(4):
        rows = slice(b, b + 1)
        alone = solve(ODEProblem(f, y0[rows], t[rows], jump_t=[PLACE]), solver)  # pyright: ignore
        check_relative(batch.y[:, rows], alone.y, rtol=1e-14)
        for name, column in vars(batch.stats.forward).items():
            assert column[b] == getattr(alone.stats.forward, name)[0], name


def test_the_derivative_of_an_output_at_the_jump_is_that_of_its_side() -> None:
    """The side it is reached from; a solve that starts there has the other."""
    f = Switched()
    t = torch.tensor([0.0, PLACE], dtype=FLOAT, requires_grad=True)
    y = odeint(f, Y0, t, jump_t=[PLACE], rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(y[-1].sum(), t)
    check_relative(slope[1], (f.a * y[-1]).sum().detach(), rtol=1e-7)
    t = torch.tensor([PLACE, 1.0], dtype=FLOAT, requires_grad=True)
    y = odeint(f, Y0, t, jump_t=[PLACE], rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(y[-1].sum(), t)
    growth = (y[-1] / Y0).detach()
    wanted = -(growth * f.b * Y0 * math.cos(PLACE)).sum().detach()
    check_relative(slope[0], wanted, rtol=1e-7)


def test_two_solves_have_the_gradient_of_the_place() -> None:
    """What the refusal advises: dL/dplace = a (f_before - f_after), by the gradients of times."""
    f = Switched()
    place = torch.tensor(PLACE, dtype=FLOAT, requires_grad=True)
    ends = torch.tensor([0.0, 1.0], dtype=FLOAT)
    tight = Solver(rtol=1e-10, atol=1e-10)

    def before(t: Tensor, y: Tensor) -> Tensor:
        return f.a * y

    def after(t: Tensor, y: Tensor) -> Tensor:
        return f.b * y * torch.cos(t)

    middle = odeint(before, Y0, torch.stack([ends[0], place]), solver=tight)[-1]
    end = odeint(after, middle, torch.stack([place, ends[1]]), solver=tight)[-1]
    (slope,) = torch.autograd.grad(end.sum(), place)
    exponent = f.a * PLACE + f.b * (math.sin(1.0) - math.sin(PLACE))
    wanted = (Y0 * torch.exp(exponent) * (f.a - f.b * math.cos(PLACE))).sum().detach()
    check_relative(slope, wanted, rtol=1e-8)


def test_a_place_that_wants_a_gradient_is_refused() -> None:
    """It would get none, silently."""
    with pytest.raises(Unsupported, match="`jump_t` must not require a gradient"):
        odeint(Switched(), Y0, [0.0, 1.0], jump_t=torch.tensor([0.5], requires_grad=True))


@pytest.mark.parametrize("jumps", [[math.nan], [math.inf], torch.zeros(2, 2), torch.tensor([1])])
def test_what_is_no_place_is_refused(jumps: Any) -> None:  # noqa: ANN401
    """By name."""
    with pytest.raises(InvalidProblem, match="`jump_t` must be"):
        odeint(Switched(), Y0, [0.0, 1.0], jump_t=jumps)


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy"])
def test_backends_that_cannot_restart_say_so(backend: str) -> None:
    """And name the one that can."""
    pytest.importorskip(backend)
    with pytest.raises(Unsupported, match=r"jump_t.*native"):
        odeint(Switched(), Y0, [0.0, 1.0], jump_t=[0.5], backend=backend)


@pytest.mark.parametrize("jumps", [[], [-1.0, 7.0], [0.0], [1.0], [0.3, 0.1, 0.3, 0.1 + 1e-13]])
def test_places_outside_at_the_ends_repeated_and_close_change_nothing(jumps: list[float]) -> None:
    """Of a field that has no jump."""
    t = torch.tensor([0.0, 0.3, 1.0], dtype=FLOAT)
    y = odeint(lambda t, y: -y, Y0, t, jump_t=jumps)
    check_close(y, Y0 * torch.exp(-t).reshape(-1, 1, 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", [0.3, 0.07])
def test_fixed_steps_end_at_the_jump(step: float) -> None:
    """And keep their order: rk4 across an undeclared one falls to the first."""
    f = Switched()
    y = odeint(f, Y0, [0.0, 1.0], jump_t=[PLACE], solver=Solver(method="rk4", step=step))
    exact = f.exact(torch.tensor([0.0, 1.0], dtype=FLOAT), Y0)
    check_relative(y.detach(), exact.detach(), rtol=step**4)
