"""The state of one sample as named curves, whatever its structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.solution import Solution
from ctflow.state import leaves_of

__all__ = ["EVERY", "Curves", "curves_of", "own_times", "row_of", "step_times", "two_of"]

EVERY: Literal["every"] = "every"
_MOST = 10  # curves that an eye follows; more are drawn where they are asked for by number


class Curves(NamedTuple):
    """Variables of one sample.

    Attributes:
        values: [K, V], float64.
        names: Of each variable.
        left_out: How many variables were not asked for and are too many to draw.
    """

    values: Tensor
    names: list[str]
    left_out: int


def two_of(variables: Sequence[int]) -> tuple[int, int]:
    """The two numbers.

    Raises:
        InvalidProblem: If they are not two.
    """
    if len(variables) != 2:
        raise InvalidProblem(
            f"`variables` must be two numbers, got {tuple(variables)}. Write variables=(0, 1)."
        )
    return variables[0], variables[1]


def row_of(solution: Solution, sample: int | None) -> int:
    """The row of counts and times that belongs to a sample: 0 under shared steps.

    Raises:
        InvalidProblem: If there is no such sample.
    """
    if solution.stats.solver.coupling != "per_sample":
        return 0
    batch, chosen = len(solution.status), sample or 0
    if not 0 <= chosen < batch:
        raise InvalidProblem(f"`sample` must be 0 to {batch - 1}, got {sample}. Take one of these.")
    return chosen


def own_times(solution: Solution, sample: int | None) -> Tensor:
    """Output times of a sample, [T]."""
    t = solution.t.detach().cpu().double()
    return t if t.dim() == 1 else t[row_of(solution, sample)]


def step_times(solution: Solution, sample: int | None) -> Tensor:
    """Ends of its accepted steps, the start first; empty where the backend does not tell."""
    row = solution.stats.step_times[row_of(solution, sample)].detach().cpu().double()
    return row[~row.isnan()]


def curves_of(
    solution: Solution,
    y: Any,  # noqa: ANN401
    sample: int | None,
    variables: Sequence[int] | Literal["every"] | None,
) -> Curves:
    """Variables of a state with times in front, [K, ...] a leaf.

    Args:
        solution: Whose state it is.
        y: The state at K times.
        sample: Its row. None: the first under per-sample steps; under shared ones everything.
        variables: Numbers of those wanted; None: the first ten; `EVERY`: all.

    Raises:
        InvalidProblem: If there is no such sample or variable.
    """
    per_sample = solution.stats.solver.coupling == "per_sample"
    chosen = (sample or 0) if per_sample else sample
    columns: list[Tensor] = []
    names: list[str] = []
    for name, leaf in _leaves(y, ""):
        values, of = _sample(leaf.detach().cpu(), chosen), name or "y"
        flat = torch.view_as_real(values) if values.is_complex() else values
        columns.append(flat.reshape(len(flat), -1).double())
        names += _names(of, values)
    every = torch.cat(columns, dim=1)
    most = len(names) if variables == EVERY else min(_MOST, len(names))
    wanted = range(most) if variables is None or isinstance(variables, str) else variables
    for i in wanted:
        if not 0 <= i < len(names):
            raise InvalidProblem(
                f"`variables` must be 0 to {len(names) - 1}, got {i}. Take some of these."
            )
    left_out = len(names) - len(wanted) if variables is None else 0
    return Curves(every[:, list(wanted)], [names[i] for i in wanted], left_out)


def _sample(leaf: Tensor, sample: int | None) -> Tensor:
    if sample is None:
        return leaf
    if leaf.dim() < 2 or not 0 <= sample < leaf.shape[1]:
        most = leaf.shape[1] - 1 if leaf.dim() > 1 else "none: the state has no batch"
        raise InvalidProblem(f"`sample` must be 0 to {most}, got {sample}. Take one of these.")
    return leaf[:, sample]


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """Leaves with the names by which one would write them."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, part in cast("Mapping[object, Any]", tree).items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (tuple, list)):
        for i, part in enumerate(cast("Sequence[Any]", tree)):
            yield from _leaves(part, f"{name or 'y'}.{i}")
    else:
        yield from ((f"{name or 'y'}.{i}", leaf) for i, leaf in enumerate(leaves_of(tree)))


def _names(of: str, values: Tensor) -> list[str]:
    """One for each column: `y[2]`, and real and imaginary parts apart."""
    places = product(*(range(size) for size in values.shape[1:]))
    plain = [f"{of}[{', '.join(map(str, place))}]" if place else of for place in places]
    parts = ("Re ", "Im ") if values.is_complex() else ("",)
    return [f"{part}{name}" for name in plain for part in parts]
