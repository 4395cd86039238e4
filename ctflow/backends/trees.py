"""Rooted trees: the conditions that a Runge-Kutta method of a given order satisfies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

__all__ = ["Condition", "Tree", "conditions", "trees"]

Tree: TypeAlias = "tuple[Tree, ...]"
"""A rooted tree: what hangs from its root. The tree with one node is ()."""


class Condition(NamedTuple):
    """One order condition:  sum_i w_i vector_i = value  for the weights w of a solution.

    Attributes:
        tree: Whose condition it is.
        order: Number of its nodes.
        vector: Elementary weight of each stage, [S].
        value: 1 / gamma(tree).
    """

    tree: Tree
    order: int
    vector: tuple[float, ...]
    value: float

    @property
    def name(self) -> str:
        """The condition in Hairer's words, "sum b c^2 = 1/3"."""
        value = "1" if self.order == 1 else f"1/{round(1 / self.value)}"
        return " ".join(["sum b", *_factors(self.tree)]) + f" = {value}"


@lru_cache(maxsize=16)
def trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with so many nodes.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.2,
        table 2.1: 1, 1, 2, 4, 9, 20, 48, 115 trees with 1 to 8 nodes.

    Example:
        >>> [len(trees(n)) for n in range(1, 9)]
        [1, 1, 2, 4, 9, 20, 48, 115]
    """
    return tuple(_forests(order - 1, order - 1, 0))


def conditions(
    a: Sequence[Sequence[float]], order: int, lone: Sequence[Sequence[float]] | None = None
) -> Iterator[Condition]:
    """The conditions of every order up to the given one, lowest first.

    Args:
        a: Coefficients of the stages: row i holds i of them.
        order: Highest order.
        lone: What stands in the place of `a` below a node with one branch: for a Rosenbrock method
            alpha + gamma, whose row i holds i + 1 coefficients. None: `a` too.

    Yields:
        One condition for each tree; a method is of this order if its weights satisfy all.

    Cost:
        About S^2 products for each tree of lower order: some milliseconds for order 8.

    Source:
        Hairer I, theorem II.2.13; for Rosenbrock methods Hairer II, theorem IV.7.1 and eq. 7.11.
    """
    vectors: dict[Tree, tuple[float, ...]] = {}
    below: dict[Tree, tuple[float, ...]] = {}
    alone: dict[Tree, tuple[float, ...]] = below if lone is None else {}
    gammas: dict[Tree, int] = {}
    n_stages = len(a)
    for n in range(1, order + 1):
        for tree in trees(n):
            columns = [(alone if len(tree) == 1 else below)[child] for child in tree]
            vector = tuple(math.prod(x[i] for x in columns) for i in range(n_stages))
            vectors[tree] = vector
            gammas[tree] = n * math.prod(gammas[child] for child in tree)
            if n < order:
                below[tree] = _times(a, vector)
                if lone is not None:
                    alone[tree] = _times(lone, vector)
            yield Condition(tree, n, vector, 1 / gammas[tree])


def _times(a: Sequence[Sequence[float]], x: Sequence[float]) -> tuple[float, ...]:
    """A triangular matrix, given by its rows, times a vector."""
    return tuple(math.fsum(u * v for u, v in zip(row, x, strict=False)) for row in a)


def _forests(n: int, largest: int, first: int) -> Iterator[Tree]:
    """Multisets of trees with n nodes together, none larger than so many nodes.

    Of the largest size only trees from number `first` on, so that each multiset comes once.
    """
    if n == 0:
        yield ()
        return
    for size in range(min(n, largest), 0, -1):
        own = trees(size)
        for i in range(first if size == largest else 0, len(own)):
            for rest in _forests(n - size, size, i):
                yield (own[i], *rest)


def _factors(tree: Tree) -> list[str]:
    """What stands under the sum beside the weights."""
    n_leaves = sum(1 for child in tree if not child)
    found = [] if not n_leaves else ["c"] if n_leaves == 1 else [f"c^{n_leaves}"]
    for child in tree:
        if child:
            inner = " ".join(_factors(child))
            found.append(f"a {inner}" if len(tree) == 1 else f"a({inner})")
    return found
