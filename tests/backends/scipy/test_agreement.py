"""SciPy gives the native backend's states and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.backends.protocol import Tolerances
from tests.backends.scipy.cases import METHODS, NEWTON, ONE, TOL, WITHIN, scipy
from tests.backends.torchdiffeq.cases import differentiated, solved
from tests.checks import check, check_close, check_relative
from tests.problems import FLOAT, decay, swing

pytest.importorskip("scipy")

NATIVE = Solver(gradient="checkpointed", rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("method", METHODS)
def test_states_and_gradients_are_the_native_ones(method: str, direction: int) -> None:
    """States, and gradients of y0, times, args, parameters and a computed context."""
    y, found = differentiated(scipy(method), direction)
    y_native, expected = differentiated(NATIVE, direction)
    check_relative(y, y_native, rtol=WITHIN[method] * TOL)
    check_relative(found, expected, rtol=WITHIN[method] * TOL)


@pytest.mark.parametrize("t", [(0.2, 0.6, 1.1), (1.1, 0.6, 0.2), (-0.2, -1.0)])
@pytest.mark.parametrize("method", METHODS)
def test_time_gradients_are_those_of_the_closed_form(method: str, t: tuple[float, ...]) -> None:
    """Start, interior and end, in either direction, for a rate that depends on time."""
    times = torch.tensor(t, dtype=FLOAT, requires_grad=True)
    y0 = torch.tensor([1.0, -2.0], dtype=FLOAT, requires_grad=True)
    y = odeint(swing.f, y0, times, solver=scipy(method))
    expected = torch.stack([swing.exact(time, times[0], y0) for time in times])
    weights = torch.arange(1, y.numel() + 1, dtype=FLOAT).reshape(y.shape)
    found = torch.autograd.grad((weights * y).sum(), (times, y0))
    wanted = torch.autograd.grad((weights * expected).sum(), (times, y0))
    check_relative(y, expected, rtol=WITHIN[method] * TOL)
    check_relative(found, wanted, rtol=WITHIN[method] * TOL)


def test_no_method_means_dopri5_and_no_gradient_means_the_adjoint() -> None:
    """As on every backend, the first that it offers."""
    solver = solve(ODEProblem(decay, ONE, [0.0, 1.0]), "scipy").stats.solver
    check((solver.method, solver.gradient) == ("dopri5", "adjoint"), f"{solver}")


@pytest.mark.parametrize("method", METHODS)
def test_a_nested_state_comes_back_in_its_own_structure(method: str) -> None:
    """Dicts and tuples of different shapes are one system, each leaf with T in front."""
    start = torch.ones((), dtype=FLOAT, requires_grad=True)
    y0 = {"a": torch.ones(2, 3, dtype=FLOAT), "b": (start,)}
    problem = ODEProblem(lambda t, y: {"a": -y["a"], "b": (y["b"][0] * t,)}, y0, [0.0, 0.5, 1.0])
    y = solved(problem, scipy(method)).y
    (found,) = torch.autograd.grad(y["b"][0][-1], start)
    check(y["a"].shape == (3, 2, 3), f"shape {y['a'].shape}")
    within = WITHIN[method] * TOL
    check_close(y["a"][-1], torch.full((2, 3), 0.36787944117, dtype=FLOAT), rtol=within)
    check_close(found, torch.tensor(1.6487212707, dtype=FLOAT), rtol=within)


@pytest.mark.parametrize("method", METHODS)
def test_f_sees_the_dtype_of_the_state(method: str) -> None:
    """Time and state; the result has it too, although SciPy works in float64."""
    seen: set[torch.dtype] = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.update((t.dtype, y.dtype))
        return -y

    y0 = torch.ones(2, requires_grad=True)
    y = odeint(f, y0, [0.0, 1.0], solver=scipy(method, 1e-5))
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    check(seen == {torch.float32}, f"{seen}")
    check_close(y[-1], torch.full((2,), 0.36787944), rtol=1e-3)
    check_close(found, torch.full((2,), 0.36787944), rtol=1e-3)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_without_gradients_the_states_are_the_same(
    method: str, off: Callable[[], torch.no_grad]
) -> None:
    """Bit for bit, and without a history."""
    rate = torch.tensor(0.7, dtype=FLOAT, requires_grad=True)
    expected = odeint(lambda t, y: -rate * y, ONE, [0.0, 0.4, 1.0], solver=scipy(method))
    with off():
        y = odeint(lambda t, y: -rate * y, ONE, [0.0, 0.4, 1.0], solver=scipy(method))
    check(expected.requires_grad and not y.requires_grad, "a history, or none")
    check_close(y.clone(), expected.detach(), rtol=0)


# Products of 8 bits let the rebuilt state drift by a percent, which the report may rightly doubt.
@pytest.mark.filterwarnings("ignore::ctflow.errors.GradientWarning")
@pytest.mark.parametrize("method", ["dopri5", "adams", "bdf"])
def test_autocast_lowers_products_and_keeps_the_state(method: str) -> None:
    """In the backward pass too, which runs outside; a second solve finds the same."""
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    y0 = torch.ones(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (
            odeint(lambda t, y: torch.tanh(net(y)), y0, [0.0, 1.0], solver=scipy(method, 1e-3))
            for _ in range(2)
        )
    (found,) = torch.autograd.grad(second[-1].sum(), net.weight)
    check(first.dtype == torch.float32 and bool((first == second).all()), f"{first.dtype}")
    check(found.dtype == torch.float32 and bool(found.isfinite().all()), f"{found}")


def test_functional_call_differentiates_the_parameters_it_put_in() -> None:
    """And not those that the module holds."""
    net = nn.Linear(2, 2).double()
    other = {k: (2 * x).detach().requires_grad_() for k, x in net.named_parameters()}

    def found(backend: str) -> tuple[Tensor, ...]:
        module = _Solved(net, backend)
        put = {f"net.{k}": x for k, x in other.items()}
        y = torch.func.functional_call(module, put, (torch.ones(3, 2, dtype=FLOAT),))
        return torch.autograd.grad(y.sum(), tuple(other.values()))

    check_relative(found("scipy"), found("native"), rtol=1e-5)


class _Solved(nn.Module):
    """A network as the dynamics of a layer."""

    def __init__(self, net: nn.Module, backend: str) -> None:
        super().__init__()
        self.net = net
        self.backend = backend

    def forward(self, y: Tensor) -> Tensor:
        return odeint(self.dynamics, y, [0.0, 1.0], backend=self.backend)[-1]

    def dynamics(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.net(y))


@pytest.mark.parametrize("method", METHODS)
def test_backward_tolerances_are_those_of_the_backward_solve(method: str) -> None:
    """Tighter ones cost more evaluations, backwards only."""

    def counted(backward: Tolerances | None) -> tuple[int, int]:
        y0 = torch.ones(2, dtype=FLOAT, requires_grad=True)
        solver = scipy(method, 1e-4, backward=backward)
        solution = solved(ODEProblem(swing.f, y0, [0.0, 2.0]), solver)
        solution.y[-1].sum().backward()
        backwards = solution.stats.backward
        check(backwards is not None, "no counts")
        return int(solution.stats.forward.n_f_evals), int(backwards.n_f_evals)

    loose, tight = counted(None), counted(Tolerances(1e-8, 1e-8))
    check(loose[0] == tight[0] and loose[1] < tight[1], f"{loose} and {tight}")


@pytest.mark.parametrize("method", METHODS)
def test_a_cost_outside_the_norm_leaves_the_steps_alone(method: str) -> None:
    """A cost that is hard to integrate does not change the steps of an easy path."""

    def steps(rate: float) -> Tensor:
        problem = ODEProblem(
            decay,
            ONE,
            [0.0, 1.0],
            running_cost=lambda t, y: torch.sin(rate * t),
            cost_in_norm=False,
        )
        return solved(problem, scipy(method)).stats.step_times

    if method in NEWTON:  # where the cost's own equation is solved along by iteration
        check(steps(200.0).shape[1] <= 1.5 * steps(1.0).shape[1], "many more steps")
    else:
        check_close(steps(200.0), steps(1.0), rtol=0)
