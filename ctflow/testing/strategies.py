"""Hypothesis strategies for states, times, vector fields, problems and solvers.

Keyword-only, and of valid values only; what they draw prints as what it is made of. Needs
hypothesis, which `pip install ctflow[testing]` brings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from ctflow.backends.protocol import Solver
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.routes import every_solver
from ctflow.testing.trials import FIELDS, STRUCTURES, RandomField, Recipe

__all__ = ["dynamics", "ode_problems", "recipes", "solvers", "states", "time_grids"]


@st.composite
def time_grids(
    draw: st.DrawFn, *, longest: float = 3.0, most: int = 5, backwards: bool = True
) -> tuple[float, ...]:
    """Two or more strictly monotone output times.

    Args:
        draw: Given by hypothesis.
        longest: Longest interval.
        most: Most times.
        backwards: Whether they may run down.
    """
    n = draw(st.integers(1, most - 1))
    start = draw(st.integers(-100, 100)) / 100
    length = longest * draw(st.integers(1, 100)) / 100
    parts = draw(st.lists(st.integers(1, 10), min_size=n, max_size=n))
    sign = draw(st.sampled_from((1, -1))) if backwards else 1
    ends = [sum(parts[: i + 1]) / sum(parts) for i in range(n)]
    return (start, *(start + sign * length * end for end in ends))


@st.composite
def recipes(draw: st.DrawFn, *, batched: bool | None = None, longest: float = 3.0) -> Recipe:
    """Problems in a few words, which print well; `recipe.build()` makes the problem.

    Args:
        draw: Given by hypothesis.
        batched: True or False; None: either.
        longest: Longest interval; Lipschitz constants are about 1.
    """
    has_batch = draw(st.booleans()) if batched is None else batched
    return Recipe(
        form=draw(st.sampled_from(sorted(FIELDS))),
        structure=draw(st.sampled_from(sorted(STRUCTURES, reverse=True))),
        batch=draw(st.integers(1, 3)) if has_batch else None,
        times=draw(time_grids(longest=longest)),
        forced=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


def ode_problems(
    *, batched: bool | None = None, longest: float = 3.0
) -> st.SearchStrategy[ODEProblem]:
    """Smooth, non-stiff problems in float64 with states of all structures.

    Args:
        batched: True or False; None: either.
        longest: Longest interval; Lipschitz constants are about 1.
    """
    return recipes(batched=batched, longest=longest).map(lambda recipe: recipe.build())


def dynamics(*, n_variables: int = 3, batched: bool = True) -> st.SearchStrategy[RandomField]:
    """Right vector fields f(t, y) on states of so many variables a sample.

    Args:
        n_variables: Variables of a sample.
        batched: Whether dimension 0 of a state is a batch.
    """
    return st.builds(
        RandomField,
        st.sampled_from(sorted(FIELDS)),
        st.just(n_variables),
        st.integers(0, 10_000),
        st.just(batched),
    )


@st.composite
def states(draw: st.DrawFn, *, structure: str = "tensor", batch: int | None = 3) -> Any:  # noqa: ANN401
    """Finite states of one structure, float64, with numbers of at most three digits.

    Args:
        draw: Given by hypothesis.
        structure: "tensor", "matrix", "tuple", "dict" or "nested".
        batch: Samples; None: no batch dimension.
    """
    recipe = Recipe("linear", structure, batch, (0.0, 1.0), False, 0)
    y = recipe.state()
    for leaf in leaves_of(y):
        _fill(draw, leaf)
    return y


def _fill(draw: st.DrawFn, leaf: Tensor) -> None:
    numbers = st.integers(-200, 200)
    values = draw(st.lists(numbers, min_size=leaf.numel(), max_size=leaf.numel()))
    leaf.copy_(leaf.new_tensor(values).reshape(leaf.shape) / 100)


@st.composite
def solvers(
    draw: st.DrawFn,
    *,
    problem: ODEProblem,
    backend: str | None = None,
    tightest: int = 9,
    loosest: int = 5,
) -> Solver:
    """Solvers that some installed backend accepts for the problem.

    Args:
        draw: Given by hypothesis.
        problem: What they shall solve.
        backend: One of them only; None: any that begins without compiling.
        tightest: Tolerances go down to 10 to the minus this.
        loosest: And up to 10 to the minus this.
    """
    routes = list(every_solver(problem, None if backend is None else (backend,)))
    tolerance = 10.0 ** -draw(st.integers(loosest, tightest))
    return replace(draw(st.sampled_from(routes)), rtol=tolerance, atol=tolerance)
