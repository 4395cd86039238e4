"""Random problems for a backend: combinations that no demand of its own has thought of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ctflow.backends.protocol import Feature, Solver
from ctflow.testing.asked import Asked
from ctflow.testing.bench import Bench
from ctflow.testing.gradients import SLACK
from ctflow.testing.reference import growth
from ctflow.testing.routes import label
from ctflow.testing.subject import said
from ctflow.testing.trials import Recipe, random_recipe

__all__ = ["Trial", "random_problems"]

_RTOL = 1e-7  # of the backend under test
_TIGHT = Solver(gradient="direct", rtol=1e-11, atol=1e-11)  # our own


class Trial(NamedTuple):
    """A random problem, and what a backend made of it.

    Attributes:
        recipe: The problem.
        wrong: What is wrong with which route, or None.
    """

    recipe: Recipe
    wrong: str | None


def random_problems(bench: Bench, routes: Sequence[Solver]) -> Iterator[Trial]:
    """Random fields, structures, batches and grids against our own solver at 1e-11.

    Yields:
        A trial for each example that the backend does not refuse.
    """
    for i in range(bench.examples):
        kind = None if bench.kinds is None else i % bench.kinds
        solver = routes[(i if kind is None else kind) % len(routes)]
        own = None if solver.coupling == "shared" else True
        recipe = random_recipe(bench.seed + i, batched=own, kind=kind)
        loose = replace(solver, rtol=_RTOL, atol=_RTOL)
        asked = _asked(bench, recipe)
        if not bench.accepts(asked.problem, loose):
            continue
        try:
            wrong = _wrong(asked, loose)
        except Exception as error:  # whatever the backend raises is the finding
            wrong = said(error)
        yield Trial(recipe, None if wrong is None else f"{wrong} [{label(solver)}]")


def _asked(bench: Bench, recipe: Recipe) -> Asked:
    asked = Asked.of(recipe.build(), None, recipe.seed)
    if bench.has(Feature.TIME_GRADIENTS):
        return asked
    asked.problem.t.requires_grad_(False)
    return replace(asked, parts={k: v for k, v in asked.parts.items() if k != "t"})


def _wrong(asked: Asked, solver: Solver) -> str | None:
    wanted, found = asked.gradient(_TIGHT), asked.gradient(solver)
    allowed = SLACK * _RTOL * growth(asked.problem, wanted.solution.y)
    value = float((found.y - wanted.y).norm()) / max(float(wanted.y.norm()), 1.0)
    if not value <= allowed:
        return f"outputs are off by {value:.2g}, {allowed:.2g} allowed"
    gradient = wanted.distance(found) / max(wanted.norm, 1.0)
    if not gradient <= allowed and not found.doubts:
        return f"the gradient is off by {gradient:.2g}, {allowed:.2g} allowed"
    return None
