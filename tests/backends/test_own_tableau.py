"""A tableau of your own is a method like any other, and refused where it cannot be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ctflow import (
    InvalidProblem,
    ODEProblem,
    SDEProblem,
    Solver,
    Tableau,
    Unsupported,
    odeint,
    odeint_dense,
    odeint_event,
    solve,
    solve_sde,
)
from ctflow.backends import get
from ctflow.event import Event
from ctflow.testing import run_backend_conformance
from tests.problems import FLOAT, decay

HEUN3 = Tableau(
    name="heun3",
    order=3,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
    p=((1.0, -3 / 4), (0.0, 0.0), (0.0, 3 / 4)),
    e=(1 / 4, -1 / 2, 1 / 4),  # b - e = (0, 1/2, 1/2) has order 2
    error_order=2,
    source="Heun 1900",
)
T = torch.tensor([0.0, 0.3, 1.0], dtype=FLOAT)


def problem() -> ODEProblem:
    """y' = rate cos(t) y from ones, where everything wants a gradient."""
    rate = torch.tensor(0.7, dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(2, 3, dtype=FLOAT, requires_grad=True)
    return ODEProblem(
        lambda t, y, rate: rate * torch.cos(t) * y, y0, T.clone().requires_grad_(), args=rate
    )


def test_fixed_steps_have_the_order_of_the_tableau() -> None:
    """Half the step is an eighth of the error."""
    asked, errors = problem(), []
    for step in (0.05, 0.025):
        y = solve(asked, Solver(method=HEUN3, step=step)).y[-1].detach()
        errors.append(float((y - torch.exp(0.7 * torch.sin(T[-1]))).abs().amax()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_every_gradient_goes_through_it(gradient: Any, coupling: Any) -> None:  # noqa: ANN401
    """To the state, the argument and the times, within ten tolerances times their size."""
    asked = replace(problem(), batched=True)
    inputs = (asked.y0, asked.args, asked.t)
    solver = Solver(method=HEUN3, rtol=1e-8, atol=1e-8, gradient=gradient, coupling=coupling)
    found = torch.autograd.grad(solve(asked, solver).y[1:].sum(), inputs)
    turn = torch.sin(asked.t[1:]) - torch.sin(asked.t[0])
    exact = (asked.y0 * torch.exp(asked.args * turn)[:, None, None]).sum()
    wanted = torch.autograd.grad(exact, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_its_name_stands_in_the_statistics() -> None:
    """And its coefficients in no message."""
    solver = Solver(method=HEUN3, rtol=1e-4, atol=1e-4)
    assert solve(problem(), solver).stats.solver.method == "heun3"
    assert repr(solver) == (
        "Solver(backend='native', method=Tableau('heun3'), rtol=0.0001, atol=0.0001)"
    )


def test_two_tableaus_of_one_name_are_two_methods() -> None:
    """What decides is the coefficients."""
    other = Tableau(
        name="heun3", order=1, c=(0.0,), a=((),), b=(1.0,), p=((1.0,),), source="Euler 1768"
    )
    ours, theirs = (solve(problem(), Solver(method=m, step=0.1)).y for m in (HEUN3, other))
    assert float((ours - theirs)[-1].abs().amax().detach()) > 1e-3


def test_odeint_and_its_relatives_take_it() -> None:
    """The keyword is that of the settings."""
    y0 = torch.ones(1, dtype=FLOAT)
    exact = torch.exp(-torch.ones(1, dtype=FLOAT))
    tight = {"method": HEUN3, "rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(odeint(decay, y0, [0.0, 1.0], **tight)[-1], exact)
    torch.testing.assert_close(odeint_dense(decay, y0, [0.0, 1.0], **tight)(1.0), exact)
    half = odeint_event(decay, y0, [0.0, 5.0], Event(lambda t, y: y[0] - exact[0]), **tight)
    torch.testing.assert_close(half.t_end, torch.ones((), dtype=FLOAT))


def test_without_an_error_estimate_it_needs_a_step() -> None:
    """As every method without one does."""
    plain = replace(HEUN3, e=None, error_order=None)
    with pytest.raises(Unsupported, match="method='heun3' has no error estimate"):
        solve(problem(), Solver(method=plain))


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy"])
@pytest.mark.parametrize("name", ["heun3", "dopri5"])
def test_a_backend_with_methods_of_its_own_refuses_it(backend: str, name: str) -> None:
    """Also one that bears the name of a method that it has; and says who can."""
    own = replace(HEUN3, name=name)
    with pytest.raises(Unsupported, match=f"Tableau\\('{name}'\\).*backend='native'"):
        solve(problem(), Solver(backend, method=own))


def test_stochastic_equations_refuse_it() -> None:
    """Its name does not make it torchsde's scheme."""
    pytest.importorskip("torchsde")
    asked = SDEProblem(decay, decay, torch.ones(2, 1, dtype=FLOAT), [0.0, 1.0], seed=0)
    with pytest.raises(Unsupported, match=r"method=Tableau\('euler'\) is not one of"):
        solve_sde(asked, Solver("torchsde", method=replace(HEUN3, name="euler"), step=0.1))


def test_two_tableaus_at_once_are_refused() -> None:
    """One in the backend, another in the settings: neither is taken in silence."""
    with pytest.raises(Unsupported, match=r"its own `tableau` stands in the place of method="):
        solve(problem(), Solver(replace(get("native"), tableau=HEUN3), method=HEUN3))


def test_a_wrong_coefficient_is_refused_when_it_is_made() -> None:
    """With the condition that does not hold."""
    with pytest.raises(InvalidProblem, match=r"'heun3' must have the order condition"):
        replace(HEUN3, b=(1 / 3, 0.0, 2 / 3), p=((1.0, -2 / 3), (0.0, 0.0), (0.0, 2 / 3)))


def test_lists_arrays_and_tensors_will_do() -> None:
    """They become tuples of plain numbers, so that the method can be looked up."""
    asked = replace(
        HEUN3,
        c=list(HEUN3.c),
        a=[list(row) for row in HEUN3.a],
        b=torch.tensor(HEUN3.b, dtype=FLOAT),
        p=np.array(HEUN3.p),
    )
    assert asked == HEUN3
    assert hash(asked) == hash(HEUN3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"b": ("1/4", 0.0, 3 / 4)}, "finite numbers in b"),
    "NaN": ({"c": (0.0, float("nan"), 2 / 3)}, "finite numbers in c"),
    "a flat matrix": ({"a": (0.0, 1 / 3, 2 / 3)}, "finite numbers in a"),
    "no p": ({"p": None}, "finite numbers in p"),
    "a missing row": ({"a": ((), (1 / 3,))}, "lengths that fit"),
    "order 0": ({"order": 0}, "a whole number from 1 on as order"),
    "order as text": ({"order": "3"}, "a whole number from 1 on as order"),
    "too high an order": ({"order": 30}, r"the order condition sum b"),
    "half an order": ({"error_order": 1.5}, "a whole number from 0 on as error_order"),
    "a dense order that is none": ({"dense_order": 3}, "an interpolant of order 3"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD.keys())
def test_a_table_that_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    """By name, whatever is wrong with it."""
    with pytest.raises(InvalidProblem, match=f"tableau 'heun3' must have {message}"):
        replace(HEUN3, **changed)


@pytest.mark.slow
@pytest.mark.compiler
def test_the_compiled_backend_takes_it() -> None:
    """The numbers are native's."""
    solver = Solver(method=HEUN3, rtol=1e-6, atol=1e-6)
    ours = solve(problem(), solver).y
    torch.testing.assert_close(solve(problem(), replace(solver, backend="compiled")).y, ours)


@pytest.mark.slow
def test_native_conforms_with_it() -> None:
    """Every demand on a backend, with this method in place of dopri5."""
    run_backend_conformance("native", method=HEUN3, examples=4)
