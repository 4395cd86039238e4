"""At any problem forward mode has the gradient's numbers, and a mapped solve its calls'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ctflow import Solver, solve
from tests.checks import check_relative
from tests.property.strategies import trials
from tests.property.trial import Choices, gradient_of, make_trial, tangent_of

# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

controllers = st.sampled_from(["i", "pi42", "pid"])
methods = st.sampled_from(["dopri5", "tsit5", "vern7", "dopri8", "dop853"])


@settings(max_examples=5)  # torch computes zero tangents in Python: a millisecond each
@given(choices=trials(), method=methods, controller=st.sampled_from(["i", "pi42", "pid"]))
def test_forward_mode_is_the_gradient_along_a_vector(
    choices: Choices, method: str, controller: Any  # noqa: ANN401
) -> None:  # fmt: skip
    """Of y0, parameters, args and times together: the same steps, so to rounding."""
    trial = make_trial(choices)
    solver = Solver(method=method, controller=controller, rtol=1e-5, atol=1e-5, gradient="direct")
    found, along = tangent_of(trial, solver)
    pairs = list(zip(gradient_of(trial, solver), along, strict=True))
    wanted = torch.stack([(g * v).sum() for g, v in pairs]).sum()
    size = torch.stack([(g * v).abs().sum() for g, v in pairs]).sum()
    assert abs(found - wanted) <= 1e-10 * size


@settings(max_examples=8)
@given(choices=trials(longest=2.0), method=methods, n=st.integers(1, 3))
def test_a_mapped_solve_is_one_solve_after_the_other(choices: Choices, method: str, n: int) -> None:
    """For states of every structure, with batches inside, at a given step."""
    problem = make_trial(choices).problem
    solver = Solver(step=0.21, method=method)

    def outputs(y0: Any) -> Any:  # noqa: ANN401
        return solve(replace(problem, y0=y0), solver).y

    with torch.no_grad():
        starts = [pytree.tree_map(lambda x, k=k: x * (1 + 0.3 * k), problem.y0) for k in range(n)]
        stacked = pytree.tree_map(lambda *x: torch.stack(x), *starts)
        found = pytree.tree_leaves(torch.vmap(outputs)(stacked))
        wanted = [pytree.tree_leaves(outputs(start)) for start in starts]
    for i, leaf in enumerate(found):
        check_relative(leaf, torch.stack([y[i] for y in wanted]), rtol=1e-12)
