"""Strategies draw valid values only, and what they draw prints as what it is made of."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from ctflow import ODEProblem, Solver, solve
from ctflow.state import leaves_of
from ctflow.testing import check_dynamics, check_gradients
from ctflow.testing.strategies import (
    dynamics,
    ode_problems,
    recipes,
    solvers,
    states,
    time_grids,
)
from ctflow.testing.trials import STRUCTURES, RandomField, Recipe


@given(t=time_grids(longest=2.0, most=4))
def test_times_are_strictly_monotone(t: tuple[float, ...]) -> None:
    """In either direction, over no more than what was asked for."""
    steps = torch.tensor(t, dtype=torch.float64).diff()
    assert 2 <= len(t) <= 4
    assert bool((steps > 0).all() or (steps < 0).all())
    assert abs(t[-1] - t[0]) <= 2.0 + 1e-12


@given(data=st.data(), structure=st.sampled_from(sorted(STRUCTURES)))
def test_states_are_finite_and_have_their_batch(data: st.DataObject, structure: str) -> None:
    """In every structure, with and without a batch."""
    y = data.draw(states(structure=structure, batch=4))
    assert all(leaf.shape[0] == 4 and bool(torch.isfinite(leaf).all()) for leaf in leaves_of(y))


@settings(max_examples=25)
@given(data=st.data())
def test_problems_are_solved_by_the_solvers_that_are_drawn_for_them(data: st.DataObject) -> None:
    """Nothing is refused, and all arrive."""
    problem = data.draw(ode_problems())
    names = st.sampled_from(["native", "torchdiffeq", "scipy"])  # compiling takes a while
    solver = data.draw(solvers(problem=problem, backend=data.draw(names)))
    assert isinstance(problem, ODEProblem)
    assert isinstance(solver, Solver)
    assert solve(problem, solver).ok


def test_a_problem_shrinks_to_something_readable() -> None:
    """The smallest that has three output times: written down in one line."""
    smallest = find(
        recipes(),
        lambda recipe: len(recipe.times) > 2,
        settings=settings(database=None, derandomize=True),
    )
    assert smallest == Recipe("forced", "tuple", None, smallest.times, False, 0)
    assert len(smallest.times) == 3
    assert smallest.times[0] == 0.0


def test_a_field_prints_what_it_is_made_of() -> None:
    """As a falsifying example is shown."""
    assert repr(RandomField("linear", 3, 0, batched=True)).startswith("RandomField('linear', n=3")


@settings(max_examples=20)
@given(f=dynamics(), y=states())
def test_right_dynamics_pass(f: RandomField, y: torch.Tensor) -> None:
    """Whatever the state, parameters and form."""
    check_dynamics(f, y, compiled=False, examples=3)


@pytest.mark.slow
@settings(max_examples=1000)
@given(f=dynamics(), y=states(), seed=st.integers(0, 1000))
def test_a_thousand_right_dynamics_pass(f: RandomField, y: torch.Tensor, seed: int) -> None:
    """With examples of their own each time."""
    check_dynamics(f, y, compiled=False, examples=5, seed=seed)


@settings(max_examples=6)
@given(problem=ode_problems())
def test_gradients_of_right_problems_agree(problem: ODEProblem) -> None:
    """Checkpointed, adjoint, and finite differences."""
    check_gradients(problem, [Solver(), Solver(gradient="adjoint")])
