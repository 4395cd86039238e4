"""Examples to look at a vector field with, and the smallest one that shows a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.state import leaves_of, map_leaves

__all__ = ["Box", "Case", "shrink"]

_TRIALS = 60  # examples looked at to find a smaller one
_SHOWN = 12  # numbers of a state that are printed


class Case(NamedTuple):
    """One place to evaluate `f` at.

    Attributes:
        t: Time, 0-dim, in the dtype of the state.
        y: State.
    """

    t: Tensor
    y: Any

    def __str__(self) -> str:
        """Time and state, short where they are."""
        return f"t={float(self.t):g}, y={_shown(self.y)}"


@dataclass(frozen=True)
class Box:
    """Where a field is looked at: states with values in a range, times in an interval.

    Args:
        like: A state, whose structure, shapes, dtype and device the examples have.
        low: Least value of a component.
        high: Largest value.
        t0: Start of the times.
        t1: Their end, before or after.
        batched: Whether dimension 0 of every leaf is a batch of independent samples.

    Raises:
        InvalidProblem: If the range is empty or the times are the same.
    """

    like: Any
    low: float
    high: float
    t0: float
    t1: float
    batched: bool

    def __post_init__(self) -> None:
        """Refuse what holds no examples."""
        if not self.low < self.high:
            raise InvalidProblem(
                f"`box` must be (low, high) with low < high, got ({self.low:g}, {self.high:g}). "
                "Give the range of values in which the field must be sane."
            )
        if self.t0 == self.t1:
            raise InvalidProblem(
                f"`times` must be (t0, t1), two different times, got {self.t0:g} twice. "
                "Give the interval on which the field will be solved."
            )

    def cases(self, n: int, seed: int) -> tuple[Case, ...]:
        """The state itself, the corners of the box, and random places in it."""
        generator = torch.Generator().manual_seed(seed)
        between = self.t0 + (self.t1 - self.t0) * torch.rand(n, generator=generator)
        times = [self.t0, self.t1, self.t0, *between.tolist()]
        makers: list[Callable[[Tensor], Tensor]] = [
            lambda leaf: leaf.detach().clone(),
            lambda leaf: torch.full_like(leaf, self.low),
            lambda leaf: torch.full_like(leaf, self.high),
        ]
        while len(makers) < n:
            makers.append(lambda leaf: self._random(leaf, generator))
        pairs = list(zip(times, makers, strict=False))[:n]
        return tuple(Case(self.time(t), map_leaves(maker, self.like)) for t, maker in pairs)

    def time(self, t: float) -> Tensor:
        """A time as `f` gets it under shared steps."""
        first: Tensor = leaves_of(self.like)[0]
        return torch.tensor(t, dtype=first.dtype, device=first.device)

    def _random(self, leaf: Tensor, generator: torch.Generator) -> Tensor:
        part = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        return (self.low + (self.high - self.low) * part).to(leaf)


def shrink(case: Case, box: Box, fails: Callable[[Case], bool]) -> Case:
    """A smaller example that fails too: fewer samples, rounder numbers, an earlier time.

    Args:
        case: An example that fails.
        box: Where it came from.
        fails: Whether an example fails in the same way.

    Returns:
        The smallest that was found; `case` itself if there is none.
    """
    left = _TRIALS
    found = True
    while found and left > 0:
        found = False
        for smaller in _smaller(case, box):
            left -= 1
            if left < 0:
                break
            if fails(smaller):
                case, found = smaller, True
                break
    return case


def _smaller(case: Case, box: Box) -> Iterator[Case]:
    """Simpler examples, the simplest first; each differs from `case`."""
    leaves = leaves_of(case.y)
    batch = leaves[0].shape[0] if box.batched else 0
    for rows in (1, 2, batch // 2):
        if 0 < rows < batch:
            yield Case(case.t, map_leaves(lambda x, rows=rows: x[:rows].clone(), case.y))
    simplest = min(max(0.0, min(box.t0, box.t1)), max(box.t0, box.t1))
    for time in (simplest, box.t0):
        if float(case.t) != float(box.time(time)):
            yield Case(box.time(time), case.y)
    simpler: list[Callable[[Tensor], Tensor]] = [
        torch.zeros_like,
        torch.ones_like,
        torch.round,
        lambda x: torch.round(x, decimals=1),
        _only_first,
    ]
    for maker in simpler:
        y = map_leaves(maker, case.y)
        shorter = [
            _digits(new) < _digits(old) for new, old in zip(leaves_of(y), leaves, strict=True)
        ]
        if any(shorter):
            yield Case(case.t, y)


def _only_first(x: Tensor) -> Tensor:
    """The first number that is not zero, and zeros."""
    flat = torch.zeros_like(x).reshape(-1)
    where = x.reshape(-1).nonzero().flatten()
    if len(where):
        flat[where[0]] = x.reshape(-1)[where[0]]
    return flat.reshape(x.shape)


def _digits(x: Tensor) -> int:
    """How long the numbers are to write down, all together."""
    return sum(len(f"{value:.6g}") if value else 0 for value in x.reshape(-1)[:256].tolist())


def _shown(y: object) -> str:
    if isinstance(y, Tensor):
        if y.numel() <= _SHOWN:
            return str(map_leaves(lambda v: float(f"{v:.4g}"), y.tolist()))
        first = ", ".join(f"{v:.4g}" for v in y.reshape(-1)[:3].tolist())
        return f"[{first}, ...] of shape {list(y.shape)}"
    if isinstance(y, dict):
        return "{" + ", ".join(f"{key!r}: {_shown(value)}" for key, value in y.items()) + "}"  # pyright: ignore
    parts = ", ".join(_shown(value) for value in y)  # pyright: ignore
    return f"({parts})" if isinstance(y, tuple) else f"[{parts}]"
