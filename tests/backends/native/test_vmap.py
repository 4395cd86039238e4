"""torch.vmap over a solve: right over given steps, refused over adaptive ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap

from ctflow import (
    InvalidProblem,
    ODEProblem,
    SolveFailed,
    Solver,
    Unsupported,
    odeint,
    odeint_dense,
    sdeint,
    solve,
)
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.native.methods import METHODS
from tests.problems import FLOAT

# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

T = torch.tensor([0.0, 0.4, 1.0], dtype=FLOAT)
Y = torch.randn(4, 2, dtype=FLOAT, generator=torch.Generator().manual_seed(0))
RATES = torch.tensor([0.3, 0.9, 0.1, 0.7], dtype=FLOAT)
FIXED = Solver(step=0.1, method="rk4")
ADAPTIVE = "torch.vmap over adaptive steps.*coupling='per_sample'"


def bend(t: Tensor, y: Tensor) -> Tensor:
    """Van der Pol's equation at a rate that depends on time, for states [..., 2]."""
    a, b = y.unbind(-1)
    return torch.stack([b, (1 - a * a) * b * (1 + torch.sin(t)) - a], dim=-1)


def outputs(y0: Tensor, solver: Solver = FIXED) -> Tensor:
    """Three states, [3, 2]."""
    return odeint(bend, y0, T, solver=solver)


def loss(y0: Tensor) -> Tensor:
    """A number."""
    return outputs(y0)[-1].square().sum()


