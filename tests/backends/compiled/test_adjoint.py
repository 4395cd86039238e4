"""The compiled adjoint's gradients, steps, costs, report and refusals are native's.

Most of it is tested on the graphs as they are before they become machine code, which takes a tenth
of the time; what the compiler makes of them is tested on one problem.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solution, SolveFailed, Solver, Tolerances, Unsupported, solve
from ctflow.backends.compiled import job, library
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.build import counts
from ctflow.errors import GradientWarning
from tests.checks import check_relative
from tests.problems import FLOAT

COMPILED = CompiledBackend()
couplings = pytest.mark.parametrize(
    "coupling", ["shared", pytest.param("per_sample", marks=pytest.mark.slow)]
)


class Field(nn.Module):
    """A small network, driven by `args`, with a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(2, 6, dtype=FLOAT)
        self.second = nn.Linear(6, 2, dtype=FLOAT)
        self.unused = nn.Parameter(torch.ones(3, dtype=FLOAT))
        with torch.no_grad():
            for x in self.parameters():
                x.copy_(0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    def forward(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        """Evaluate it."""
        return self.second(torch.tanh(self.first(y**3))) * torch.cos(t) + args * torch.sin(3 * t)


def _attracted(t: Tensor, y: Tensor) -> Tensor:
    return -50 * y


def _grown(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
    return args * y * y


def _logistic(t: Tensor, y: Tensor) -> Tensor:
    return 6 * y * (1 - y)


def _coupled(t: Tensor, y: dict[str, Any], args: Tensor) -> dict[str, Any]:
    x, v = y["x"], y["v"][0]
    return {"x": v.sum(-1), "v": [-args * x.unsqueeze(-1) - 0.1 * v]}


@pytest.fixture(scope="module")
def by_operator() -> Iterator[None]:
    """Programs as graphs that are run operator by operator."""

    def loop(
        going: Callable[..., Tensor],
        body: Callable[..., tuple[Tensor, ...]],
        carry: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        while bool(going(*carry)):
            carry = body(*carry)
        return carry

    def built(module: nn.Module, *_: object) -> Callable[[list[Tensor]], list[Tensor]]:
        def program(inputs: list[Tensor]) -> list[Tensor]:
            found: Any = module(*inputs)
            return [found] if isinstance(found, Tensor) else list(found)

        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "while_loop", loop)
        patch.setattr(library, "built", built)
        patch.setattr(job, "_FAMILIES", OrderedDict())
        yield


def _start(n: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, dtype=FLOAT, generator=generator)


def _differentiated(
    problem: Callable[..., ODEProblem], leaves: Sequence[Tensor], solver: Solver
) -> tuple[Solution, tuple[Tensor, ...]]:
    """A solution, and the gradient of a loss on all its finite outputs to every leaf."""
    own = [x.detach().clone().requires_grad_() for x in leaves]
    solution = solve(problem(*own), solver)
    states = torch.utils._pytree.tree_leaves(solution.y)
    loss = sum(
        (torch.linspace(0.3, 1, x.numel(), dtype=FLOAT).reshape(x.shape) * x**2).nan_to_num().sum()
        for x in states
    )
    assert isinstance(loss, Tensor)
    return solution, torch.autograd.grad(loss, own, materialize_grads=True)


def _agree(
    problem: Callable[..., ODEProblem], leaves: Sequence[Tensor], solver: Solver
) -> Solution:
    """Solve by both backends; gradients, steps and reports must be the same."""
    solver = replace(solver, gradient="adjoint")
    ours, found = _differentiated(problem, leaves, replace(solver, backend=COMPILED))
    native, wanted = _differentiated(problem, leaves, solver)
    check_relative(found, wanted, rtol=1e-10)
    a, b = ours.stats.backward, native.stats.backward
    assert a is not None
    assert b is not None
    for name in ("n_steps", "n_accepted", "n_rejected"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    drift, error = ours.gradient_report.drift, ours.gradient_report.error
    torch.testing.assert_close(drift, native.gradient_report.drift, rtol=1e-6, atol=1e-13)
    torch.testing.assert_close(error, native.gradient_report.error, rtol=1e-6, atol=1e-10)
    return ours


def _network(f: Field) -> Callable[..., ODEProblem]:
    """The problem of a network, of (y0, args, t, parameters)."""

    def problem(y0: Tensor, args: Tensor, t: Tensor, *parameters: Tensor) -> ODEProblem:
        with torch.no_grad():
            for own, new in zip(f.parameters(), parameters, strict=True):
                own.copy_(new)
        return ODEProblem(f, y0, t, args=args)

    return problem


@couplings
@pytest.mark.parametrize("n_times", [pytest.param(2, marks=pytest.mark.slow), 7])
@pytest.mark.usefixtures("by_operator")
@pytest.mark.filterwarnings("ignore::ctflow.errors.GradientWarning")
def test_states_args_and_times(coupling: Any, n_times: int) -> None:  # noqa: ANN401
    """In both directions, with and without outputs inside, at a loose and a tight tolerance."""
    f = Field()
    t = torch.linspace(0.1, 1.6, n_times, dtype=FLOAT)
    for times, tol in ((t, 1e-3), (t.flip(0), 1e-6)):
        solver = Solver(method="bosh3", rtol=tol, atol=tol, coupling=coupling)
        _agree(
            lambda y0, a, t: ODEProblem(f, y0, t, args=a), (_start(), _start(1)[0], times), solver
        )


@pytest.mark.slow
@couplings
@pytest.mark.parametrize("backward", [None, Tolerances(1e-4, 1e-6, norm="seminorm")])
@pytest.mark.usefixtures("by_operator")
def test_parameters(coupling: Any, backward: Tolerances | None) -> None:  # noqa: ANN401
    """Of a module, one of them unused, under the full norm and under the seminorm."""
    f = Field()
    t = torch.linspace(0, 1.5, 4, dtype=FLOAT)
    solver = Solver(rtol=1e-5, atol=1e-5, coupling=coupling, backward=backward, gradient="adjoint")
    found: list[tuple[Tensor, ...]] = []
    reports: list[float] = []
    for backend in (COMPILED, "native"):
        solution = solve(
            ODEProblem(f, _start(), t, args=torch.ones(2, dtype=FLOAT)),
            replace(solver, backend=backend),
        )
        found.append(
            torch.autograd.grad(
                solution.y.square().sum(), tuple(f.parameters()), materialize_grads=True
            )
        )
        reports.append(solution.gradient_report.quadrature_error)
    check_relative(found[0], found[1], rtol=1e-10)
    assert reports[0] == pytest.approx(reports[1], rel=1e-6)
    assert (reports[1] > 0) == (backward is not None)


@pytest.mark.usefixtures("by_operator")
@pytest.mark.filterwarnings("ignore::ctflow.errors.GradientWarning")
def test_tolerances_in_either_unit() -> None:
    """Right after one another, of one size: two programs, with the steps that native takes."""
    f, steps = Field(), []
    for unit in ("gradient", "absolute"):
        backward = Tolerances(1e-6, 1e-2, unit=unit)  # pyright: ignore
        solver = Solver(rtol=1e-6, atol=1e-6, coupling="shared", backward=backward)
        leaves = (_start(), 3 * _start(1)[0], torch.linspace(0, 2, 2, dtype=FLOAT))
        found = _agree(lambda y0, a, t: ODEProblem(f, y0, t, args=a), leaves, solver)
        assert found.stats.backward is not None
        steps.append(int(found.stats.backward.n_steps))
    assert steps[0] != steps[1]


@couplings
@pytest.mark.usefixtures("by_operator")
def test_fixed_steps_of_another_method_and_a_nested_state(coupling: Any) -> None:  # noqa: ANN401
    """Without an error estimate, and without a last stage that is the next first."""
    solver = Solver(method="rk4", step=0.125, coupling=coupling)

    def problem(x: Tensor, v: Tensor, args: Tensor) -> ODEProblem:
        return ODEProblem(_coupled, {"x": x, "v": [v]}, [0.0, 0.3, 1.0], args=args)

    x = torch.tensor([0.2, -0.4, 1.0], dtype=FLOAT)
    leaves = (x, torch.outer(x, x[:2]), torch.tensor(1.3, dtype=FLOAT))
    _agree(problem, leaves, solver)


@pytest.mark.usefixtures("by_operator")
def test_other_tolerances_times_and_limits_follow_nothing_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are inputs of the program."""
    args = torch.tensor(0.7, dtype=FLOAT)

    def one(n: int, tol: float, limit: int) -> None:
        y0 = torch.tensor([0.5, -0.3], dtype=FLOAT, requires_grad=True)
        t = torch.linspace(0, 0.1 * n, n, dtype=FLOAT)
        solver = Solver(COMPILED, gradient="adjoint", rtol=tol, atol=tol / 10, max_steps=limit)
        solve(ODEProblem(_grown, y0, t, args=args), solver).y.sum().backward()

    one(4, 1e-4, 1000)
    monkeypatch.setattr(library, "built", None)
    one(9, 1e-7, 500)


@pytest.mark.filterwarnings("ignore::ctflow.errors.GradientWarning")
@pytest.mark.usefixtures("by_operator")
def test_where_the_state_runs_away_native_takes_over() -> None:
    """It splits the interval: same gradient, same report, same words."""
    solver = Solver(rtol=1e-4, atol=1e-6, gradient="adjoint")
    y0 = torch.tensor([1.0, 0.4], dtype=FLOAT)

    def problem(y0: Tensor) -> ODEProblem:
        return ODEProblem(_attracted, y0, [0.0, 0.5, 1.0])

    ours = _agree(problem, (y0,), solver)
    assert any("ran away on the interval" in message for message in ours.gradient_report.messages)
    with pytest.warns(GradientWarning, match="ran away on the interval"):
        _differentiated(problem, (y0,), replace(solver, backend=COMPILED))


@pytest.mark.usefixtures("by_operator")
def test_a_gradient_in_doubt_is_warned_of_in_natives_words() -> None:
    """With the interval and the estimate."""

    def message(backend: Any) -> str:  # noqa: ANN401
        y0 = torch.tensor([0.02, 0.01], dtype=FLOAT, requires_grad=True)
        solver = Solver(backend, gradient="adjoint", rtol=1e-5, atol=1e-5)
        problem = ODEProblem(_logistic, y0, [0.0, 0.1, 3.1, 3.2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradientWarning)
            solve(problem, solver).y[-1].sum().backward()
        return " ".join(str(each.message) for each in caught)

    assert "in doubt" in message("native")
    assert message(COMPILED) == message("native")


@pytest.mark.usefixtures("by_operator")
def test_the_step_limit_holds_for_the_whole_walk() -> None:
    """In native's words."""
    y0 = torch.tensor([0.5, -0.3], dtype=FLOAT, requires_grad=True)
    tight = Tolerances(1e-11, 1e-11)
    solver = Solver(COMPILED, gradient="adjoint", rtol=1e-3, atol=1e-3, backward=tight)
    problem = ODEProblem(_grown, y0, [0.0, 0.5, 1.0], args=torch.tensor(0.7, dtype=FLOAT))
    y = solve(problem, replace(solver, max_steps=12)).y
    with pytest.raises(SolveFailed, match=re.escape("took its limit of 12 steps")):
        y.sum().backward()


@pytest.mark.usefixtures("by_operator")
def test_a_failed_sample_sends_no_gradient_and_spoils_none() -> None:
    """A healthy one stands in for it."""
    y0 = torch.tensor([[0.3], [4.0], [-0.7]], dtype=FLOAT)
    solver = Solver(method="bosh3", rtol=1e-6, atol=1e-6, coupling="per_sample")

    def problem(y0: Tensor, rate: Tensor) -> ODEProblem:
        return ODEProblem(_grown, y0, [0.0, 0.4, 1.0], args=rate)

    ours = _agree(problem, (y0, torch.tensor(1.0, dtype=FLOAT)), solver)
    assert (ours.status != 0).tolist() == [False, True, False]


@pytest.mark.usefixtures("by_operator")
def test_a_second_derivative_is_refused() -> None:
    """Its backward pass is not recorded."""
    y0 = torch.tensor([0.5, -0.3], dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(_grown, y0, [0.0, 0.5], args=torch.tensor(0.7, dtype=FLOAT))
    y = solve(problem, Solver(COMPILED, gradient="adjoint")).y
    (first,) = torch.autograd.grad(y.square().sum(), y0, create_graph=True)
    with pytest.raises(Unsupported, match="gradient='adjoint' cannot be differentiated a second"):
        first.sum().backward()


@pytest.mark.usefixtures("by_operator")
def test_nothing_is_kept_but_outputs_and_inputs() -> None:
    """Whatever the number of steps."""
    args = torch.tensor(0.7, dtype=FLOAT)
    sizes: list[int] = []

    def note(x: Tensor) -> Tensor:
        sizes[-1] += x.numel()
        return x

    for tol in (1e-2, 1e-10):
        sizes.append(0)
        y0 = torch.tensor([0.5, -0.3], dtype=FLOAT, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            solver = Solver(COMPILED, gradient="adjoint", rtol=tol, atol=tol)
            solve(ODEProblem(_grown, y0, [0.0, 0.5, 1.0], args=args), solver)
    assert sizes[0] == sizes[1] > 0


@pytest.mark.slow
def test_compiled_it_is_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """For every tolerance, direction and number of outputs by one program each way."""
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(job, "_FAMILIES", OrderedDict())
    f, before = Field(), counts.compiled

    def problem(y0: Tensor, args: Tensor, t: Tensor) -> ODEProblem:
        return ODEProblem(f, y0, t, args=args)

    for n, tol in ((7, 1e-6), (5, 1e-8)):
        t = torch.linspace(0.1, 1.6, n, dtype=FLOAT)
        for times in (t, t.flip(0)):
            leaves = (_start(seed=n), _start(1)[0], times)
            _agree(problem, leaves, Solver(rtol=tol, atol=tol))
    assert counts.compiled == before + 2
    solver = Solver(COMPILED, gradient="adjoint", rtol=1e-6, atol=1e-6)
    parameters = tuple(f.parameters())
    t = torch.linspace(0.1, 1.6, 7, dtype=FLOAT)
    ours, native = (
        torch.autograd.grad(
            solve(problem(_start(), torch.ones(2, dtype=FLOAT), t), each).y.square().sum(),
            parameters,
            materialize_grads=True,
        )
        for each in (solver, replace(solver, backend="native"))
    )
    check_relative(ours, native, rtol=1e-10)
