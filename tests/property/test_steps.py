"""Whatever decides the steps, the gradient is the same; and dense output has it too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ctflow import Controller, Solver, solve
from tests.backends.compiled.conftest import operator_by_operator
from tests.checks import check_relative
from tests.property.strategies import trials
from tests.property.trial import Choices, gradient_of, make_trial, reference

RTOL = 1e-8
methods = st.sampled_from(["dopri5", "tsit5", "vern7", "dopri8", "dop853", "rodas5p"])
controllers = st.sampled_from([None, "pi", "pid", Controller(i=0.4, p=0.1, safety=0.8)])
gradients = st.sampled_from(["direct", "checkpointed", "adjoint"])
shares = st.lists(st.floats(0, 1, allow_subnormal=False), max_size=3)


def places(choices: Choices, parts: list[float]) -> tuple[float, ...]:
    """Times at these parts of the interval."""
    t0, t1 = choices.times[0], choices.times[-1]
    return tuple(t0 + part * (t1 - t0) for part in parts)


deciders = given(
    choices=trials(), method=methods, controller=controllers, gradient=gradients, stops=shares,
    jumps=shares, longest=st.sampled_from([None, 0.3]),
)  # fmt: skip


@settings(max_examples=16)
@deciders
def test_the_gradient_does_not_depend_on_who_decides_the_steps(**drawn: Any) -> None:  # noqa: ANN401
    """Any method, controller, limit and stop; jumps are declared where there is none."""
    check_steps("native", **drawn)


@settings(max_examples=2)
@deciders
def test_nor_does_it_where_the_solve_is_a_program(**drawn: Any) -> None:  # noqa: ANN401
    """The same on `compiled`, whose programs are run operator by operator here."""
    with operator_by_operator():
        check_steps("compiled", **drawn)


def check_steps(
    backend: str, choices: Choices, method: str, controller: Any, gradient: Any,  # noqa: ANN401
    stops: list[float], jumps: list[float], longest: float | None,
) -> None:  # fmt: skip
    """The gradient is that of a solve whose steps are its own."""
    assume(method != "rodas5p" or (gradient != "adjoint" and backend == "native"))  # else refused
    trial = make_trial(choices)
    jump_t = torch.tensor(places(choices, jumps), dtype=torch.float64)
    trial = replace(trial, problem=replace(trial.problem, jump_t=jump_t))
    solver = Solver(
        backend, method=method, controller=controller, gradient=gradient, max_step=longest,
        step_t=places(choices, stops), rtol=RTOL, atol=RTOL,
    )  # fmt: skip
    found = gradient_of(trial, solver)
    check_relative(found, reference(choices), rtol=trial.amplified(RTOL))


@settings(max_examples=10)
@given(
    choices=trials(), method=methods, gradient=st.sampled_from(["direct", "checkpointed"]),
    stops=shares,
)  # fmt: skip
def test_the_solution_as_a_function_has_the_values_and_the_gradient_of_its_outputs(
    choices: Choices, method: str, gradient: Any, stops: list[float]  # noqa: ANN401
) -> None:  # fmt: skip
    """At the same times: values to rounding, gradients of everything by the tolerance."""
    trial = make_trial(choices)
    solver = Solver(method=method, gradient=gradient, rtol=RTOL, atol=RTOL,
                    step_t=places(choices, stops))  # fmt: skip
    solution = solve(replace(trial.problem, dense=True), solver)
    assert solution.dense is not None
    course = pytree.tree_leaves(solution.dense(trial.problem.t))
    outputs = pytree.tree_leaves(solution.y)
    check_relative(*(tuple(x.detach() for x in y) for y in (course, outputs)), rtol=1e-11)
    weights = pytree.tree_leaves(trial.weights)
    chosen = [(y[list(trial.entries)], w) for y, w in zip(course, weights, strict=True)]
    loss = torch.stack([(w * y + 0.1 * y * y).sum() for y, w in chosen]).sum()
    found = torch.autograd.grad(loss, trial.inputs, allow_unused=True, materialize_grads=True)
    check_relative(tuple(found), reference(choices), rtol=10 * trial.amplified(RTOL))