def one_by_one(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What vmap stands for."""
    return torch.stack([function(x) for x in values])


def equal(found: Any, wanted: Tensor) -> None:  # noqa: ANN401
    """To rounding: kernels for batches may sum in another order."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_over_initial_states_it_is_one_solve_after_the_other(method: str) -> None:
    """With every method, whose interpolant is asked between two steps."""

    def run(y0: Tensor) -> Tensor:
        return outputs(y0, Solver(step=0.15, method=method))

    equal(vmap(run)(Y), one_by_one(run, Y))


def test_any_dimension_may_be_mapped() -> None:
    """`in_dims` and `out_dims`, and maps inside maps."""
    wanted = one_by_one(outputs, Y)
    equal(vmap(outputs, in_dims=1)(Y.T), wanted)
    equal(vmap(outputs, in_dims=-1, out_dims=1)(Y.T), wanted.transpose(0, 1))
    equal(vmap(vmap(outputs))(Y.reshape(2, 2, 2)), wanted.reshape(2, 2, 3, 2))


def with_args(rate: Tensor, y0: Tensor) -> Tensor:
    """The rate as an argument of f."""
    return odeint(lambda t, y, a: a * bend(t, y), y0, T, solver=FIXED, args=rate)


def with_closure(rate: Tensor, y0: Tensor) -> Tensor:
    """The rate where no argument shows it."""
    return odeint(lambda t, y: rate * bend(t, y), y0, T, solver=FIXED)


@pytest.mark.parametrize("run", [with_args, with_closure])
def test_over_what_f_reads_too(run: Callable[[Tensor, Tensor], Tensor]) -> None:
    """With one state for all, and with one for each."""
    equal(vmap(run, in_dims=(0, None))(RATES, Y[0]), one_by_one(lambda a: run(a, Y[0]), RATES))
    each = torch.stack([run(a, y) for a, y in zip(RATES, Y, strict=True)])
    equal(vmap(run)(RATES, Y), each)


def test_over_an_ensemble_of_networks() -> None:
    """Parameters by `functional_call`; states and gradients."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double() for _ in range(3)]
    weights, _ = stack_module_state(nets)  # pyright: ignore

    def end(weights: dict[str, Tensor], y0: Tensor) -> Tensor:
        def f(_: Tensor, y: Tensor) -> Tensor:
            return functional_call(nets[0], weights, (y,))

        return odeint(f, y0, T, solver=FIXED)[-1].sum()

    ends = [odeint(lambda _, y, net=net: net(y), Y[0], T, solver=FIXED)[-1].sum() for net in nets]
    equal(vmap(end, in_dims=(0, None))(weights, Y[0]), torch.stack(ends))
    slopes = vmap(grad(end), in_dims=(0, None))(weights, Y[0])["0.weight"]
    wanted = [torch.autograd.grad(x, net[0].weight)[0] for x, net in zip(ends, nets, strict=True)]  # pyright: ignore
    equal(slopes, torch.stack(wanted))


@pytest.mark.parametrize("transform", [grad, hessian])
def test_derivatives_of_each(transform: Callable[..., Any]) -> None:
    """A derivative inside the map."""
    equal(vmap(transform(loss))(Y), one_by_one(transform(loss), Y))


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians_of_each_and_of_all(transform: Callable[..., Any]) -> None:
    """Inside the map and around it, in both modes."""
    wanted = one_by_one(transform(outputs), Y)  # [4, 3, 2, 2]
    equal(vmap(transform(outputs))(Y), wanted)
    around = transform(lambda y: vmap(outputs)(y))(Y)  # [4, 3, 2, 4, 2]
    equal(torch.einsum("btibj->btij", around), wanted)


def test_a_map_is_back_propagated_through() -> None:
    """By autograd, outside any transform."""
    y0 = Y.clone().requires_grad_()
    vmap(loss)(y0).sum().backward()
    equal(y0.grad, one_by_one(grad(loss), Y))


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_derivatives_by_times_of_each(transform: Callable[..., Any]) -> None:
    """One grid of times for all, inside the map and around it."""

    def at(t: Tensor, y0: Tensor) -> Tensor:
        return odeint(bend, y0, t, solver=FIXED)

    wanted = one_by_one(lambda y: transform(at)(T, y), Y)
    equal(vmap(transform(at), in_dims=(None, 0))(T, Y), wanted)
    equal(transform(lambda t: vmap(lambda y: at(t, y))(Y))(T), wanted)


def test_states_of_every_structure() -> None:
    """Tuples, complex numbers, and a batch of systems with rows of times inside each."""
    grid = torch.stack([T, T.flip(0), 2 * T])

    def pair(y0: Tensor) -> Tensor:
        return odeint(lambda t, s: (s[1] * t, -s[0]), (y0[:1], y0[1:]), T, solver=FIXED)[1]

    def wave(y0: Tensor) -> Tensor:
        z = odeint(lambda t, z: 1j * z.conj() * t, torch.complex(y0, y0.flip(0)), T, solver=FIXED)
        return torch.view_as_real(z)

    def rows(y0: Tensor) -> Tensor:
        solver = Solver(step=0.1, method="dop853", coupling="per_sample")
        return odeint(lambda t, y: -y * t, y0 * torch.ones(3, 1).double(), grid, solver=solver)

    for run in (pair, wave, rows):
        equal(vmap(run)(Y), one_by_one(run, Y))


def test_what_else_comes_back() -> None:
    """Dense output at mapped times, running costs, local errors, and states behind a jump."""

    def dense(y0: Tensor) -> Tensor:
        sol = odeint_dense(bend, y0, [0.0, 1.0], solver=FIXED)
        return vmap(sol)(T) + sol.derivative(T)

    def more(y0: Tensor) -> Tensor:
        problem = ODEProblem(bend, y0, T, running_cost=lambda t, y: y.sum(), local_error=True)
        solution = solve(problem, Solver(step=0.1))
        return solution.cost + solution.local_error

    def jump(y0: Tensor) -> Tensor:
        f = lambda t, y: torch.where(t < 0.35, y, -y)  # noqa: E731
        return odeint(f, y0, T, solver=FIXED, jump_t=[0.35])

    for run in (dense, more, jump):
        equal(vmap(run)(Y), one_by_one(run, Y))


def test_steps_on_a_frozen_grid_are_given_too() -> None:
    """With a control of one's own."""
    frozen = Solver(NativeBackend(control=OnGrid(torch.linspace(0, 1, 8))), gradient="direct")
    equal(vmap(lambda y: outputs(y, frozen))(Y), one_by_one(lambda y: outputs(y, frozen), Y))


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
@pytest.mark.parametrize("gradient", [None, "direct"])
def test_over_adaptive_steps_it_is_refused(coupling: Any, gradient: Any) -> None:  # noqa: ANN401
    """Before any work, and per-sample coupling is named."""
    solver = Solver(coupling=coupling, gradient=gradient)
    with pytest.raises(Unsupported, match=ADAPTIVE):
        vmap(lambda y: outputs(y, solver))(Y.unsqueeze(1))


@pytest.mark.parametrize("first_step", [None, 0.1])
@pytest.mark.parametrize("start", [-1.0, 0.3])
def test_over_what_f_reads_adaptive_steps_are_refused_where_it_shows(
    first_step: float | None, start: float
) -> None:
    """At the first step, or where f comes to read it."""
    solver = Solver(first_step=first_step)

    def end(rate: Tensor) -> Tensor:
        return odeint(lambda t, y: rate * y if t > start else y, Y[0], T, solver=solver)[-1]

    with pytest.raises(Unsupported, match=ADAPTIVE):
        vmap(end)(RATES)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
def test_gradients_outside_the_graph_are_refused(gradient: Any) -> None:  # noqa: ANN401
    """They name the one that can; where no gradient is recorded there is none to refuse."""
    solver = Solver(step=0.1, method="rk4", gradient=gradient)
    with pytest.raises(Unsupported, match="take gradient='direct'"):
        vmap(lambda y: outputs(y, solver))(Y)
    with torch.no_grad():
        equal(vmap(lambda y: outputs(y, solver))(Y), one_by_one(outputs, Y))


def jacobians(gradient: str, *, by_vmap: bool) -> tuple[Tensor, Tensor]:
    """That of the outputs by the state, all rows at once and one after the other."""
    y0 = Y.clone().requires_grad_()
    solver = Solver(rtol=1e-4, atol=1e-4, gradient=gradient)  # pyright: ignore
    y = odeint(bend, y0, T, solver=solver)[1:].sum(1).flatten()
    rows = torch.eye(len(y), dtype=FLOAT)

    def pull(row: Tensor) -> Tensor:
        return torch.autograd.grad(y, y0, row, retain_graph=True)[0]

    each = torch.stack([pull(row) for row in rows])
    if by_vmap:
        return vmap(pull)(rows), each
    return torch.autograd.grad(y, y0, rows, is_grads_batched=True)[0], each


@pytest.mark.parametrize(
    ("gradient", "by_vmap"), [("direct", True), ("direct", False), ("checkpointed", False)]
)
def test_several_cotangents_at_once_are_those_one_by_one(gradient: str, by_vmap: bool) -> None:
    """Of a solve that nothing surrounds, through its steps."""
    equal(*jacobians(gradient, by_vmap=by_vmap))


@pytest.mark.parametrize(
    ("gradient", "by_vmap"), [("checkpointed", True), ("adjoint", True), ("adjoint", False)]
)
def test_several_cotangents_at_once_are_refused_where_they_cannot_be(
    gradient: str, by_vmap: bool
) -> None:
    """The adjoint equation has steps of its own for each; the rest is torch's."""
    with pytest.raises(Unsupported, match="one gradient at a time"):
        jacobians(gradient, by_vmap=by_vmap)


def times_mapped(x: Tensor) -> Tensor:
    """Times that differ."""
    return odeint(bend, Y[0], T * x, solver=FIXED)


def mask_mapped(x: Tensor) -> Tensor:
    """Masks that differ."""
    mask = (T.expand(4, 3) < 2 * x) | (T.expand(4, 3) == 0)
    return solve(ODEProblem(bend, Y, T.expand(4, 3), mask=mask), FIXED).y


def jump_mapped(x: Tensor) -> Tensor:
    """Places of jumps that differ."""
    return odeint(bend, Y[0], T, solver=FIXED, jump_t=x.reshape(1))


@pytest.mark.parametrize("run", [times_mapped, mask_mapped, jump_mapped])
def test_what_would_need_other_steps_is_refused(run: Callable[[Tensor], Tensor]) -> None:
    """And said what to do."""
    with pytest.raises(Unsupported, match=r"per_sample|Detach it"):
        vmap(run)(RATES)


def test_a_call_that_fails_fails_them_all() -> None:
    """The others would have gone on, but there is one status for all."""
    starts = torch.tensor([[0.1], [1e200]], dtype=FLOAT)
    with pytest.raises(SolveFailed, match="NON_FINITE"):
        vmap(lambda y: odeint(lambda t, y: y**2, y, T, solver=FIXED))(starts)
    with pytest.raises(SolveFailed, match="NON_FINITE at t=0 "):
        vmap(lambda y: odeint(lambda t, y: torch.log(y), y, T, solver=FIXED))(-starts)
    with pytest.raises(InvalidProblem, match=r"got nan at index \[1, 0\]"):
        vmap(outputs)(torch.tensor([[0.1, 0.2], [torch.nan, 0.0]], dtype=FLOAT))


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy", "compiled"])
@pytest.mark.parametrize("mapped", ["y0", "rate"])
def test_other_backends_refuse(backend: str, mapped: str) -> None:
    """By name, whether the state is mapped or something that f reads."""
    if backend != "compiled":
        pytest.importorskip(backend)

    def end(x: Tensor) -> Tensor:
        y0, rate = (Y[0] * x, x) if mapped == "y0" else (Y[0], x)
        return odeint(lambda t, y: rate * y, y0, T, backend=backend)

    with pytest.raises(Unsupported, match=r"torch\.func|torch\.vmap"):
        vmap(end)(RATES)


def test_stochastic_equations_refuse() -> None:
    """Where the state is mapped and where something else is."""
    y0 = torch.rand(2, 2)
    with pytest.raises(Unsupported, match="stochastic"):
        vmap(lambda a: sdeint(lambda t, y: a * y, lambda t, y: 0.1 * y, y0, [0.0, 1.0], seed=0))(
            torch.rand(3)
        )
