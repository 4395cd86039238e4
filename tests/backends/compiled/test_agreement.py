"""Every kind of solve agrees with native: values, steps, counts and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, Status, solve
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.build import counts
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.dynamics import MLP
from ctflow.state import State, expand_time

DTYPE = torch.float64


class Net(nn.Module):
    """A small network of time and state."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(2, 8, dtype=DTYPE)
        self.second = nn.Linear(8, 2, dtype=DTYPE)
        with torch.no_grad():
            for x in self.parameters():
                x.copy_(0.6 * torch.randn(x.shape, generator=generator, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        return self.second(torch.tanh(self.first(y))) + torch.sin(3 * expand_time(t, y)) * y


class Tree(nn.Module):
    """A state of two leaves, a third argument, and a running cost beside it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = Net(seed)

    def forward(self, t: Tensor, y: dict[str, Tensor], args: tuple[Tensor, float]) -> State:
        """Evaluate it."""
        drift, scale = args
        return {"x": self.net(t, y["x"]) + drift, "v": scale * (y["x"].sum(1) - y["v"])}

    def cost(self, t: Tensor, y: dict[str, Tensor], args: tuple[Tensor, float]) -> Tensor:
        """One number for each sample."""
        return (y["x"] ** 2).sum(1) * args[1] + args[0].sum()


class Case(NamedTuple):
    """A problem's draw and the settings it is solved with."""

    problem: Callable[[Any, Tensor, Tensor], ODEProblem]
    module: Callable[[int], nn.Module]
    solver: Solver
    n_times: int


def _plain(f: nn.Module, y0: Tensor, t: Tensor) -> ODEProblem:
    return ODEProblem(f, y0, t)


def _tree(f: nn.Module, y0: Tensor, t: Tensor) -> ODEProblem:
    drift = torch.tensor([0.3, -0.2], dtype=DTYPE, requires_grad=y0.requires_grad)
    state = {"x": y0, "v": y0[:, 0] * 0.5}
    return ODEProblem(f, state, t, args=(drift, 0.7), running_cost=f.cost)


_SOLVER = Solver(rtol=1e-6, atol=1e-8)
_PER_SAMPLE = replace(_SOLVER, coupling="per_sample")
CASES = {
    "shared, outputs": Case(_plain, Net, _SOLVER, 7),
    "shared, end alone": Case(_plain, Net, _SOLVER, 2),
    "per sample, outputs": Case(_plain, Net, _PER_SAMPLE, 7),
    "per sample, end alone": Case(_plain, Net, _PER_SAMPLE, 2),
    "tree, args and cost": Case(_tree, Tree, _SOLVER, 5),
    "tree, args and cost per sample": Case(_tree, Tree, _PER_SAMPLE, 5),
    "fixed steps": Case(_plain, Net, Solver(method="rk4", step=0.1), 7),
    "tsit5": Case(_plain, Net, replace(_SOLVER, method="tsit5"), 7),
    "bosh3": Case(_plain, Net, replace(_SOLVER, method="bosh3", rtol=1e-4, atol=1e-6), 7),
    "several runs of the program": Case(_plain, Net, replace(_SOLVER, rtol=1e-11, atol=1e-13), 7),
}
# Following a program takes seconds: each case has one gradient in every run, and with --slow both.
DIRECT = {"shared, end alone", "per sample, outputs", "tree, args and cost per sample", "tsit5"}
WAYS = [
    pytest.param(
        name, gradient, marks=[] if (name in DIRECT) == (gradient == "direct") else pytest.mark.slow
    )
    for name in CASES
    for gradient in ("checkpointed", "direct")
]


def _compiled(solver: Solver) -> Solver:
    return replace(solver, backend=CompiledBackend())


def _leaves(y: State) -> list[Tensor]:
    return list(torch.utils._pytree.tree_leaves(y))


def _run(case: Case, f: nn.Module, y0: Tensor, t: Tensor, solver: Solver) -> list[list[Tensor]]:
    """Values, counts, gradients of y0, of the times and of the parameters."""
    y0, t = y0.clone().requires_grad_(), t.clone().requires_grad_()
    problem = case.problem(f, y0, t)
    solution = solve(problem, solver)
    assert solution.ok
    values = [*_leaves(solution.y), *([] if solution.cost is None else _leaves(solution.cost))]
    loss = sum(((x - 0.3) ** 2).mean() for x in values)
    wanted = [y0, t, *f.parameters()]
    if problem.args is not None:
        wanted.append(problem.args[0])
    gradients = torch.autograd.grad(loss, wanted)  # pyright: ignore
    own = solution.stats.forward
    backward = solution.stats.backward
    assert backward is not None
    counted = [own.n_steps, own.n_accepted, own.n_rejected]
    return [[x.detach() for x in values], list(gradients), counted, [own.n_f_evals]]


def _grid(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gaps = 0.1 + torch.rand(n - 1, generator=generator, dtype=DTYPE)
    t = torch.cat([torch.zeros(1, dtype=DTYPE), gaps.cumsum(0)])
    return 0.3 + 1.5 * t / t[-1]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(("name", "gradient"), WAYS)
def test_agrees_with_native(name: str, gradient: str) -> None:
    """Two draws of weights, states and times, one of them backwards, from the same programs."""
    case = CASES[name]
    solver = replace(case.solver, gradient=gradient)  # pyright: ignore
    before = None
    for seed in range(2):
        torch.manual_seed(seed)
        f, y0, t = case.module(seed), torch.randn(4, 2, dtype=DTYPE), _grid(case.n_times, seed)
        t = t.flip(0) if seed == 1 else t
        found = _run(case, f, y0, t, _compiled(solver))
        wanted = _run(case, f, y0, t, solver)
        for ours, native in zip(found[:2], wanted[:2], strict=True):
            for x, y in zip(ours, native, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)
        for x, y in zip(found[2], wanted[2], strict=True):
            assert x.tolist() == y.tolist()
        assert before is None or counts.compiled == before, "another draw compiled again"
        before = counts.compiled


@pytest.mark.usefixtures("either_way")
def test_at_least_99_percent_of_the_samples_take_as_many_steps() -> None:
    """Fused operations round otherwise, which decides where an error stands on the edge."""
    counted: list[list[Tensor]] = []
    for solver in (_PER_SAMPLE, _compiled(_PER_SAMPLE)):
        found: list[Tensor] = []
        for seed in range(12):
            torch.manual_seed(seed)
            problem = ODEProblem(Net(seed), 2 * torch.randn(200, 2, dtype=DTYPE), [0.0, 3.0])
            tolerance = 10.0 ** -(3 + seed / 3)
            own = solve(problem, replace(solver, rtol=tolerance, atol=tolerance)).stats.forward
            found += [own.n_accepted, own.n_rejected]
        counted.append(found)
    same = torch.cat([x == y for x, y in zip(*counted, strict=True)])
    assert float(same.double().mean()) >= 0.99
    assert int(torch.cat(counted[0][1::2]).sum()) > 500, "hardly a step was rejected"


@pytest.mark.usefixtures("either_way")
def test_float32_takes_other_steps_no_more_than_native_does_when_sums_are_reordered() -> None:
    """In float32 rounding decides more often: as often as in native with its units permuted."""
    alike: list[float] = []
    for seed in range(0, 12, 3):
        torch.manual_seed(seed)
        f, y0 = Net(seed).float(), 2 * torch.randn(200, 2)
        other = Net(seed).float()
        order = torch.randperm(8)
        with torch.no_grad():
            other.first.weight.copy_(f.first.weight[order])
            other.first.bias.copy_(f.first.bias[order])
            other.second.weight.copy_(f.second.weight[:, order])
        counted = [
            solve(ODEProblem(each, y0, [0.0, 3.0]), replace(solver, rtol=1e-4, atol=1e-4)).stats
            for each, solver in (
                (f, _PER_SAMPLE),
                (f, _compiled(_PER_SAMPLE)),
                (other, _PER_SAMPLE),
            )
        ]
        steps = [torch.stack((s.forward.n_accepted, s.forward.n_rejected)) for s in counted]
        alike += [float((steps[0] == each).double().mean()) for each in steps[1:]]
    ours, permuted = sum(alike[::2]) / 4, sum(alike[1::2]) / 4
    assert ours >= permuted - 0.05


@pytest.mark.usefixtures("either_way")
def test_on_a_prescribed_grid_it_is_native_to_rounding() -> None:
    """To 100 epsilons, values and gradients."""
    grid = OnGrid(torch.linspace(0, 1, 9, dtype=DTYPE))
    f, t = Net(), torch.tensor([0.0, 0.4, 1.0], dtype=DTYPE)
    case = Case(_plain, Net, Solver(), 3)
    y0 = torch.randn(4, 2, dtype=DTYPE)
    found = _run(case, f, y0, t, Solver(backend=CompiledBackend(control=grid)))
    wanted = _run(case, f, y0, t, Solver(backend=NativeBackend(control=grid)))
    for ours, native in zip(found[:2], wanted[:2], strict=True):
        for x, y in zip(ours, native, strict=True):
            size = float(y.abs().max())
            assert float((x - y).abs().max()) <= 100 * torch.finfo(DTYPE).eps * size


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize(
    ("coupling", "gradient"),
    [
        ("shared", "adjoint"),
        pytest.param("per_sample", "direct", marks=pytest.mark.slow),
        # Those of a state in parts are in test_graphs.
        pytest.param("shared", "checkpointed", marks=pytest.mark.slow),
        pytest.param("shared", "direct", marks=pytest.mark.slow),
        pytest.param("per_sample", "checkpointed", marks=pytest.mark.slow),
        pytest.param("per_sample", "adjoint", marks=pytest.mark.slow),
    ],
)
def test_a_program_of_any_batch_size_is_right_at_each(coupling: str, gradient: str) -> None:
    """The second size makes one with the batch free, which serves the third."""
    solver = replace(_SOLVER, coupling=coupling, gradient=gradient)  # pyright: ignore
    case = Case(_plain, Net, solver, 5)
    for batch in (3, 5, 4):
        f, y0, t = Net(batch), torch.randn(batch, 2, dtype=DTYPE), _grid(5, batch)
        found = _run(case, f, y0, t, _compiled(solver))
        wanted = _run(case, f, y0, t, solver)
        for ours, native in zip(found[:2], wanted[:2], strict=True):
            for x, y in zip(ours, native, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("gradient", ["checkpointed", "direct", "adjoint"])
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
@pytest.mark.parametrize("width", [6, 14])
def test_a_state_of_few_columns_under_many_rows_agrees(
    width: int, coupling: str, gradient: str
) -> None:
    """Whose products lie transposed: under shared steps the state is one row of all of them."""
    torch.manual_seed(0)
    f = MLP(width, (64,)).double()
    y0 = torch.randn(48, width, dtype=DTYPE)
    solver = replace(_SOLVER, coupling=coupling, gradient=gradient)  # pyright: ignore
    case = Case(_plain, Net, solver, 3)
    found = _run(case, f, y0, _grid(3, 0), _compiled(solver))
    wanted = _run(case, f, y0, _grid(3, 0), solver)
    for ours, native in zip(found[:2], wanted[:2], strict=True):
        for x, y in zip(ours, native, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("either_way")
def test_another_batch_size_compiles_at_most_once_more() -> None:
    """And any further one not at all."""
    case = CASES["shared, outputs"]
    compiled: list[int] = []
    for batch in (4, 7, 5, 12):
        y0, t = torch.randn(batch, 2, dtype=DTYPE), _grid(7, batch)
        f = Net(batch)
        found = _run(case, f, y0, t, _compiled(case.solver))
        wanted = _run(case, f, y0, t, case.solver)
        for x, y in zip(found[1], wanted[1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)
        compiled.append(counts.compiled)
    assert compiled[1] - compiled[0] <= 2  # forward and backward
    assert compiled[3] == compiled[1]


class Blow(nn.Module):
    """y' = y^2 + w: samples that start above blow up at 1 / y0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        return y**2 + self.w


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("gradient", ["checkpointed", "direct"])
def test_a_sample_that_fails_leaves_the_others_right(gradient: str) -> None:
    """Status, statistics and NaN as native; gradients of the rest as if it were not there."""
    y0 = torch.tensor([[0.2], [2.0], [0.4]], dtype=DTYPE)
    t = torch.linspace(0, 1, 4, dtype=DTYPE)
    found: list[Any] = []
    for solver in (_PER_SAMPLE, _compiled(_PER_SAMPLE)):
        f, start = Blow(), y0.clone().requires_grad_()
        solution = solve(ODEProblem(f, start, t), replace(solver, gradient=gradient))  # pyright: ignore
        torch.nan_to_num(solution.y, 0.0).sum().backward()
        found.append((solution, start.grad, f.w.grad))
    (native, dy, dw), (ours, dy_ours, dw_ours) = found
    assert ours.status.tolist() == native.status.tolist()
    assert int(ours.status[1]) != Status.OK
    assert bool(torch.isnan(ours.y[-1, 1]).all())
    torch.testing.assert_close(ours.y, native.y, rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(dy_ours, dy, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dw_ours, dw, rtol=1e-8, atol=1e-9)
    assert ours.stops[0].sample == native.stops[0].sample
    assert abs(ours.stops[0].t - native.stops[0].t) < 1e-3


@pytest.mark.usefixtures("either_way")
def test_the_limit_of_steps_is_that_of_the_whole_solve() -> None:
    """Also where the program is run several times."""
    t = torch.linspace(0, 1, 3, dtype=DTYPE)
    y0 = torch.ones(4, 2, dtype=DTYPE)
    solver = replace(_SOLVER, max_steps=5, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        ours, native = (solve(ODEProblem(Net(), y0, t), s) for s in (_compiled(solver), solver))
    assert ours.status.tolist() == native.status.tolist() == [Status.MAX_STEPS]
    assert ours.stats.forward.n_steps.tolist() == native.stats.forward.n_steps.tolist()
    torch.testing.assert_close(ours.y, native.y, rtol=1e-9, atol=1e-9, equal_nan=True)
